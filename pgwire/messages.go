package pgwire

// Types of messages from the client (protocol-message-formats).
const (
	CliQuery        byte = 'Q'
	CliParse        byte = 'P'
	CliBind         byte = 'B'
	CliDescribe     byte = 'D'
	CliExecute      byte = 'E'
	CliClose        byte = 'C'
	CliSync         byte = 'S'
	CliFlush        byte = 'H'
	CliFunctionCall byte = 'F'
	CliTerminate    byte = 'X'
	CliPassword     byte = 'p'
	CliCopyData     byte = 'd'
	CliCopyDone     byte = 'c'
	CliCopyFail     byte = 'f'
)

// Types of messages from the server (protocol-message-formats).
const (
	SrvAuth                 byte = 'R'
	SrvParameterStatus      byte = 'S'
	SrvBackendKeyData       byte = 'K'
	SrvReadyForQuery        byte = 'Z'
	SrvRowDescription       byte = 'T'
	SrvDataRow              byte = 'D'
	SrvCommandComplete      byte = 'C'
	SrvEmptyQuery           byte = 'I'
	SrvError                byte = 'E'
	SrvNotice               byte = 'N'
	SrvNotification         byte = 'A'
	SrvParseComplete        byte = '1'
	SrvBindComplete         byte = '2'
	SrvCloseComplete        byte = '3'
	SrvNoData               byte = 'n'
	SrvPortalSuspended      byte = 's'
	SrvParameterDescription byte = 't'
	SrvCopyInResponse       byte = 'G'
	SrvCopyOutResponse      byte = 'H'
	SrvCopyBothResponse     byte = 'W'
	SrvCopyData             byte = 'd'
	SrvCopyDone             byte = 'c'
	SrvFunctionCallResponse byte = 'V'
	SrvNegotiateProtocol    byte = 'v'
)

// Transaction status of ReadyForQuery.
const (
	TxIdle    byte = 'I'
	TxInBlock byte = 'T'
	TxFailed  byte = 'E'
)
