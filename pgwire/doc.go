// Package pgwire speaks PostgreSQL's wire protocol 3.0 to 3.2 and reads SQL as far as a proxy must:
// bytes and messages, no policy.
//
// Promise. Whatever bytes a peer sends, a function here returns an error and never panics, never
// loops and never takes memory for more than has arrived. An error of the peer is an *Error with
// SQLSTATE 08P01. What is appended by an Append function is what PostgreSQL reads, and what a
// Parse function returns is what PostgreSQL would read from the same bytes.
//
// Bounds. A message's body: the limit given to NewReader. A startup packet: 10000 bytes and 200
// parameters, as in PostgreSQL. A cancel key: 4 to 256 bytes. What a server tells at login: 1000
// parameters. The rows of SimpleQuery: 16 MiB. SCRAM: 10 million iterations.
//
// Non-goals. No pooling, no reconnecting, no retrying, no logging; no understanding of SQL beyond
// the kind of a statement (classify.go): no names of tables, no volatility of functions.
//
//	client                                   server
//	  | SSLRequest, GSSENCRequest  ------->  |  ReadStartup; one byte: 'S' or 'N'
//	  | StartupMessage             ------->  |  ReadStartup
//	  | <-- NegotiateProtocolVersion 'v'     |  only if Startup.Negotiate is set
//	  | <-- AuthenticationSASL 'R'           |
//	  | SASLInitialResponse 'p'    ------->  |  ParseSASLInitial, ScramServer.First
//	  | <-- AuthenticationSASLContinue 'R'   |
//	  | SASLResponse 'p'           ------->  |  ScramServer.Final
//	  | <-- AuthenticationSASLFinal, Ok 'R'  |
//	  | <-- ParameterStatus 'S' ...          |
//	  | <-- BackendKeyData 'K'               |
//	  | <-- ReadyForQuery 'Z'                |  Login returns here
//	  |                                      |
//	  | Query 'Q'                  ------->  |  simple query: rows, CommandComplete, ..., 'Z'
//	  | Parse 'P' Bind 'B' Execute 'E' ...   |  extended query: answers in the same order
//	  | Sync 'S'                   ------->  |  ends the batch: 'Z'
//	  |                                      |
//	  | Terminate 'X'              ------->  |
//
//	CancelRequest goes over a connection of its own, in place of a StartupMessage.
//
// Who owns returned bytes. A []byte that a Parse function returns aliases the body it was given,
// unless its comment says that it is copied; a string is a copy. A body of Reader.ReadMessage is
// valid until the next call. Classify returns places in the text and copies of names. Append
// functions append to dst and return it as append does; they allocate only when dst is too small.
// Their strings must not contain a zero byte, which the protocol cannot carry.
//
// A connection belongs to the caller, who sets its deadlines; Login and SimpleQuery never close
// it. SendCancel dials and closes its own.
//
// TLS itself is the caller's: what depends on it here is the data of the channel binding
// (EndPointBinding, ScramServer.Bind, LoginOptions). Not supported: GSSAPI.
//
// The package imports github.com/jackc/pgproto3/v2 only to decode a message in full for traces
// and tests (codec.go), behind a check of its layout. DESIGN.md has the invariants I1.. and the
// reasons.
package pgwire
