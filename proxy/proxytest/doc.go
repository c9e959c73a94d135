// Package proxytest has what tests of the proxy need: a topology that a test sets, a PostgreSQL
// server that a test may kill, and a line between the two that can be cut at a message. It is
// imported by tests only.
package proxytest
