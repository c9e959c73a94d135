// Package pgwiretest has a server that follows a script, for tests of programs that speak
// PostgreSQL's wire protocol as a client.
//
// Bound: one connection for each Serve, over net.Pipe. Non-goal: a server that understands what
// it is asked.
package pgwiretest
