package pgwire

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgproto3/v2"
)

// traceTextMax is how many bytes of a text a trace shows.
const traceTextMax = 120

// TraceClient describes a message of a client in one line, for tests and debugging. It never
// shows a password. A body that cannot be decoded is described by its length.
//
// NOTE: it shows SQL text and parameters; it is not for logs.
func TraceClient(typ byte, b []byte) string {
	if typ == CliPassword {
		return fmt.Sprintf("Password %d bytes", len(b))
	}
	msg, err := DecodeClient(typ, b)
	if err != nil {
		return traceBad(typ, b)
	}
	switch m := msg.(type) {
	case *pgproto3.Query:
		return "Query " + traceText(m.String)
	case *pgproto3.Parse:
		return fmt.Sprintf("Parse %q %s oids=%d", m.Name, traceText(m.Query), m.ParameterOIDs)
	case *pgproto3.Bind:
		return fmt.Sprintf("Bind %q %q %s formats=%d results=%d", m.DestinationPortal,
			m.PreparedStatement, traceValues(m.Parameters), m.ParameterFormatCodes,
			m.ResultFormatCodes)
	case *pgproto3.Describe:
		return fmt.Sprintf("Describe %s %q", traceWord(string(m.ObjectType)), m.Name)
	case *pgproto3.Close:
		return fmt.Sprintf("Close %s %q", traceWord(string(m.ObjectType)), m.Name)
	case *pgproto3.Execute:
		return fmt.Sprintf("Execute %q max=%d", m.Portal, m.MaxRows)
	case *pgproto3.FunctionCall:
		return fmt.Sprintf("FunctionCall %d %s", m.Function, traceValues(m.Arguments))
	case *pgproto3.CopyData:
		return fmt.Sprintf("CopyData %d bytes", len(m.Data))
	case *pgproto3.CopyFail:
		return "CopyFail " + traceText(m.Message)
	}
	return messageName(msg)
}

// TraceServer is TraceClient for the messages of a server. It never shows keys and proofs.
func TraceServer(typ byte, b []byte) string {
	switch typ {
	case SrvBackendKeyData:
		if pid, key, err := ParseBackendKeyData(b); err == nil {
			return fmt.Sprintf("BackendKeyData %d, key of %d bytes", pid, len(key))
		}
		return traceBad(typ, b)
	case SrvNegotiateProtocol:
		version, opts, err := ParseNegotiateProtocol(b)
		if err == nil {
			return fmt.Sprintf("NegotiateProtocolVersion %d.%d %q", version>>16,
				version&0xffff, opts)
		}
		return traceBad(typ, b)
	case SrvError, SrvNotice:
		return traceError(typ, b)
	}
	msg, err := DecodeServer(typ, b)
	if err != nil {
		return traceBad(typ, b)
	}
	switch m := msg.(type) {
	case *pgproto3.AuthenticationSASL:
		return fmt.Sprintf("AuthenticationSASL %q", m.AuthMechanisms)
	case *pgproto3.ParameterStatus:
		return fmt.Sprintf("ParameterStatus %s=%s", traceWord(m.Name), traceText(m.Value))
	case *pgproto3.ReadyForQuery:
		return "ReadyForQuery " + traceWord(string(m.TxStatus))
	case *pgproto3.RowDescription:
		names := make([]string, len(m.Fields))
		for i := range m.Fields {
			names[i] = string(m.Fields[i].Name)
		}
		return fmt.Sprintf("RowDescription %q", names)
	case *pgproto3.DataRow:
		return "DataRow " + traceValues(m.Values)
	case *pgproto3.CommandComplete:
		return "CommandComplete " + traceText(string(m.CommandTag))
	case *pgproto3.NotificationResponse:
		return fmt.Sprintf("NotificationResponse %d %q %s", m.PID, m.Channel,
			traceText(m.Payload))
	case *pgproto3.ParameterDescription:
		return fmt.Sprintf("ParameterDescription %d", m.ParameterOIDs)
	case *pgproto3.CopyData:
		return fmt.Sprintf("CopyData %d bytes", len(m.Data))
	}
	return messageName(msg)
}

func traceError(typ byte, b []byte) string {
	e, err := ParseError(b)
	if err != nil {
		return traceBad(typ, b)
	}
	name := "ErrorResponse"
	if typ == SrvNotice {
		name = "NoticeResponse"
	}
	return fmt.Sprintf("%s %s %s %s", name, traceWord(e.Severity), traceWord(e.Code),
		traceText(e.Message))
}

func traceBad(typ byte, b []byte) string {
	return fmt.Sprintf("malformed message of type %q, %d bytes", typ, len(b))
}

// messageName is the name of the protocol's manual.
func messageName(msg any) string {
	return strings.TrimPrefix(fmt.Sprintf("%T", msg), "*pgproto3.")
}

// traceWord shows a plain word as it is, and anything else in quotes.
func traceWord(s string) string {
	for _, c := range []byte(s) {
		if !isIdent(c) || c >= 0x80 {
			return traceText(s)
		}
	}
	return s
}

func traceText(s string) string {
	if len(s) > traceTextMax {
		return fmt.Sprintf("%q and %d bytes more", s[:traceTextMax], len(s)-traceTextMax)
	}
	return strconv.Quote(s)
}

func traceValues(values [][]byte) string {
	var out strings.Builder
	out.WriteByte('[')
	for i, v := range values {
		if i > 0 {
			out.WriteByte(' ')
		}
		if out.Len() > 8*traceTextMax {
			fmt.Fprintf(&out, "and %d values more", len(values)-i)
			break
		}
		if v == nil {
			out.WriteString("NULL")
			continue
		}
		out.WriteString(traceText(string(v)))
	}
	out.WriteByte(']')
	return out.String()
}
