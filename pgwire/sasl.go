package pgwire

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"github.com/xdg-go/stringprep"
)

// ScramSecret is what PostgreSQL stores of a password: SCRAM-SHA-256$iter:salt$Stored:Server.
type ScramSecret struct {
	Iterations int
	Salt       []byte
	StoredKey  []byte
	ServerKey  []byte
}

// scramIterations is PostgreSQL's default iteration count.
const scramIterations = 4096

// scramIterationsMax bounds the work that a stored secret or a server can ask for.
const scramIterationsMax = 10_000_000

// ParseScramSecret reads pg_authid.rolpassword.
func ParseScramSecret(s string) (ScramSecret, error) {
	bad := errors.New("parse secret: not a SCRAM-SHA-256 secret")
	parts := strings.Split(s, "$")
	if len(parts) != 3 || parts[0] != "SCRAM-SHA-256" {
		return ScramSecret{}, bad
	}
	iter, salt, ok := strings.Cut(parts[1], ":")
	stored, server, ok2 := strings.Cut(parts[2], ":")
	n, err := strconv.Atoi(iter)
	if !ok || !ok2 || err != nil || n < 1 || n > scramIterationsMax {
		return ScramSecret{}, bad
	}
	out := ScramSecret{Iterations: n}
	for _, f := range []struct {
		text string
		into *[]byte
	}{{salt, &out.Salt}, {stored, &out.StoredKey}, {server, &out.ServerKey}} {
		b, err := base64.StdEncoding.DecodeString(f.text)
		if err != nil || len(b) == 0 {
			return ScramSecret{}, bad
		}
		*f.into = b
	}
	if len(out.StoredKey) != sha256.Size || len(out.ServerKey) != sha256.Size {
		return ScramSecret{}, bad
	}
	return out, nil
}

// BuildScramSecret makes the stored form of a password.
func BuildScramSecret(password string, salt []byte, iterations int) (string, error) {
	salted, err := saltPassword([]byte(password), salt, iterations)
	if err != nil {
		return "", err
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]),
		b64(mac(salted, "Server Key"))), nil
}

// saltPassword is Hi() of RFC 5802. Like libpq it takes the raw bytes of a password that
// SASLprep refuses. No copy of an ASCII password is made here, which SASLprep leaves as it is; what
// crypto/hmac makes of it cannot be wiped.
func saltPassword(password, salt []byte, iterations int) ([]byte, error) {
	text := unsafe.String(unsafe.SliceData(password), len(password))
	if !isPrintableASCII(password) {
		if p, err := stringprep.SASLprep.Prepare(string(password)); err == nil {
			text = p
		}
	}
	key, err := pbkdf2.Key(sha256.New, text, salt, iterations, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("salt password: %w", err)
	}
	return key, nil
}

// isPrintableASCII tells that SASLprep (RFC 4013) has nothing to map, to normalize or to refuse.
func isPrintableASCII(p []byte) bool {
	for _, c := range p {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}

func mac(key []byte, msg string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(msg))
	return h.Sum(nil)
}

// newNonce makes the random part of a nonce.
func newNonce() string {
	nonce := make([]byte, 18)
	if _, err := rand.Read(nonce); err != nil {
		panic("BUG: no random bytes: " + err.Error()) // crypto/rand never returns one
	}
	return base64.StdEncoding.EncodeToString(nonce)
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	subtle.XORBytes(out, a, b)
	return out
}

// MockKey makes the secrets of users that do not exist: the same for the same name wherever the key
// is the same, so that asking twice, or two nodes, tells nothing (I8).
type MockKey []byte

// mockRounds is how often the shared secret is hashed. Anybody is shown what was made of the key,
// and must not find out a secret that a person has chosen.
const mockRounds = 1 << 16

// NewMockKey derives the key of a secret that all nodes of a group share and clients do not know;
// of an empty one it makes a key that nobody else has.
func NewMockKey(shared string) MockKey {
	if shared == "" {
		k := make([]byte, sha256.Size)
		if _, err := rand.Read(k); err != nil {
			panic("BUG: no random bytes: " + err.Error())
		}
		return k
	}
	k, err := pbkdf2.Key(sha256.New, shared, []byte("holdfast mock authentication"), mockRounds,
		sha256.Size)
	if err != nil {
		panic("BUG: no key of a secret: " + err.Error()) // only for lengths that are not these
	}
	return k
}

// Secret is that of a user that does not exist: no password fits it.
func (k MockKey) Secret(user string) ScramSecret {
	return ScramSecret{
		Iterations: scramIterations, Salt: mac(k, user)[:16],
		StoredKey: mac(k, "stored "+user), ServerKey: mac(k, "server "+user),
	}
}

// CheckPassword tells by ErrScramFailed that it is another password; it returns the ClientKey, with
// which one can log in wherever the secret is stored.
func (s ScramSecret) CheckPassword(password []byte) (clientKey []byte, err error) {
	salted, err := saltPassword(password, s.Salt, s.Iterations)
	if err != nil {
		return nil, err
	}
	defer clear(salted)
	key := mac(salted, "Client Key")
	sum := sha256.Sum256(key)
	if subtle.ConstantTimeCompare(sum[:], s.StoredKey) != 1 {
		clear(key)
		return nil, ErrScramFailed
	}
	return key, nil
}

// ScramServer is the server's side of one SCRAM-SHA-256 exchange (RFC 5802, RFC 7677).
type ScramServer struct {
	secret ScramSecret
	ok     bool

	binding []byte // of tls-server-end-point; nil: not offered
	bound   bool   // the client chose SCRAM-SHA-256-PLUS

	stage     int // how many messages were taken (I7)
	firstBare string
	first     string
	nonce     string
	gs2       string
}

// errScramOrder is a message out of order: each may come once (I7).
var errScramOrder = errors.New("scram: message out of order")

// NewScramServer starts an exchange. With ok false the client goes through the same steps and
// fails at the end, as with a wrong password; the secret is then that of a MockKey.
func NewScramServer(secret ScramSecret, ok bool) *ScramServer {
	return &ScramServer{secret: secret, ok: ok}
}

// Mechanisms of SASL (RFC 7677).
const (
	scramPlain = "SCRAM-SHA-256"
	scramPlus  = "SCRAM-SHA-256-PLUS"
)

// Bind offers channel binding with that data of tls-server-end-point; nil offers none.
func (s *ScramServer) Bind(data []byte) { s.binding = data }

// Mechanisms are those on offer, the strongest first.
func (s *ScramServer) Mechanisms() []string {
	if s.binding != nil {
		return []string{scramPlus, scramPlain}
	}
	return []string{scramPlain}
}

// Choose takes the mechanism that the client named.
func (s *ScramServer) Choose(mech string) error {
	if mech != scramPlain && (mech != scramPlus || s.binding == nil) {
		return protocolError("client selected an invalid SASL authentication mechanism")
	}
	s.bound = mech == scramPlus
	return nil
}

// checkFlag judges the channel binding flag of the gs2 header (RFC 5802, section 6): what a client
// says that it believes of us must be what we offered, or somebody in between has changed it.
func (s *ScramServer) checkFlag(flag string) error {
	name, binds := strings.CutPrefix(flag, "p=")
	switch {
	case s.bound && !binds:
		return protocolError("malformed SCRAM message: the client selected SCRAM-SHA-256-PLUS, " +
			"but the message does not include channel binding data")
	case s.bound && name != "tls-server-end-point":
		return protocolError("unsupported SCRAM channel-binding type %q", name)
	case s.bound, flag == "n":
		return nil
	case flag == "y" && s.binding != nil:
		e := NewError(CodeInvalidAuth, "SCRAM channel binding negotiation error")
		e.Detail = "The client supports SCRAM channel binding but thinks the server does not. " +
			"However, this server does support channel binding."
		return e
	case flag == "y":
		return nil
	case binds:
		return protocolError("malformed SCRAM message: the client selected SCRAM-SHA-256 without " +
			"channel binding, but the message includes channel binding data")
	}
	return protocolError("malformed SCRAM message")
}

// First takes the client-first-message and returns the server-first-message.
func (s *ScramServer) First(msg []byte) ([]byte, error) {
	if s.stage != 0 {
		return nil, errScramOrder
	}
	s.stage = -1 // nothing goes on after an error
	text := string(msg)
	parts := strings.SplitN(text, ",", 3)
	if len(parts) != 3 {
		return nil, protocolError("malformed SCRAM message")
	}
	if err := s.checkFlag(parts[0]); err != nil {
		return nil, err
	}
	if parts[1] != "" {
		return nil, NewError(CodeFeatureNotSupported,
			"client uses authorization identity, but it is not supported")
	}
	s.gs2 = parts[0] + "," + parts[1] + ","
	s.firstBare = parts[2]
	attrs := strings.Split(s.firstBare, ",")
	if len(attrs) < 2 || !strings.HasPrefix(attrs[0], "n=") ||
		!strings.HasPrefix(attrs[1], "r=") || len(attrs[1]) < 3 || len(attrs[1]) > 1024 {
		return nil, protocolError("malformed SCRAM message")
	}
	s.nonce = attrs[1][2:] + newNonce()
	s.first = fmt.Sprintf("r=%s,s=%s,i=%d", s.nonce,
		base64.StdEncoding.EncodeToString(s.secret.Salt), s.secret.Iterations)
	s.stage = 1
	return []byte(s.first), nil
}

// ErrScramFailed is a proof that does not fit the secret.
var ErrScramFailed = errors.New("scram: authentication failed")

// Final takes the client-final-message. It returns the server-final-message and the ClientKey,
// with which one can log in wherever the same secret is stored.
func (s *ScramServer) Final(msg []byte) (reply, clientKey []byte, err error) {
	if s.stage != 1 {
		return nil, nil, errScramOrder
	}
	s.stage = -1 // one proof for each nonce
	text := string(msg)
	at := strings.LastIndex(text, ",p=")
	if at < 0 {
		return nil, nil, protocolError("malformed SCRAM message")
	}
	without := text[:at]
	proof, err := base64.StdEncoding.DecodeString(text[at+3:])
	if err != nil || len(proof) != sha256.Size {
		return nil, nil, protocolError("malformed SCRAM message")
	}
	bound := []byte(s.gs2)
	if s.bound {
		bound = append(bound, s.binding...)
	}
	want := "c=" + base64.StdEncoding.EncodeToString(bound) + ",r=" + s.nonce
	if without != want {
		if c, _, _ := strings.Cut(without, ","); s.bound && !strings.HasPrefix(want, c+",") {
			return nil, nil, NewError(CodeInvalidAuth, "SCRAM channel binding check failed")
		}
		return nil, nil, protocolError("malformed SCRAM message: channel binding or nonce")
	}
	auth := s.firstBare + "," + s.first + "," + without
	key := xor(proof, mac(s.secret.StoredKey, auth))
	clear(proof)
	sum := sha256.Sum256(key)
	if subtle.ConstantTimeCompare(sum[:], s.secret.StoredKey) != 1 || !s.ok {
		clear(key)
		return nil, nil, ErrScramFailed
	}
	sig := base64.StdEncoding.EncodeToString(mac(s.secret.ServerKey, auth))
	return []byte("v=" + sig), key, nil
}

// ScramClient is the client's side of one exchange, by password or by ClientKey.
type ScramClient struct {
	cred      Credentials
	bound     string // the attribute c, in base64
	firstBare string
	nonce     string
	sig       []byte
}

// NewScramClient starts an exchange and returns it with the client-first-message. PostgreSQL
// takes the user's name from the StartupMessage.
//
// A ClientKey needs the ServerKey beside it: HMAC under an empty key is no proof of a server (I9).
func NewScramClient(cred Credentials) (*ScramClient, []byte, error) {
	return newScramClient(cred, "n,,", nil)
}

// newScramClient starts an exchange with that gs2 header, and data of a channel binding behind it.
func newScramClient(cred Credentials, gs2 string, data []byte) (*ScramClient, []byte, error) {
	if cred.ClientKey != nil &&
		(len(cred.ClientKey) != sha256.Size || len(cred.ServerKey) != sha256.Size) {
		return nil, nil, errors.New("scram: client key and server key must have 32 bytes each")
	}
	c := &ScramClient{cred: cred, nonce: newNonce()}
	c.bound = base64.StdEncoding.EncodeToString(append([]byte(gs2), data...))
	c.firstBare = "n=,r=" + c.nonce
	return c, []byte(gs2 + c.firstBare), nil
}

// Continue takes the server-first-message and returns the client-final-message.
func (c *ScramClient) Continue(msg []byte) ([]byte, error) {
	if c.sig != nil {
		return nil, errScramOrder // a second salt would get a second proof to guess from
	}
	attrs := strings.Split(string(msg), ",")
	if len(attrs) < 3 || !strings.HasPrefix(attrs[0], "r="+c.nonce) ||
		!strings.HasPrefix(attrs[1], "s=") || !strings.HasPrefix(attrs[2], "i=") ||
		len(attrs[0]) == len("r="+c.nonce) {
		return nil, protocolError("malformed SCRAM message of the server")
	}
	salt, err := base64.StdEncoding.DecodeString(attrs[1][2:])
	iter, err2 := strconv.Atoi(attrs[2][2:])
	if err != nil || err2 != nil || iter < 1 || iter > scramIterationsMax {
		return nil, protocolError("malformed SCRAM message of the server")
	}
	clientKey, serverKey := c.cred.ClientKey, c.cred.ServerKey
	if clientKey == nil {
		salted, err := saltPassword([]byte(c.cred.Password), salt, iter)
		if err != nil {
			return nil, err
		}
		clientKey, serverKey = mac(salted, "Client Key"), mac(salted, "Server Key")
		clear(salted)
		defer clear(clientKey)
	}
	without := "c=" + c.bound + "," + attrs[0]
	auth := c.firstBare + "," + string(msg) + "," + without
	stored := sha256.Sum256(clientKey)
	proof := xor(clientKey, mac(stored[:], auth))
	c.sig = mac(serverKey, auth)
	return []byte(without + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

// Finish takes the server-final-message and checks that the server knows the secret too.
func (c *ScramClient) Finish(msg []byte) error {
	v, ok := bytes.CutPrefix(msg, []byte("v="))
	sig, err := base64.StdEncoding.DecodeString(string(v))
	if !ok || err != nil || c.sig == nil || subtle.ConstantTimeCompare(sig, c.sig) != 1 {
		return errors.New("scram: the server's signature is wrong")
	}
	return nil
}
