// Package oracletest compares pgwire with PostgreSQL's own parser (version 17, compiled to
// WebAssembly: pgquery) on a corpus, on generated statements and by fuzzing. It holds tests only,
// so that nothing else waits for the parser to be compiled, which takes seconds.
package oracletest
