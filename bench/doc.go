// Command bench measures a built holdfast as processes on this machine.
//
// # relay
//
// Method. The targets (the server itself, Holdfast, PgBouncer with session pooling, HAProxy in TCP
// mode) run side by side in front of one server. Clients are connections that one thread drives,
// from bytes made beforehand, so that they take little of the machine away from what is measured.
// A round is a fraction of a second; all targets have one after the other, and again, beginning
// with another one each time. A ratio is taken round by round, so that what slows the machine down
// for a while slows both of its sides; what is told is the median, with the smallest and the
// largest.
//
// CPU is what the kernel has accounted to the target's process, with nanoseconds, the kernel's work
// for its system calls included. It says what a proxy costs on a machine that is not busy, where
// throughput on two cores, shared with clients and server, says little.
//
// The server is a stub that answers without a database, which shows the proxy's own ceiling, or a
// PostgreSQL of a real node (`holdfast serve`). Before the stub Holdfast is package proxy in a
// process of its own (relayhost), with all that a session has but no election behind it; any
// source tree can be built so, and several beside each other. Every mode on the stub has fresh
// processes.
//
// What is not claimed. Loopback has no latency and no loss, and no packets of 1500 bytes.
// Throughput is that of a machine whose cores clients and server use as well.
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
//	parts    detect, fence, promote and reopen: the time from the fault to the next commit, by the
//	         times of the fault, of the new lock and of that commit on the machine's clock.
//	commits  how many there were in each 50 ms around the fault; --chart draws their mean.
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
