// Package election decides who may be primary, and makes it so: the Raft group that holds the
// leader lock, the lease that opens the proxies' gates, the decision and its transitions, and the
// agent of the local PostgreSQL.
//
// Promise. At most one epoch is usable at a time: no proxy relays to the primary of an epoch once
// a newer one may have begun. Nothing is stopped because a lock is slow: leases run in memory,
// off the Raft log, and unless on_lock_loss is stop (DESIGN.md I91) an agent stops a serving
// primary on its own only when it knows of a committed newer lock; else only by order.
//
// Why at most one epoch is usable. A lessee may use epoch e until T_L after it SENT a renewal
// that a majority granted. Each of these voters, when it RECEIVED the renewal, promised to endorse
// no higher epoch for T_P. A new epoch needs the endorsement of a majority. Two majorities share
// a voter, and that voter's promise outlasts the lease:
//
//	lessee   send ------------------- T_L -------------------| gate closed
//	                \                                          .
//	voter            receive ------------------- T_P -----------------| may endorse e+1
//
//	T_P(1-r) >= T_L(1+r) + d
//
// The worst case is a renewal that arrives at once. If it takes longer the promise begins later,
// and the lease, which counts from the start, does not: the margin only grows.
//
// r is how much two hosts' clocks may differ in rate (clockRate), d the time from the end of a
// lease until nothing more can reach a client or the old primary (reachTime). A voter that has
// just started knows nothing of its promises and keeps silent for T_P; what it endorsed is on
// disk before it is answered. A lessee that has closed its gate releases its promises, so that in
// a normal failover nobody waits for T_P.
//
// Assumptions. Clocks are CLOCK_BOOTTIME; only durations travel. A virtual machine whose clock
// stands still while it is frozen breaks the lease (not the recruiting of standbys, which needs
// no clock). What is under way when a lease ends arrives within d: a process that is paused between
// its look at the clock and its write breaks that, and synchronous replication does not rest on it.
// A disk keeps what was synced. No more than a minority of voters loses its disk at once, and while
// one is lost the others are up; a voter without its memory takes no part in leases until the
// others have told it what was begun.
//
// What may fail without any lease being lost: a minority of voters, their disks, the Raft leader,
// and the network for less than T_L minus an interval. All else is a hold.
//
// Bounds. Every RPC, wait and list has a limit; see the constants beside them. Non-goals: what
// is relayed (package proxy), and clients that connect to PostgreSQL past the proxies.
package election
