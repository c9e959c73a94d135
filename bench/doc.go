// Command bench measures a built holdfast as processes on this machine.
//
// # failover
//
// Method. `holdfast demo` makes three nodes with PostgreSQL servers, takes commands on its
// standard input and tells on its standard output when a change is over and all members stream
// again. The clients are bench's own: some of them insert rows in a closed loop (one statement
// after the other, half of them in explicit transactions), each through a proxy on a node that is
// not the primary's, as an application's proxy mostly is. A round asks for one change: the kill of
// the postmaster, of the whole node, a switchover, a frozen PostgreSQL, a frozen holdfast.
//
// What is measured of each round:
//
//	gap      the longest time between two acknowledged commits of any client, from the command
//	         until all members are healthy again. It has everything in it: noticing, fencing,
//	         promoting, reopening, restoring the sessions.
//	stall    the longest time that any one statement took in that time.
//	phases   what the lock's history says each phase took.
//
// Both times are taken at the client, where a commit counts once it is acknowledged. Percentiles
// are of the rounds of one kind: the smallest value that so many of them do not exceed.
//
// What is not claimed. All nodes share one machine, one disk and one clock, and the network is
// loopback: a real network adds its round trips, a real disk failure looks different, and other
// work on the machine shows in the figures. The number of rounds says how much a percentile is
// worth: of ten rounds the 99th is simply the longest. Nothing here proves that no commit is lost;
// that is the work of the end-to-end tests and of the demo's ledger. The demo's own interval of
// asking for the state (50 ms) limits when a change counts as over, but no time above depends on
// it.
package main
