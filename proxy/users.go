package proxy

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"holdfast/pgwire"
)

// usersBytesMax bounds a file of roles.
const usersBytesMax = 4 << 20

// loadUsers reads a file of lines role:password.
func loadUsers(path string) (map[string]string, error) {
	users := make(map[string]string)
	return users, readUsers(path, func(role, password string) error {
		users[role] = password
		return nil
	})
}

// loadSecrets reads a file of lines role:secret, a secret being what pg_authid.rolpassword has.
func loadSecrets(path string) (map[string]string, error) {
	secrets := make(map[string]string)
	return secrets, readUsers(path, func(role, secret string) error {
		if _, ok := secrets[role]; ok {
			return errors.New("the role has a line already")
		}
		if len(role) > secretNameMax {
			return fmt.Errorf("a role's name has %d bytes at most", secretNameMax)
		}
		if _, err := pgwire.ParseScramSecret(secret); err != nil && !pgwire.IsMD5Secret(secret) {
			return errors.New("neither role:SCRAM-SHA-256$(secret) nor role:md5(hash)")
		}
		secrets[role] = secret
		return nil
	})
}

// readUsers reads a file of lines role:value, which nobody but its owner may read. A backslash
// takes the special meaning from a colon or a backslash in the role's name, as in a file of libpq's
// passwords. Errors name lines, and never what is in them.
func readUsers(path string, take func(role, value string) error) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s has mode %v, others could read it: chmod 0600", path, info.Mode())
	}
	if info.Size() > usersBytesMax {
		return fmt.Errorf("%s has %d bytes, at most %d are allowed", path, info.Size(),
			usersBytesMax)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	defer clear(text)
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		role, value, err := cutUser(line)
		if err == nil {
			err = take(role, value)
		}
		if err != nil {
			return fmt.Errorf("%s, line %d: %w", path, i+1, err)
		}
	}
	return nil
}

func cutUser(line string) (role, password string, err error) {
	var b strings.Builder
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
		case c == ':' && b.Len() > 0 && i+1 < len(line):
			return b.String(), line[i+1:], nil
		default:
			b.WriteByte(c)
		}
	}
	return "", "", errors.New("not a role, a colon, and what belongs to it")
}
