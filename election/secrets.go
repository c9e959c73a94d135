package election

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// agentSecrets are the passwords of the four roles; they are never logged nor put in argv.
type agentSecrets struct {
	superuser, replication, rewind, lookup string
}

var agentSecretNames = []string{"superuser", "replication", "rewind", "lookup"}

// secretBytesMax bounds a password file.
const secretBytesMax = 1024

// loadAgentSecrets reads the password files and refuses any that others could read.
func loadAgentSecrets(dir string) (agentSecrets, error) {
	var s agentSecrets
	var errs []error
	for i, p := range []*string{&s.superuser, &s.replication, &s.rewind, &s.lookup} {
		var err error
		if *p, err = readAgentSecret(filepath.Join(dir, agentSecretNames[i])); err != nil {
			errs = append(errs, err)
		}
	}
	return s, errors.Join(errs...)
}

func readAgentSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrPermission) {
		return "", fmt.Errorf("secret: %w (the file and its directory must belong to the user "+
			"that runs this)", err)
	}
	if err != nil {
		return "", fmt.Errorf("secret: %w (`holdfast init` makes it; copy it from another node)",
			err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("secret %s: mode is %v, others could read it: chmod 0600",
			path, info.Mode())
	}
	if info.Size() > secretBytesMax {
		return "", fmt.Errorf("secret %s: %d bytes, at most %d are allowed",
			path, info.Size(), secretBytesMax)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("secret: %w", err)
	}
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" || strings.ContainsAny(text, "\r\n\x00") {
		return "", fmt.Errorf("secret %s: one line with a password is needed", path)
	}
	return text, nil
}

// pgVerifier makes the SCRAM-SHA-256 secret that PostgreSQL stores (RFC 5802), so that a password
// is never part of an SQL text. Passwords are ASCII by our making; others go through unprepared,
// as libpq does when SASLprep refuses them.
func pgVerifier(password string) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	return pgVerifierOf(password, salt, 4096)
}

// pgVerifies tells that a SCRAM-SHA-256 secret was made of that password.
func pgVerifies(verifier, password string) bool {
	rest, ok := strings.CutPrefix(verifier, "SCRAM-SHA-256$")
	head, _, _ := strings.Cut(rest, "$")
	count, salt, _ := strings.Cut(head, ":")
	rounds, err := strconv.Atoi(count)
	raw, serr := base64.StdEncoding.DecodeString(salt)
	if !ok || err != nil || serr != nil || rounds < 1 || rounds > pgRoundsMax {
		return false
	}
	want, err := pgVerifierOf(password, raw, rounds)
	return err == nil && want == verifier
}

// pgRoundsMax bounds the work of checking a secret that somebody else made.
const pgRoundsMax = 1 << 20

func pgVerifierOf(password string, salt []byte, rounds int) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, rounds, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("scram secret: %w", err)
	}
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	enc := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, enc(salt), enc(stored[:]),
		enc(mac(salted, "Server Key"))), nil
}

// passFile is the libpq password file of the walreceiver, pg_basebackup and pg_rewind.
func (a *PostgresAgent) passFile() string { return filepath.Join(a.state, "pgpass") }

func (a *PostgresAgent) passText() string {
	esc := strings.NewReplacer(`\`, `\\`, ":", `\:`)
	text := ""
	for _, kv := range [][2]string{{pgReplicationRole, a.secrets.replication},
		{pgRewindRole, a.secrets.rewind}} {
		text += "*:*:*:" + kv[0] + ":" + esc.Replace(kv[1]) + "\n"
	}
	return text
}

func (a *PostgresAgent) writePassFile() error {
	text := a.passText()
	if old, err := os.ReadFile(a.passFile()); err == nil && string(old) == text {
		return nil
	}
	return a.writeFile(a.passFile(), []byte(text), 0o600)
}
