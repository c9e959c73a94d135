package pgwire

import "encoding/binary"

// Param is a name and a value, of a StartupMessage or a ParameterStatus.
type Param struct {
	Name  string
	Value string
}

// Protocol3 is protocol version 3.0 as a StartupMessage carries it.
const Protocol3 uint32 = 3 << 16

// Protocol32 is version 3.2, whose cancel keys may have up to 256 bytes. It is the newest here.
const Protocol32 uint32 = 3<<16 | 2

// Request codes that stand in place of a protocol version (protocol-message-formats).
const (
	codeSSL    uint32 = 80877103
	codeGSS    uint32 = 80877104
	codeCancel uint32 = 80877102
)

// begin appends a type byte and room for the length, which end fills in.
func begin(dst []byte, typ byte) ([]byte, int) {
	dst = append(dst, typ)
	return append(dst, 0, 0, 0, 0), len(dst)
}

func end(dst []byte, at int) []byte {
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at))
	return dst
}

func cstring(dst []byte, s string) []byte {
	return append(append(dst, s...), 0)
}

// AppendMessage appends a message of that type and body.
func AppendMessage(dst []byte, typ byte, body []byte) []byte {
	dst, at := begin(dst, typ)
	return end(append(dst, body...), at)
}

// appendUntyped appends a message that has a length and no type.
func appendUntyped(dst []byte, fill func([]byte) []byte) []byte {
	at := len(dst)
	return end(fill(append(dst, 0, 0, 0, 0)), at)
}

// AppendStartup appends a StartupMessage with the parameters in their order.
func AppendStartup(dst []byte, proto uint32, params []Param) []byte {
	return appendUntyped(dst, func(b []byte) []byte {
		b = binary.BigEndian.AppendUint32(b, proto)
		for _, p := range params {
			b = cstring(cstring(b, p.Name), p.Value)
		}
		return append(b, 0)
	})
}

// AppendSSLRequest appends an SSLRequest.
func AppendSSLRequest(dst []byte) []byte {
	return appendUntyped(dst, func(b []byte) []byte {
		return binary.BigEndian.AppendUint32(b, codeSSL)
	})
}

// AppendCancelRequest appends a CancelRequest.
func AppendCancelRequest(dst []byte, pid uint32, key []byte) []byte {
	return appendUntyped(dst, func(b []byte) []byte {
		b = binary.BigEndian.AppendUint32(b, codeCancel)
		return append(binary.BigEndian.AppendUint32(b, pid), key...)
	})
}

// AppendQuery appends a Query.
func AppendQuery(dst []byte, sql string) []byte {
	dst, at := begin(dst, CliQuery)
	return end(cstring(dst, sql), at)
}

// AppendParse appends a Parse.
func AppendParse(dst []byte, name, sql string, oids []uint32) []byte {
	dst, at := begin(dst, CliParse)
	dst = cstring(cstring(dst, name), sql)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(oids)))
	for _, o := range oids {
		dst = binary.BigEndian.AppendUint32(dst, o)
	}
	return end(dst, at)
}

// AppendBind appends a Bind with parameters and results in text format.
func AppendBind(dst []byte, portal, stmt string, params ...string) []byte {
	dst, at := begin(dst, CliBind)
	dst = cstring(cstring(dst, portal), stmt)
	dst = append(dst, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(params)))
	for _, p := range params {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(p)))
		dst = append(dst, p...)
	}
	return end(append(dst, 0, 0), at)
}

// AppendDescribe appends a Describe; kind is 'S' for a statement, 'P' for a portal.
func AppendDescribe(dst []byte, kind byte, name string) []byte {
	dst, at := begin(dst, CliDescribe)
	return end(cstring(append(dst, kind), name), at)
}

// AppendExecute appends an Execute; maxRows 0 is no limit.
func AppendExecute(dst []byte, portal string, maxRows uint32) []byte {
	dst, at := begin(dst, CliExecute)
	return end(binary.BigEndian.AppendUint32(cstring(dst, portal), maxRows), at)
}

// AppendClose appends a Close; kind is 'S' for a statement, 'P' for a portal.
func AppendClose(dst []byte, kind byte, name string) []byte {
	dst, at := begin(dst, CliClose)
	return end(cstring(append(dst, kind), name), at)
}

// AppendFunctionCall appends a FunctionCall of a function without arguments; its result is text.
func AppendFunctionCall(dst []byte, oid uint32) []byte {
	dst, at := begin(dst, CliFunctionCall)
	return end(append(binary.BigEndian.AppendUint32(dst, oid), 0, 0, 0, 0, 0, 0), at)
}

// AppendSync appends a Sync.
func AppendSync(dst []byte) []byte { return append(dst, CliSync, 0, 0, 0, 4) }

// AppendFlush appends a Flush.
func AppendFlush(dst []byte) []byte { return append(dst, CliFlush, 0, 0, 0, 4) }

// AppendTerminate appends a Terminate.
func AppendTerminate(dst []byte) []byte { return append(dst, CliTerminate, 0, 0, 0, 4) }

// AppendPassword appends a PasswordMessage, SASLInitialResponse or SASLResponse of that body.
func AppendPassword(dst []byte, body []byte) []byte { return AppendMessage(dst, CliPassword, body) }

// appendAuth appends an authentication request.
func appendAuth(dst []byte, kind uint32, data []byte) []byte {
	dst, at := begin(dst, SrvAuth)
	return end(append(binary.BigEndian.AppendUint32(dst, kind), data...), at)
}

// AppendAuthOK appends AuthenticationOk.
func AppendAuthOK(dst []byte) []byte { return appendAuth(dst, authOK, nil) }

// AppendAuthCleartext appends AuthenticationCleartextPassword.
func AppendAuthCleartext(dst []byte) []byte { return appendAuth(dst, authCleartext, nil) }

// AppendAuthMD5 appends AuthenticationMD5Password.
func AppendAuthMD5(dst []byte, salt [4]byte) []byte { return appendAuth(dst, authMD5, salt[:]) }

// AppendAuthSASL appends AuthenticationSASL with the mechanisms on offer.
func AppendAuthSASL(dst []byte, mechs ...string) []byte {
	var list []byte
	for _, m := range mechs {
		list = cstring(list, m)
	}
	return appendAuth(dst, authSASL, append(list, 0))
}

// AppendAuthSASLContinue appends AuthenticationSASLContinue.
func AppendAuthSASLContinue(dst, data []byte) []byte {
	return appendAuth(dst, authSASLContinue, data)
}

// AppendAuthSASLFinal appends AuthenticationSASLFinal.
func AppendAuthSASLFinal(dst, data []byte) []byte { return appendAuth(dst, authSASLFinal, data) }

// AppendParameterStatus appends a ParameterStatus.
func AppendParameterStatus(dst []byte, name, value string) []byte {
	dst, at := begin(dst, SrvParameterStatus)
	return end(cstring(cstring(dst, name), value), at)
}

// AppendBackendKeyData appends a BackendKeyData.
func AppendBackendKeyData(dst []byte, pid uint32, key []byte) []byte {
	dst, at := begin(dst, SrvBackendKeyData)
	return end(append(binary.BigEndian.AppendUint32(dst, pid), key...), at)
}

// AppendReadyForQuery appends a ReadyForQuery.
func AppendReadyForQuery(dst []byte, status byte) []byte {
	return append(dst, SrvReadyForQuery, 0, 0, 0, 5, status)
}

// AppendCommandComplete appends a CommandComplete.
func AppendCommandComplete(dst []byte, tag string) []byte {
	dst, at := begin(dst, SrvCommandComplete)
	return end(cstring(dst, tag), at)
}

// AppendNegotiateProtocol appends a NegotiateProtocolVersion with the newest version spoken here
// and the options that are not known. The manual calls the field a minor version; PostgreSQL and
// libpq have the whole one in it, as in Protocol3.
func AppendNegotiateProtocol(dst []byte, version uint32, opts []string) []byte {
	dst, at := begin(dst, SrvNegotiateProtocol)
	dst = binary.BigEndian.AppendUint32(dst, version)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(opts)))
	for _, o := range opts {
		dst = cstring(dst, o)
	}
	return end(dst, at)
}

// AppendRowDescription appends a RowDescription of text columns.
func AppendRowDescription(dst []byte, names ...string) []byte {
	dst, at := begin(dst, SrvRowDescription)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(names)))
	for _, n := range names {
		dst = cstring(dst, n)
		dst = append(dst, 0, 0, 0, 0, 0, 0) // no table, no column
		dst = binary.BigEndian.AppendUint32(dst, 25)
		dst = append(dst, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0)
	}
	return end(dst, at)
}

// AppendDataRow appends a DataRow; a nil column is NULL.
func AppendDataRow(dst []byte, cols ...[]byte) []byte {
	dst, at := begin(dst, SrvDataRow)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(cols)))
	for _, c := range cols {
		if c == nil {
			dst = append(dst, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(c)))
		dst = append(dst, c...)
	}
	return end(dst, at)
}

// AppendError appends an ErrorResponse.
func AppendError(dst []byte, e *Error) []byte { return appendFields(dst, SrvError, e) }

// AppendNotice appends a NoticeResponse.
func AppendNotice(dst []byte, e *Error) []byte { return appendFields(dst, SrvNotice, e) }

func appendFields(dst []byte, typ byte, e *Error) []byte {
	dst, at := begin(dst, typ)
	for _, f := range e.fields() {
		if f.value != "" {
			dst = cstring(append(dst, f.code), f.value)
		}
	}
	return end(append(dst, 0), at)
}
