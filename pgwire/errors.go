package pgwire

import "fmt"

// SQLSTATE codes (PostgreSQL manual, appendix A).
const (
	CodeSerializationFailure = "40001"
	CodeOutcomeUnknown       = "08007"
	CodeConnectionFailure    = "08006"
	CodeProtocolViolation    = "08P01"
	CodeAdminShutdown        = "57P01"
	CodeCrashShutdown        = "57P02"
	CodeCannotConnectNow     = "57P03"
	CodeQueryCanceled        = "57014"
	CodeTooManyConnections   = "53300"
	CodeInvalidPassword      = "28P01"
	CodeInvalidAuth          = "28000"
	CodeFeatureNotSupported  = "0A000"
	CodeProgramLimit         = "54000"

	CodeInvalidParameterValue = "22023"
)

// Error is an ErrorResponse or a NoticeResponse (protocol-error-fields). Message is one
// lower-case phrase; Detail and Hint are sentences.
type Error struct {
	Severity   string
	Code       string
	Message    string
	Detail     string
	Hint       string
	Position   string
	Internal   string // internal position
	Query      string // internal query
	Where      string
	Schema     string
	Table      string
	Column     string
	DataType   string
	Constraint string
	File       string
	Line       string
	Routine    string
}

// NewError makes an error of severity ERROR.
func NewError(code, message string) *Error {
	return &Error{Severity: "ERROR", Code: code, Message: message}
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s (SQLSTATE %s)", e.Severity, e.Message, e.Code)
}

type errorField struct {
	code  byte
	value string
}

// fields lists the fields in the order in which PostgreSQL sends them. 'V' is the severity that
// is never translated.
func (e *Error) fields() [18]errorField {
	return [18]errorField{
		{'S', e.Severity}, {'V', e.Severity}, {'C', e.Code}, {'M', e.Message},
		{'D', e.Detail}, {'H', e.Hint}, {'P', e.Position}, {'p', e.Internal},
		{'q', e.Query}, {'W', e.Where}, {'s', e.Schema}, {'t', e.Table}, {'c', e.Column},
		{'d', e.DataType}, {'n', e.Constraint}, {'F', e.File}, {'L', e.Line},
		{'R', e.Routine},
	}
}

// set stores a field as it was received.
func (e *Error) set(code byte, value string) {
	switch code {
	case 'S':
		if e.Severity == "" {
			e.Severity = value
		}
	case 'V':
		e.Severity = value
	case 'C':
		e.Code = value
	case 'M':
		e.Message = value
	case 'D':
		e.Detail = value
	case 'H':
		e.Hint = value
	case 'P':
		e.Position = value
	case 'p':
		e.Internal = value
	case 'q':
		e.Query = value
	case 'W':
		e.Where = value
	case 's':
		e.Schema = value
	case 't':
		e.Table = value
	case 'c':
		e.Column = value
	case 'd':
		e.DataType = value
	case 'n':
		e.Constraint = value
	case 'F':
		e.File = value
	case 'L':
		e.Line = value
	case 'R':
		e.Routine = value
	}
}

// protocolError is a violation of the protocol by the peer.
func protocolError(format string, args ...any) *Error {
	return NewError(CodeProtocolViolation, fmt.Sprintf(format, args...))
}
