// Package proxy is the data path: it keeps clients' PostgreSQL sessions alive while the primary
// changes.
//
// Promise. A client's connection outlives its backend. When the backend is lost, the session is
// held, put on the primary of the next epoch with its state restored, and told the truth about
// what was in flight:
//
//	idle, outside a transaction          kept, nothing to notice but time
//	statement not sent yet               sent to the new primary
//	settings, role, prepared, LISTEN     restored
//	open transaction                     run again, if every answer is what it was; else 40001
//	                                     in a failed block, and the session stays
//	COMMIT, or a single INSERT, UPDATE,  looked up: committed, or run again, or 08007 if nobody
//	DELETE, MERGE, EXECUTE outside one   can know
//	statement that only reads            run again; it goes on at the row where it was
//	CALL, DO, DDL, COPY FROM, several    08007 if they may have been executed
//	statements in one string, in flight
//	session advisory lock                taken again before anything else runs, as often as it
//	                                     was held; told if it cannot
//	temporary table                      carried in a planned change, if that can be done
//	                                     exactly; else told: the session ends with 57P01
//	WITH HOLD cursor                     told
//
// Bounds. Time held, sessions held, sessions, journal and prepared statements per session: see
// Config. Non-goals here: deciding who is primary (package election), parsing SQL beyond what a
// loss makes necessary, caching results.
//
// A session that only relays is a value on an event loop (loop_linux.go), without a goroutine and,
// while nothing moves, without a buffer. What is rare and may wait (a login, a shut gate, a COMMIT
// to be guarded, a lost backend) is done by a goroutine (session.go), which gives the session back.
// Both feed a flow (txn.go), a pure record of what was asked and answered that knows nothing of
// sockets; what is done after a loss follows from it by pure functions (replay.go, redo.go). The
// client's messages since the last safe point are kept (unit.go), to be run again.
//
//	              client bytes                      server bytes
//	clientSide: inbox -> inspect -> flow.push -> backend  |
//	(forward.go)                      |                   v
//	                                flow <- serverMessage <- inbox :serverSide -> client
//	                                                           (delivery.go)
//
//	              +----------- attached (relay) <---------+
//	  lost / cut  |                                       | settled, attach
//	              v                                       |
//	         takeLoss -> hold -> open (connect, check, restore) -> settle -> runAgain
//	                      |  budget spent: 40001 or 08007, session kept, hold on
//	                      +- client gone, FATAL of its own: session ends
package proxy
