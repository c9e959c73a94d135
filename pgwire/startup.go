package pgwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// StartupKind is what the first packet of a connection asks for.
type StartupKind uint8

// The kinds of first packets.
const (
	StartupNormal StartupKind = iota
	StartupSSL
	StartupGSS
	StartupCancel
)

// Startup is the first packet of a connection.
type Startup struct {
	Kind StartupKind
	// Protocol is the version that is spoken from here on, at most Protocol32.
	Protocol  uint32
	Params    []Param // without _pq_. options
	CancelPID uint32
	CancelKey []byte
	// Negotiate is the NegotiateProtocolVersion that has to be sent before authentication; nil
	// if the client asked for nothing that is newer than 3.2 or not known.
	Negotiate []byte
}

// Limits of a StartupMessage; the first is PostgreSQL's MAX_STARTUP_PACKET_LENGTH.
const (
	startupBytesMax  = 10000
	startupParamsMax = 200
)

// ErrStartupLength is a first packet with a length that none can have: perhaps not PostgreSQL's
// protocol at all. Like PostgreSQL (ProcessStartupPacket), nothing is answered to it.
var ErrStartupLength = errors.New("invalid length of startup packet")

// ReadStartup reads the first packet, which has no type byte.
func ReadStartup(r *Reader) (Startup, error) {
	var head [8]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return Startup{}, fmt.Errorf("read startup packet: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	code := binary.BigEndian.Uint32(head[4:])
	if n < 8 || n > startupBytesMax {
		return Startup{}, ErrStartupLength
	}
	if err := r.fill(int(n) - 8); err != nil {
		return Startup{}, err
	}
	switch code {
	case codeSSL, codeGSS:
		if n != 8 {
			return Startup{}, protocolError("invalid length of encryption request")
		}
		kind := StartupSSL
		if code == codeGSS {
			kind = StartupGSS
		}
		return Startup{Kind: kind}, nil
	case codeCancel:
		if len(r.body) < 8 || len(r.body) > 4+256 {
			return Startup{}, ErrStartupLength
		}
		return Startup{
			Kind: StartupCancel, CancelPID: binary.BigEndian.Uint32(r.body),
			CancelKey: bytes.Clone(r.body[4:]),
		}, nil
	}
	return parseStartup(code, r.body)
}

// ParseStartup reads a StartupMessage that is there as a whole; one of another kind is an error.
func ParseStartup(packet []byte) (Startup, error) {
	if len(packet) < 8 || uint64(binary.BigEndian.Uint32(packet)) != uint64(len(packet)) ||
		len(packet) > startupBytesMax {
		return Startup{}, ErrStartupLength
	}
	return parseStartup(binary.BigEndian.Uint32(packet[4:]), packet[8:])
}

// parseStartup reads the parameters of a StartupMessage.
func parseStartup(code uint32, b []byte) (Startup, error) {
	st := Startup{Kind: StartupNormal, Protocol: code}
	if code>>16 != 3 {
		e := NewError(CodeFeatureNotSupported, fmt.Sprintf(
			"unsupported frontend protocol %d.%d: server supports 3.0 to 3.2", code>>16, code&0xffff))
		return st, e
	}
	r := body{b: b}
	var unknown []string
	for {
		name := r.cstring()
		if r.bad {
			return st, protocolError("invalid startup packet layout: expected terminator")
		}
		if len(name) == 0 {
			break
		}
		value := r.cstring()
		if r.bad || len(st.Params) >= startupParamsMax {
			return st, protocolError("invalid startup packet layout")
		}
		if strings.HasPrefix(string(name), "_pq_.") {
			unknown = append(unknown, string(name))
			continue
		}
		st.Params = append(st.Params, Param{Name: string(name), Value: string(value)})
	}
	if len(r.b) > 0 {
		return st, protocolError("invalid startup packet layout: bytes behind the terminator")
	}
	if code > Protocol32 || len(unknown) > 0 {
		st.Protocol = min(code, Protocol32)
		st.Negotiate = AppendNegotiateProtocol(nil, st.Protocol, unknown)
	}
	if user, ok := st.Get("user"); !ok || user == "" {
		return st, NewError(CodeInvalidAuth,
			"no PostgreSQL user name specified in startup packet")
	}
	return st, nil
}

// Get returns a parameter; like PostgreSQL it takes the last one of that name.
func (s *Startup) Get(name string) (string, bool) {
	for i := len(s.Params) - 1; i >= 0; i-- {
		if s.Params[i].Name == name {
			return s.Params[i].Value, true
		}
	}
	return "", false
}
