package pgwire

import (
	"bytes"
	"crypto/md5" //nolint:gosec // the protocol's own
	"encoding/hex"
	"errors"
	"fmt"
	"net"
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

// Credentials prove who logs in: a password, or the keys that a client's own proof gave away.
type Credentials struct {
	Password  string
	ClientKey []byte
	ServerKey []byte
}

// ServerInfo is what a server tells at login.
type ServerInfo struct {
	PID      uint32
	Key      []byte
	Params   []Param
	TxStatus byte
}

// serverParamsMax bounds what a server may tell at login; PostgreSQL tells about 15.
const serverParamsMax = 1000

// ErrAuthMethod is a server that asks for what cannot be given, or that fails to prove itself: to
// try again is of no use.
var ErrAuthMethod = errors.New("log in: the server's authentication request cannot be met")

// errNoPassword is a method that needs the password where it is not known; a ClientKey is of use
// for scram-sha-256 alone.
var errNoPassword = fmt.Errorf("%w: it asks for a password that is not known", ErrAuthMethod)

// Login logs in as a client on a fresh connection. The caller owns conn and sets its deadline. A
// server's ErrorResponse is returned as *Error.
func Login(conn net.Conn, r *Reader, params []Param, cred Credentials) (ServerInfo, error) {
	var info ServerInfo
	if _, err := conn.Write(AppendStartup(nil, Protocol3, params)); err != nil {
		return info, fmt.Errorf("log in: %w", err)
	}
	user := ""
	for _, p := range params {
		if p.Name == "user" {
			user = p.Value
		}
	}
	a := authenticator{conn: conn, user: user, cred: cred}
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
		case SrvNotice, SrvNegotiateProtocol:
		case SrvParameterStatus:
			var p Param
			p.Name, p.Value, err = ParseParameterStatus(b)
			info.Params = append(info.Params, p)
			if len(info.Params) > serverParamsMax {
				return info, protocolError("too many parameters during login")
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

// authenticator answers the server's authentication requests.
type authenticator struct {
	conn  net.Conn
	user  string
	cred  Credentials
	scram *ScramClient
	sent  bool // a proof was sent; AuthenticationOk may come only after its check
	ok    bool
}

func (a *authenticator) answer(b []byte) error {
	r := body{b: b}
	kind := r.u32()
	if r.bad {
		return protocolError("malformed authentication request")
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
			return errNoPassword
		}
		return a.send(cstring(nil, a.cred.Password))
	case authMD5:
		if a.cred.Password == "" {
			return errNoPassword
		}
		salt := r.bytes(4)
		if salt == nil {
			return protocolError("malformed authentication request")
		}
		return a.send(cstring(nil, md5Response(a.user, a.cred.Password, salt)))
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

// start begins SCRAM if the server offers it.
func (a *authenticator) start(mechs []byte) error {
	if a.cred.Password == "" && a.cred.ClientKey == nil {
		return errNoPassword
	}
	for m := range bytes.SplitSeq(mechs, []byte{0}) {
		if string(m) != "SCRAM-SHA-256" {
			continue
		}
		c, first, err := NewScramClient(a.cred)
		if err != nil {
			return err
		}
		a.scram, a.sent = c, true
		out := cstring(nil, "SCRAM-SHA-256")
		n := uint32(len(first))
		out = append(out, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
		return a.send(append(out, first...))
	}
	return fmt.Errorf("%w: it does not offer SCRAM-SHA-256", ErrAuthMethod)
}

func (a *authenticator) send(body []byte) error {
	if _, err := a.conn.Write(AppendPassword(nil, body)); err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	return nil
}

// md5Response is "md5" and md5(md5(password user) salt) (protocol-flow, Start-up).
func md5Response(user, password string, salt []byte) string {
	inner := md5.Sum([]byte(password + user))
	outer := md5.Sum(append([]byte(hex.EncodeToString(inner[:])), salt...))
	return "md5" + hex.EncodeToString(outer[:])
}
