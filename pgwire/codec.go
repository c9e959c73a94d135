package pgwire

import (
	"fmt"

	"github.com/jackc/pgproto3/v2"
)

// ClientMessage is a decoded message of a client.
type ClientMessage = pgproto3.FrontendMessage

// ServerMessage is a decoded message of a server.
type ServerMessage = pgproto3.BackendMessage

// DecodeClient decodes a message of a client in full, where a look at it is worth more than its
// cost: tests and traces. The relay uses the parsers. The result may alias body. A message of
// type 'p' is decoded as a SASLResponse, since only its place tells what it is.
//
// The layout is checked before pgproto3 sees the body: its decoders panic on lying lengths (I2).
func DecodeClient(typ byte, b []byte) (ClientMessage, error) {
	msg := newClientMessage(typ)
	if msg == nil {
		return nil, protocolError("unknown message type %q of a client", typ)
	}
	r := body{b: b}
	checkClient(typ, &r)
	if r.bad || len(r.b) > 0 {
		return nil, protocolError("malformed message of type %q", typ)
	}
	if err := msg.Decode(b); err != nil {
		return nil, fmt.Errorf("decode message of type %q: %w", typ, err)
	}
	return msg, nil
}

// DecodeServer decodes a message of a server in full, as DecodeClient does. BackendKeyData has a
// key of 4 bytes here; ParseBackendKeyData reads longer ones. NegotiateProtocolVersion is
// unknown here; ParseNegotiateProtocol reads it.
func DecodeServer(typ byte, b []byte) (ServerMessage, error) {
	msg := newServerMessage(typ, b)
	if msg == nil {
		return nil, protocolError("unknown message type %q of a server", typ)
	}
	r := body{b: b}
	checkServer(typ, &r)
	if r.bad || len(r.b) > 0 {
		return nil, protocolError("malformed message of type %q", typ)
	}
	if err := msg.Decode(b); err != nil {
		return nil, fmt.Errorf("decode message of type %q: %w", typ, err)
	}
	return msg, nil
}

func newClientMessage(typ byte) ClientMessage {
	switch typ {
	case CliQuery:
		return &pgproto3.Query{}
	case CliParse:
		return &pgproto3.Parse{}
	case CliBind:
		return &pgproto3.Bind{}
	case CliDescribe:
		return &pgproto3.Describe{}
	case CliExecute:
		return &pgproto3.Execute{}
	case CliClose:
		return &pgproto3.Close{}
	case CliSync:
		return &pgproto3.Sync{}
	case CliFlush:
		return &pgproto3.Flush{}
	case CliFunctionCall:
		return &pgproto3.FunctionCall{}
	case CliTerminate:
		return &pgproto3.Terminate{}
	case CliPassword:
		return &pgproto3.SASLResponse{}
	case CliCopyData:
		return &pgproto3.CopyData{}
	case CliCopyDone:
		return &pgproto3.CopyDone{}
	case CliCopyFail:
		return &pgproto3.CopyFail{}
	}
	return nil
}

func newServerMessage(typ byte, b []byte) ServerMessage {
	switch typ {
	case SrvAuth:
		return newAuthMessage(b)
	case SrvParameterStatus:
		return &pgproto3.ParameterStatus{}
	case SrvBackendKeyData:
		return &pgproto3.BackendKeyData{}
	case SrvReadyForQuery:
		return &pgproto3.ReadyForQuery{}
	case SrvRowDescription:
		return &pgproto3.RowDescription{}
	case SrvDataRow:
		return &pgproto3.DataRow{}
	case SrvCommandComplete:
		return &pgproto3.CommandComplete{}
	case SrvEmptyQuery:
		return &pgproto3.EmptyQueryResponse{}
	case SrvError:
		return &pgproto3.ErrorResponse{}
	case SrvNotice:
		return &pgproto3.NoticeResponse{}
	case SrvNotification:
		return &pgproto3.NotificationResponse{}
	case SrvParseComplete:
		return &pgproto3.ParseComplete{}
	case SrvBindComplete:
		return &pgproto3.BindComplete{}
	case SrvCloseComplete:
		return &pgproto3.CloseComplete{}
	case SrvNoData:
		return &pgproto3.NoData{}
	case SrvPortalSuspended:
		return &pgproto3.PortalSuspended{}
	case SrvParameterDescription:
		return &pgproto3.ParameterDescription{}
	case SrvCopyInResponse:
		return &pgproto3.CopyInResponse{}
	case SrvCopyOutResponse:
		return &pgproto3.CopyOutResponse{}
	case SrvCopyBothResponse:
		return &pgproto3.CopyBothResponse{}
	case SrvCopyData:
		return &pgproto3.CopyData{}
	case SrvCopyDone:
		return &pgproto3.CopyDone{}
	case SrvFunctionCallResponse:
		return &pgproto3.FunctionCallResponse{}
	}
	return nil
}

func newAuthMessage(b []byte) ServerMessage {
	r := body{b: b}
	switch r.u32() {
	case authOK:
		return &pgproto3.AuthenticationOk{}
	case authCleartext:
		return &pgproto3.AuthenticationCleartextPassword{}
	case authMD5:
		return &pgproto3.AuthenticationMD5Password{}
	case authSASL:
		return &pgproto3.AuthenticationSASL{}
	case authSASLContinue:
		return &pgproto3.AuthenticationSASLContinue{}
	case authSASLFinal:
		return &pgproto3.AuthenticationSASLFinal{}
	}
	return nil
}

// checkClient walks through the layout of a message; what is left in r does not belong to it.
func checkClient(typ byte, r *body) {
	switch typ {
	case CliQuery, CliCopyFail:
		r.cstring()
	case CliParse:
		r.cstring()
		r.cstring()
		r.bytes(4 * r.u16())
	case CliBind:
		r.cstring()
		r.cstring()
		r.bytes(2 * r.u16())
		r.values(r.u16())
		r.bytes(2 * r.u16())
	case CliDescribe, CliClose:
		r.bytes(1)
		r.cstring()
	case CliExecute:
		r.cstring()
		r.u32()
	case CliFunctionCall:
		r.u32()
		r.bytes(2 * r.u16())
		r.arguments(r.u16())
		r.u16()
	case CliPassword, CliCopyData:
		r.rest()
	}
}

// checkServer is checkClient for the messages of a server.
func checkServer(typ byte, r *body) {
	switch typ {
	case SrvAuth:
		checkAuth(r)
	case SrvParameterStatus:
		r.cstring()
		r.cstring()
	case SrvBackendKeyData:
		r.bytes(8)
	case SrvReadyForQuery:
		r.bytes(1)
	case SrvRowDescription:
		for n := r.u16(); n > 0 && !r.bad; n-- {
			r.cstring()
			r.bytes(18)
		}
	case SrvDataRow:
		r.values(r.u16())
	case SrvCommandComplete:
		r.cstring()
	case SrvError, SrvNotice:
		for code := r.bytes(1); !r.bad && code[0] != 0; code = r.bytes(1) {
			r.cstring()
		}
	case SrvNotification:
		r.u32()
		r.cstring()
		r.cstring()
	case SrvParameterDescription:
		r.bytes(4 * r.u16())
	case SrvCopyInResponse, SrvCopyOutResponse, SrvCopyBothResponse:
		r.bytes(1)
		r.bytes(2 * r.u16())
	case SrvCopyData:
		r.rest()
	case SrvFunctionCallResponse:
		r.values(1)
	}
}

func checkAuth(r *body) {
	switch r.u32() {
	case authMD5:
		r.bytes(4)
	case authSASL:
		// pgproto3 never comes back from an empty name in front of another one.
		for m := r.cstring(); !r.bad && len(m) > 0; {
			m = r.cstring()
		}
	case authSASLContinue, authSASLFinal:
		r.rest()
	}
}

// rest takes what is left.
func (r *body) rest() { r.bytes(len(r.b)) }

// values passes n values with their lengths, of which -1 is NULL.
func (r *body) values(n int) {
	for ; n > 0 && !r.bad; n-- {
		if size := int(int32(r.u32())); size != -1 {
			r.bytes(size)
		}
	}
}

// arguments is values for a FunctionCall, of which pgproto3 cannot decode a NULL.
func (r *body) arguments(n int) {
	for ; n > 0 && !r.bad; n-- {
		r.bytes(int(int32(r.u32())))
	}
}
