package pgwire

import (
	"bytes"
	"encoding/binary"
	"math"
)

// HeaderLen is the length of a message's type and length fields.
const HeaderLen = 5

// Header reads type and body length at the start of b, which has at least HeaderLen bytes.
func Header(b []byte) (typ byte, bodyLen int, err error) {
	n := binary.BigEndian.Uint32(b[1:])
	if n < 4 || n > math.MaxInt32 {
		return b[0], 0, protocolError("invalid message length %d", int32(n))
	}
	return b[0], int(n) - 4, nil
}

// body is a bounds-checked view of what is left of a message.
type body struct {
	b   []byte
	bad bool
}

func (r *body) bytes(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *body) u16() int {
	if p := r.bytes(2); p != nil {
		return int(binary.BigEndian.Uint16(p))
	}
	return 0
}

func (r *body) u32() uint32 {
	if p := r.bytes(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *body) cstring() []byte {
	i := bytes.IndexByte(r.b, 0)
	if r.bad || i < 0 {
		r.bad = true
		return nil
	}
	out := r.b[:i]
	r.b = r.b[i+1:]
	return out
}

func (r *body) err(what string) error {
	if r.bad {
		return protocolError("malformed %s message", what)
	}
	return nil
}

// ParseQuery reads a Query; sql aliases b.
func ParseQuery(b []byte) (sql []byte, err error) {
	r := body{b: b}
	sql = r.cstring()
	return sql, r.err("Query")
}

// ParseParse reads a Parse; sql aliases b.
func ParseParse(b []byte) (name string, sql []byte, oids []uint32, err error) {
	r := body{b: b}
	n := r.cstring()
	sql = r.cstring()
	count := r.u16()
	if count*4 > len(r.b) {
		r.bad = true
	}
	if !r.bad && count > 0 {
		oids = make([]uint32, count)
		for i := range oids {
			oids[i] = r.u32()
		}
	}
	return string(n), sql, oids, r.err("Parse")
}

// ParseBindNames reads the names at the start of a Bind, of which the rest may be missing.
func ParseBindNames(b []byte) (portal, stmt []byte, err error) {
	r := body{b: b}
	portal = r.cstring()
	stmt = r.cstring()
	return portal, stmt, r.err("Bind")
}

// ParseExecute reads an Execute.
func ParseExecute(b []byte) (portal []byte, maxRows uint32, err error) {
	r := body{b: b}
	portal = r.cstring()
	maxRows = r.u32()
	return portal, maxRows, r.err("Execute")
}

// ParseTarget reads a Describe or Close: 'S' and a statement's name, or 'P' and a portal's. The
// framing does not depend on the kind: the server answers another one with an error, and goes on.
func ParseTarget(b []byte) (kind byte, name []byte, err error) {
	r := body{b: b}
	k := r.bytes(1)
	name = r.cstring()
	if r.bad {
		return 0, nil, protocolError("malformed Describe or Close message")
	}
	return k[0], name, nil
}

// ParseParameterStatus reads a ParameterStatus.
func ParseParameterStatus(b []byte) (name, value string, err error) {
	r := body{b: b}
	n, v := r.cstring(), r.cstring()
	return string(n), string(v), r.err("ParameterStatus")
}

// ParseBackendKeyData reads a BackendKeyData; the key is copied. It has 4 bytes in protocol 3.0
// and up to 256 in 3.2.
func ParseBackendKeyData(b []byte) (pid uint32, key []byte, err error) {
	r := body{b: b}
	pid = r.u32()
	if len(r.b) < 4 || len(r.b) > 256 {
		r.bad = true
	}
	return pid, bytes.Clone(r.b), r.err("BackendKeyData")
}

// ParseCommandTag reads a CommandComplete; the tag aliases b.
func ParseCommandTag(b []byte) ([]byte, error) {
	r := body{b: b}
	tag := r.cstring()
	return tag, r.err("CommandComplete")
}

// ParseReadyForQuery reads a ReadyForQuery.
func ParseReadyForQuery(b []byte) (byte, error) {
	if len(b) != 1 || b[0] != TxIdle && b[0] != TxInBlock && b[0] != TxFailed {
		return 0, protocolError("malformed ReadyForQuery message")
	}
	return b[0], nil
}

// ParseError reads an ErrorResponse or NoticeResponse.
func ParseError(b []byte) (*Error, error) {
	e := &Error{}
	r := body{b: b}
	for {
		code := r.bytes(1)
		if r.bad {
			return nil, protocolError("malformed ErrorResponse message")
		}
		if code[0] == 0 {
			return e, nil
		}
		e.set(code[0], string(r.cstring()))
	}
}

// ErrorCode is the SQLSTATE of an ErrorResponse or NoticeResponse, nil if it has none. It aliases b
// and reads no further than needed, so that b may be the first part of a large message.
func ErrorCode(b []byte) []byte {
	r := body{b: b}
	for {
		code := r.bytes(1)
		if r.bad || code[0] == 0 {
			return nil
		}
		value := r.cstring()
		if r.bad {
			return nil
		}
		if code[0] == 'C' {
			return value
		}
	}
}

// ParseDataRow reads a DataRow; the columns alias b, NULL is nil.
func ParseDataRow(b []byte) ([][]byte, error) {
	r := body{b: b}
	n := r.u16()
	if n*4 > len(r.b) {
		r.bad = true
	}
	if r.bad {
		return nil, protocolError("malformed DataRow message")
	}
	cols := make([][]byte, n)
	for i := range cols {
		size := r.u32()
		if size == math.MaxUint32 {
			continue
		}
		cols[i] = r.bytes(int(int32(size)))
	}
	return cols, r.err("DataRow")
}

// ParseFunctionCallResponse reads a FunctionCallResponse; the value aliases b, NULL is nil.
func ParseFunctionCallResponse(b []byte) (value []byte, err error) {
	r := body{b: b}
	if size := r.u32(); size != math.MaxUint32 {
		value = r.bytes(int(int32(size)))
	}
	r.bad = r.bad || len(r.b) > 0
	return value, r.err("FunctionCallResponse")
}

// ParseNegotiateProtocol reads a NegotiateProtocolVersion, whose version is as in Protocol3.
func ParseNegotiateProtocol(b []byte) (version uint32, opts []string, err error) {
	r := body{b: b}
	version = r.u32()
	n := int(r.u32())
	if n < 0 || n > len(r.b) {
		r.bad = true
	}
	for i := 0; i < n && !r.bad; i++ {
		opts = append(opts, string(r.cstring()))
	}
	return version, opts, r.err("NegotiateProtocolVersion")
}

// ParseSASLInitial reads a SASLInitialResponse; data aliases b and is nil if there is none.
func ParseSASLInitial(b []byte) (mech string, data []byte, err error) {
	r := body{b: b}
	m := r.cstring()
	n := r.u32()
	if n != math.MaxUint32 {
		data = r.bytes(int(int32(n)))
	}
	if len(r.b) > 0 {
		r.bad = true
	}
	return string(m), data, r.err("SASLInitialResponse")
}

// ParsePassword reads a PasswordMessage, which must not be empty; the password aliases b.
func ParsePassword(b []byte) ([]byte, error) {
	r := body{b: b}
	password := r.cstring()
	if r.bad || len(r.b) > 0 {
		return nil, protocolError("invalid password packet size")
	}
	if len(password) == 0 {
		return nil, NewError(CodeInvalidPassword, "empty password returned by client")
	}
	return password, nil
}
