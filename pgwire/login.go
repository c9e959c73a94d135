package pgwire

import (
	"bytes"
	"cmp"
	"crypto/md5" //nolint:gosec // the protocol's own
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
)

// Kinds of authentication requests (protocol-message-formats).
const (
	authOK           uint32 = 0
	authCleartext    uint32 = 3
	authMD5          uint32 = 5
	authSASL         uint32 = 10
	authSASLContinue uint32 = 11
	authSASLFinal    uint32 = 12
)

// Credentials prove who logs in: a password, the keys that a client's own proof gave away, or the
// hash that a server stores for the method md5.
type Credentials struct {
	Password  string
	ClientKey []byte
	ServerKey []byte
	// MD5 is md5 and 32 hexadecimal digits, as in pg_authid.
	MD5 string
}

// Wipe overwrites the keys; what is a string stays until its memory is used again.
func (c *Credentials) Wipe() {
	clear(c.ClientKey)
	clear(c.ServerKey)
}

// LoginOptions are what a login may be besides its parameters and credentials.
type LoginOptions struct {
	// Protocol is the version to ask for; a server that speaks an older one says so, and is taken.
	Protocol uint32
	// Binding is the data of tls-server-end-point; nil without TLS, or if the server's certificate
	// has none.
	Binding []byte
	// ParamsMax and ParamsBytesMax bound what the server may tell of its parameters; 0 is 1000 and
	// 1 MiB. PostgreSQL tells about 15, in less than 1 KiB.
	ParamsMax, ParamsBytesMax int
}

// ServerInfo is what a server tells at login.
type ServerInfo struct {
	PID      uint32
	Key      []byte
	Params   []Param
	TxStatus byte
}

// The bounds of who sets none.
const (
	paramsMax      = 1000
	paramsBytesMax = 1 << 20
)

// ErrTooManyParams is a server that tells of more parameters than it may, ErrParamsTooLarge one of
// which they take too many bytes.
var (
	ErrTooManyParams  = protocolError("too many parameters during login")
	ErrParamsTooLarge = protocolError("too many bytes of parameters during login")
)

// ErrAuthMethod is a server that asks for what cannot be given, or that fails to prove itself: to
// try again is of no use.
var ErrAuthMethod = errors.New("log in: the server's authentication request cannot be met")

// errNoPassword is a method that needs the password where it is not known; a ClientKey is of use
// for scram-sha-256 alone.
var errNoPassword = fmt.Errorf("%w: it asks for a password that is not known", ErrAuthMethod)

// ErrNoCredentials is errNoPassword of a login without any credentials: for a client that has
// given none away, a server that trusts or asks for a certificate was hoped for.
var ErrNoCredentials = fmt.Errorf("%w, nor is anything else", errNoPassword)

// Login logs in as a client on a fresh connection. The caller owns conn and sets its deadline. A
// server's ErrorResponse is returned as *Error.
func Login(conn net.Conn, r *Reader, params []Param, cred Credentials) (ServerInfo, error) {
	return LoginWith(conn, r, params, cred, LoginOptions{Protocol: Protocol3})
}

// LoginWith is Login with options.
func LoginWith(conn net.Conn, r *Reader, params []Param, cred Credentials, opts LoginOptions,
) (ServerInfo, error) {
	var info ServerInfo
	if _, err := conn.Write(AppendStartup(nil, opts.Protocol, params)); err != nil {
		return info, fmt.Errorf("log in: %w", err)
	}
	user := ""
	for _, p := range params {
		if p.Name == "user" {
			user = p.Value
		}
	}
	a := authenticator{conn: conn, user: user, cred: cred, opts: opts}
	most, mostBytes := cmp.Or(opts.ParamsMax, paramsMax), cmp.Or(opts.ParamsBytesMax, paramsBytesMax)
	told := 0
	for {
		typ, b, err := r.ReadMessage()
		if err != nil {
			return info, fmt.Errorf("log in: %w", err)
		}
		switch typ {
		case SrvAuth:
			err = a.answer(b)
		case SrvError:
			e, perr := ParseError(b)
			if perr != nil {
				return info, perr
			}
			return info, e
		case SrvNotice:
		case SrvNegotiateProtocol:
			err = checkNegotiated(b, opts.Protocol)
		case SrvParameterStatus:
			var p Param
			p.Name, p.Value, err = ParseParameterStatus(b)
			info.Params = append(info.Params, p)
			told += len(b)
			switch {
			case len(info.Params) > most:
				return info, ErrTooManyParams
			case told > mostBytes:
				return info, ErrParamsTooLarge
			}
		case SrvBackendKeyData:
			info.PID, info.Key, err = ParseBackendKeyData(b)
		case SrvReadyForQuery:
			if !a.ok {
				return info, protocolError("server was ready before it had authenticated")
			}
			info.TxStatus, err = ParseReadyForQuery(b)
			return info, err
		default:
			return info, protocolError("unexpected message %q during login", typ)
		}
		if err != nil {
			return info, err
		}
	}
}

// checkNegotiated takes an older minor version than was asked for, and nothing else: no options
// were asked for.
func checkNegotiated(b []byte, asked uint32) error {
	version, opts, err := ParseNegotiateProtocol(b)
	if err != nil {
		return err
	}
	if version>>16 != 3 || version > asked || len(opts) > 0 {
		return protocolError("server negotiates what was not asked for")
	}
	return nil
}

// authenticator answers the server's authentication requests.
type authenticator struct {
	conn  net.Conn
	user  string
	cred  Credentials
	opts  LoginOptions
	scram *ScramClient
	sent  bool // a proof was sent; AuthenticationOk may come only after its check
	ok    bool
}

func (a *authenticator) answer(b []byte) error {
	r := body{b: b}
	kind := r.u32()
	switch {
	case r.bad:
		return protocolError("malformed authentication request")
	case a.ok:
		// An exchange that begins here would count as over whatever became of it.
		return protocolError("server asks for authentication after it had authenticated")
	}
	switch kind {
	case authOK:
		if a.scram != nil && a.sent {
			return fmt.Errorf("%w: it skipped its part of the proof", ErrAuthMethod)
		}
		a.ok = true
		return nil
	case authCleartext:
		if a.cred.Password == "" {
			return a.noPassword()
		}
		return a.send(cstring(nil, a.cred.Password))
	case authMD5:
		salt := r.bytes(4)
		if salt == nil {
			return protocolError("malformed authentication request")
		}
		switch {
		case a.cred.Password != "":
			return a.send(cstring(nil, MD5Response(MD5Secret(a.user, a.cred.Password), salt)))
		case a.cred.MD5 != "":
			return a.send(cstring(nil, MD5Response(a.cred.MD5, salt)))
		}
		return a.noPassword()
	case authSASL:
		return a.start(r.b)
	case authSASLContinue:
		if a.scram == nil {
			return protocolError("unexpected authentication request")
		}
		final, err := a.scram.Continue(r.b) // refuses to be asked twice
		if err != nil {
			return fmt.Errorf("%w: %w", ErrAuthMethod, err)
		}
		return a.send(final)
	case authSASLFinal:
		if a.scram == nil {
			return protocolError("unexpected authentication request")
		}
		a.sent = false
		if err := a.scram.Finish(r.b); err != nil {
			return fmt.Errorf("%w: %w", ErrAuthMethod, err)
		}
		return nil
	}
	return fmt.Errorf("%w: method %d is not supported", ErrAuthMethod, kind)
}

func (a *authenticator) noPassword() error {
	if a.cred.ClientKey == nil && a.cred.MD5 == "" {
		return ErrNoCredentials
	}
	return errNoPassword
}

// start begins SCRAM if the server offers it.
func (a *authenticator) start(mechs []byte) error {
	if a.cred.Password == "" && a.cred.ClientKey == nil {
		return a.noPassword()
	}
	mech, gs2, data := a.choose(mechs)
	if mech == "" {
		return fmt.Errorf("%w: it does not offer SCRAM-SHA-256", ErrAuthMethod)
	}
	c, first, err := newScramClient(a.cred, gs2, data)
	if err != nil {
		return err
	}
	a.scram, a.sent = c, true
	out := cstring(nil, mech)
	out = binary.BigEndian.AppendUint32(out, uint32(len(first)))
	return a.send(append(out, first...))
}

// choose picks the strongest mechanism on offer. A server without the one with channel binding is
// told that we could have: if somebody in between took it out of the offer, that server refuses.
func (a *authenticator) choose(mechs []byte) (mech, gs2 string, data []byte) {
	plain := false
	for m := range bytes.SplitSeq(mechs, []byte{0}) {
		if string(m) == scramPlus && a.opts.Binding != nil {
			return scramPlus, "p=tls-server-end-point,,", a.opts.Binding
		}
		plain = plain || string(m) == scramPlain
	}
	switch {
	case !plain:
		return "", "", nil
	case a.opts.Binding != nil:
		return scramPlain, "y,,", nil
	}
	return scramPlain, "n,,", nil
}

func (a *authenticator) send(body []byte) error {
	if _, err := a.conn.Write(AppendPassword(nil, body)); err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	return nil
}

// MD5Secret is what a server stores for the method md5.
func MD5Secret(user, password string) string {
	sum := md5.Sum([]byte(password + user))
	return "md5" + hex.EncodeToString(sum[:])
}

// CheckMD5Secret tells whether a stored secret of the method md5 is that of the password.
func CheckMD5Secret(secret, user string, password []byte) bool {
	text := append(append(make([]byte, 0, len(password)+len(user)), password...), user...)
	defer clear(text)
	sum := md5.Sum(text)
	want := "md5" + hex.EncodeToString(sum[:])
	return subtle.ConstantTimeCompare([]byte(want), []byte(secret)) == 1
}

// MD5Response is the answer to AuthenticationMD5Password by who has the stored secret
// (protocol-flow, Start-up).
func MD5Response(secret string, salt []byte) string {
	sum := md5.Sum(append([]byte(strings.TrimPrefix(secret, "md5")), salt...))
	return "md5" + hex.EncodeToString(sum[:])
}

// IsMD5Secret tells whether a stored secret is one of the method md5.
func IsMD5Secret(s string) bool {
	digits, ok := strings.CutPrefix(s, "md5")
	if !ok || len(digits) != 2*md5.Size {
		return false
	}
	_, err := hex.DecodeString(digits)
	return err == nil
}
