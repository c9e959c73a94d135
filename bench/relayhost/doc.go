// Command relayhost runs package proxy alone, with one primary that never changes and a lease that
// never ends, so that a stub can stand where PostgreSQL would: what is measured then is the proxy's
// own ceiling. It is a part of the benchmark and promises nothing to anybody else; no election, no
// agent and no configuration file are in it.
package main
