package main_test

import "time"

// unheldGap bounds the time without a commit where clients must not notice anything, in addition to
// what the lab's own writes to the same disk took: two cores do all this now and then so slowly.
const unheldGap = 400 * time.Millisecond

// hangMax bounds the time without a commit where hosts come back or die one after the other.
const hangMax = 40 * time.Second

// labFaults is the failure table. Faults of one profile run on one cluster, one after the other;
// those of a bounded run come first.
var labFaults = []labFault{
	{
		// Commits wait for standbys that are not there: everybody is held until it is given up.
		name: "primary's PostgreSQL port cut off 25 s", line: lineCut, isBounded: true,
		isFresh: true, roles: rolesChanged, mayFail: changeCodes, gapMax: 25 * time.Second,
		run: cutServer(true, true, 25*time.Second),
	},
	{
		name: "Raft disk of the leader frozen 10 s", line: lineRaftDisk, isBounded: true,
		roles: rolesKept, gapMax: 3 * time.Second, run: onLeader(freezeRaft(10 * time.Second)),
	},
	{
		name: "delay 100 +/- 80 ms for 15 s", line: lineDelay, isBounded: true,
		roles: rolesKept, gapMax: 4 * time.Second, run: weather(labLink{
			delay: 100 * time.Millisecond, jitter: 80 * time.Millisecond}, 15*time.Second),
	},
	{
		name: "primary cut off from everyone 20 s", line: lineCut, isBounded: true,
		roles: rolesChanged, mayFail: changeCodes, gapMax: 15 * time.Second,
		serving: notThePrimary, feltFor: 10 * time.Second, feltBy: thePrimary,
		run: cutPrimary(true, true, everything, 20*time.Second),
	},
	{
		name: "three node processes killed at once, primary's node last", line: lineAll,
		isBounded: true, roles: rolesKept, gapMax: 10 * time.Second,
		run: restartAll(allKilled, primaryLast),
	},
	{
		name: "delay 400 +/- 300 ms for 60 s", line: lineDelay, roles: rolesKept,
		run: weather(labLink{delay: 400 * time.Millisecond, jitter: 300 * time.Millisecond},
			time.Minute),
	},
	{
		name: "loss 5 % for 30 s", line: lineDelay, roles: rolesKept,
		run: weather(labLink{loss: 0.05}, 30*time.Second),
	},
	{
		name: "loss 20 % for 30 s", line: lineDelay, roles: rolesKept,
		run: weather(labLink{loss: 0.2}, 30*time.Second),
	},
	{
		name: "loss 40 % for 30 s", line: lineDelay, roles: rolesKept,
		run: weather(labLink{loss: 0.4}, 30*time.Second),
	},
	{
		name: "Raft leader killed", line: lineLeader, roles: rolesKept, gapMax: unheldGap,
		serving: notTheLeader, isUnheld: true, run: onLeader(killProcess(5 * time.Second)),
	},
	{
		name: "Raft leader paused 15 s", line: lineLeader, roles: rolesKept,
		gapMax: unheldGap, serving: notTheLeader, isUnheld: true,
		run: onLeader(pauseProcess(15 * time.Second)),
	},
	{
		name: "Raft leader cut away 15 s", line: lineLeader, roles: rolesKept,
		gapMax: unheldGap, serving: notTheLeader, isUnheld: true,
		feltFor: 5 * time.Second, feltBy: theLeader,
		run: onLeader(cutNode(15 * time.Second)),
	},
	{
		name: "Raft leader cut away from the voters only 15 s", line: lineLeader,
		roles: rolesKept, gapMax: unheldGap, serving: notTheLeader, isUnheld: true,
		feltFor: 5 * time.Second, feltBy: theLeader,
		run: onLeader(cutControl(15 * time.Second)),
	},
	{
		name: "Raft disk of the primary's node frozen 20 s", line: lineRaftDisk,
		roles: rolesKept, gapMax: 3 * time.Second, run: onPrimary(freezeRaft(20 * time.Second)),
	},
	{
		name: "Raft disk of the third node frozen 35 s", line: lineRaftDisk, roles: rolesKept,
		gapMax: 3 * time.Second, run: onFollower(freezeRaft(35 * time.Second)),
	},
	{
		name: "Raft disk of the leader frozen 35 s", line: lineRaftDisk, roles: rolesKept,
		gapMax: 3 * time.Second, run: onLeader(freezeRaft(35 * time.Second)),
	},
	{
		name: "Raft disk of the leader frozen 20 s", line: lineRaftDisk,
		roles: rolesKept, gapMax: 3 * time.Second, run: onLeader(freezeRaft(20 * time.Second)),
	},
	{
		name: "Raft disk of the primary's node frozen 10 s", line: lineRaftDisk,
		roles: rolesKept, gapMax: 3 * time.Second, run: onPrimary(freezeRaft(10 * time.Second)),
	},
	{
		name: "Raft disk of the primary's node frozen 35 s", line: lineRaftDisk,
		roles: rolesKept, gapMax: 3 * time.Second, run: onPrimary(freezeRaft(35 * time.Second)),
	},
	{
		name: "Raft disk of the third node frozen 10 s", line: lineRaftDisk,
		roles: rolesKept, gapMax: 3 * time.Second, run: onFollower(freezeRaft(10 * time.Second)),
	},
	{
		name: "Raft disk of the third node frozen 20 s", line: lineRaftDisk,
		roles: rolesKept, gapMax: 3 * time.Second, run: onFollower(freezeRaft(20 * time.Second)),
	},
	{
		name: "Raft disk of the leader full 10 s", line: lineRaftDisk,
		roles: rolesKept, gapMax: 3 * time.Second, run: onLeader(fillDisk(raftDisk, 10*time.Second)),
	},
	{
		name: "Raft disk of the leader frozen 15 s, switchover meanwhile", line: lineRaftDisk,
		roles: rolesChanged, mayFail: changeCodes, gapMax: 8 * time.Second,
		run: onLeader(switchoverWhile(frozen, 15*time.Second)),
	},
	{
		name: "Raft disk of the leader full 15 s, switchover meanwhile", line: lineRaftDisk,
		roles: rolesChanged, mayFail: changeCodes, gapMax: 8 * time.Second,
		run: onLeader(switchoverWhile(noRoom, 15*time.Second)),
	},
	{
		name: "Raft disk of the third node frozen 15 s, switchover meanwhile", line: lineRaftDisk,
		roles: rolesChanged, mayFail: changeCodes, gapMax: 8 * time.Second,
		run: onFollower(switchoverWhile(frozen, 15*time.Second)),
	},
	{
		name: "Raft disk of the third node full 15 s, switchover meanwhile", line: lineRaftDisk,
		roles: rolesChanged, mayFail: changeCodes, gapMax: 8 * time.Second,
		run: onFollower(switchoverWhile(noRoom, 15*time.Second)),
	},
	{
		name: "Raft disk of the primary's node frozen 15 s, switchover meanwhile",
		line: lineRaftDisk, roles: rolesChanged, mayFail: changeCodes, gapMax: 8 * time.Second,
		run: onPrimary(switchoverWhile(frozen, 15*time.Second)),
	},
	{
		name: "Raft disk of the primary's node full 15 s, switchover meanwhile",
		line: lineRaftDisk, roles: rolesChanged, mayFail: changeCodes, gapMax: 8 * time.Second,
		run: onPrimary(switchoverWhile(noRoom, 15*time.Second)),
	},
	{
		name: "Raft disk of the primary's node full 10 s", line: lineRaftDisk, roles: rolesKept,
		gapMax: 3 * time.Second, run: onPrimary(fillDisk(raftDisk, 10*time.Second)),
	},
	{
		name: "Raft disk of the third node full 10 s", line: lineRaftDisk, roles: rolesKept,
		gapMax: 3 * time.Second, run: onFollower(fillDisk(raftDisk, 10*time.Second)),
	},
	{
		// Promises and leases are in memory: sessions are served all the time.
		name: "Raft disks of all nodes frozen 20 s", line: lineRaftDisk, roles: rolesKept,
		gapMax: 3 * time.Second, run: freezeAllRaft(20 * time.Second),
	},
	{
		name: "primary's node process paused 20 s", line: linePause, roles: rolesKept,
		gapMax: 2 * time.Second, serving: notThePrimary,
		run: onPrimary(pauseProcess(20 * time.Second)),
	},
	{
		name: "primary's node process paused 40 s", line: linePause, roles: rolesKept,
		gapMax: 2 * time.Second, serving: notThePrimary,
		run: onPrimary(pauseProcess(40 * time.Second)),
	},
	{
		name: "a standby's node process paused 40 s", line: linePause, roles: rolesKept,
		gapMax: 2 * time.Second, serving: notTheFollower,
		run: onFollower(pauseProcess(40 * time.Second)),
	},
	{
		// Nobody can serve; what each has seen before says nothing of the others.
		name: "all node processes paused 20 s", line: linePause, roles: rolesKept,
		gapMax: 30 * time.Second, feltFor: 18 * time.Second, feltBy: everyProxy,
		run: pauseAll(20 * time.Second),
	},
	{
		name: "wall clocks stepped by 10 minutes either way", line: lineClock,
		labKind: labKind{isClocked: true},
		roles:   rolesKept, gapMax: 2 * time.Second, run: stepClocks(nil),
	},
	{
		name: "wall clocks 20 minutes apart, switchover meanwhile", line: lineClock,
		labKind: labKind{isClocked: true}, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 5 * time.Second,
		run: stepClocks(switchover),
	},
	{
		name: "primary's packets out are lost 20 s", line: lineCut, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 15 * time.Second, serving: notThePrimary,
		feltFor: 10 * time.Second, feltBy: thePrimary,
		run: cutPrimary(false, true, everything, 20*time.Second),
	},
	{
		name: "primary's packets in are lost 20 s", line: lineCut, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 15 * time.Second, serving: notThePrimary,
		feltFor: 10 * time.Second, feltBy: thePrimary,
		run: cutPrimary(true, false, everything, 20*time.Second),
	},
	{
		// The proxies reach it: after synchronous.degrade_after commits go on without standbys.
		name: "primary cut off from its standbys only 30 s", line: lineCut, roles: rolesKept,
		gapMax: 25 * time.Second, feltFor: 8 * time.Second, feltBy: everyProxy,
		run: cutStandbys(true, true, 30*time.Second),
	},
	{
		// PostgreSQL is well and two proxies reach it: a change would help nobody.
		name: "primary cut off from the voters only 20 s", line: lineCut, roles: rolesKept,
		gapMax: 2 * time.Second, serving: notThePrimary,
		feltFor: 8 * time.Second, feltBy: thePrimary,
		run: cutPrimary(true, true, isControl, 20*time.Second),
	},
	{
		name: "packets from the primary to its standbys are lost 30 s", line: lineCut,
		roles: rolesKept, gapMax: 25 * time.Second,
		feltFor: 8 * time.Second, feltBy: everyProxy,
		run: cutStandbys(false, true, 30*time.Second),
	},
	{
		name: "packets from the standbys to the primary are lost 30 s", line: lineCut,
		roles: rolesKept, gapMax: 25 * time.Second,
		feltFor: 8 * time.Second, feltBy: everyProxy,
		run: cutStandbys(true, false, 30*time.Second),
	},
	{
		name: "packets from the primary to the voters are lost 20 s", line: lineCut,
		roles: rolesKept, gapMax: 2 * time.Second, serving: notThePrimary,
		feltFor: 8 * time.Second, feltBy: thePrimary,
		run: cutPrimary(false, true, isControl, 20*time.Second),
	},
	{
		name: "packets from the voters to the primary are lost 20 s", line: lineCut,
		roles: rolesKept, gapMax: 2 * time.Second, serving: notThePrimary,
		feltFor: 8 * time.Second, feltBy: thePrimary,
		run: cutPrimary(true, false, isControl, 20*time.Second),
	},
	{
		// Its commits wait for standbys, and nobody can tell it to go on without: a change helps.
		name: "primary cut off from voters and standbys, proxies reach it, 30 s", line: lineCut,
		roles: rolesChanged, mayFail: changeCodes, gapMax: 15 * time.Second,
		serving: notThePrimary, feltFor: 15 * time.Second, feltBy: thePrimary,
		run: cutPrimary(true, true, isGroupOnly, 30*time.Second),
	},
	{
		name: "packets to the primary's PostgreSQL port are lost 30 s", line: lineCut,
		isFresh: true, roles: rolesChanged, mayFail: changeCodes, gapMax: 25 * time.Second,
		run: cutServer(true, false, 30*time.Second),
	},
	{
		name: "packets from the primary's PostgreSQL port are lost 30 s", line: lineCut,
		isFresh: true, roles: rolesChanged, mayFail: changeCodes, gapMax: 25 * time.Second,
		run: cutServer(false, true, 30*time.Second),
	},
	{
		// Shorter than group.cut_off_after: a change would help nobody.
		name: "primary's PostgreSQL port cut off 8 s", line: lineCut, roles: rolesKept,
		gapMax: 15 * time.Second, feltFor: 6 * time.Second, feltBy: everyProxy,
		run: cutServer(true, true, 8*time.Second),
	},
	{
		// Its standbys stream, so that it gives way by a switchover. It drains for a second:
		// what is in flight at the proxies that are cut off does not end.
		name: "primary's PostgreSQL port cut off, its standbys stream, 40 s", line: lineCut,
		isFresh: true, roles: rolesChanged, mayFail: changeCodes, gapMax: 24 * time.Second,
		run: cutClients(40 * time.Second),
	},
	{
		name: "primary's host lost 15 s", line: lineHost, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 8 * time.Second, serving: notThePrimary,
		run: loseHost(15 * time.Second),
	},
	{
		name: "host of the primary and the Raft leader lost 15 s", line: lineHost,
		roles: rolesChanged, mayFail: changeCodes, gapMax: 12 * time.Second,
		serving: notThePrimary, run: loseBoth(15 * time.Second),
	},
	{
		// Which of the others follows is theirs to choose: mostly the one that was lost before.
		name: "primary's host lost 10 s, and that of the next, three times", line: lineHost,
		roles: rolesRenewed, mayFail: changeCodes, gapMax: hangMax,
		run: loseHosts(3, 10*time.Second),
	},
	{
		name: "a standby's host lost 15 s", line: lineHost, roles: rolesKept,
		gapMax: 3 * time.Second, serving: notTheFollower, run: loseStandby(15 * time.Second),
	},
	{
		name: "primary's host lost while a standby lags", line: lineWeak, roles: rolesChanged,
		mayFail: changeCodes, gapMax: hangMax,
		serving: notThePrimary, run: loseHostBeside(lag, true),
	},
	{
		name: "primary's host lost while a standby's disk is full", line: lineWeak,
		roles: rolesRenewed, mayFail: changeCodes, gapMax: hangMax,
		serving: notThePrimary, run: loseHostBeside(full, false),
	},
	{
		// The other standby alone is known to have every commit by then, and has none itself:
		// its first commits wait for synchronous.degrade_after.
		name: "primary's host lost while a standby's disk has long been full", line: lineWeak,
		roles: rolesChanged, mayFail: changeCodes, gapMax: 25 * time.Second,
		serving: notThePrimary, run: loseHostBeside(fullForLong, true),
	},
	{
		name: "primary's host lost while a standby is on another timeline", line: lineWeak,
		roles: rolesRenewed, mayFail: changeCodes, gapMax: hangMax,
		serving: notThePrimary, run: promoteBehind,
	},
	{
		// The tag comes and goes with rolling restarts, before and after what is judged.
		name: "primary's host lost beside a standby with nofailover", line: lineWeak,
		roles: rolesChanged, mayFail: changeCodes, gapMax: hangMax,
		serving: notThePrimary, run: loseHostBeside(tagged, true), undo: untag,
	},
	{
		name: "postmaster killed, two backends hang 10 s", line: lineServer,
		roles: rolesRenewed, mayFail: changeCodes, gapMax: 3 * time.Second,
		run: killPostmasterOnly(10 * time.Second),
	},
	{
		name: "immediate shutdown by a third party", line: lineServer, roles: rolesRenewed,
		mayFail: changeCodes, gapMax: 5 * time.Second, run: signalPostmaster(3),
	},
	{
		name: "data disk of the primary frozen 30 s", line: lineData, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 20 * time.Second, serving: notThePrimary,
		run: freezeData(30 * time.Second),
	},
	{
		name: "data disk of the primary full 30 s", line: lineData, roles: rolesChanged,
		// Until the agent resigns a client is told what PostgreSQL says, that the disk is full.
		mayFail: append([]string{"53100"}, changeCodes...), gapMax: 20 * time.Second,
		run: onPrimary(fillDisk(dataDisk, 30*time.Second)),
	},
	{
		name: "data disk of a standby full 20 s", line: lineData, roles: rolesKept,
		gapMax: 2 * time.Second, run: hurtStandby(fullFor, 20*time.Second),
	},
	{
		name: "data disk of a standby frozen 20 s", line: lineData, roles: rolesKept,
		gapMax: 2 * time.Second, run: hurtStandby(frozenFor, 20*time.Second),
	},
	{
		name: "candidate dies in the middle of its promotion", line: lineDies, roles: rolesRenewed,
		mayFail: changeCodes, gapMax: hangMax, run: dieInPromotion(true, false),
	},
	{
		name: "Raft leader dies in the middle of a promotion", line: lineDies, roles: rolesRenewed,
		mayFail: changeCodes, gapMax: hangMax, run: dieInPromotion(false, true),
	},
	{
		name: "candidate and Raft leader die in the middle", line: lineDies, roles: rolesRenewed,
		mayFail: changeCodes, gapMax: hangMax, run: dieInPromotion(true, true),
	},
	{
		name: "three node processes killed at once, in all orders", line: lineAll,
		roles: rolesKept, gapMax: 10 * time.Second, run: restartAll(allKilled, labOrders...),
	},
	{
		name: "three node processes terminated at once, in all orders", line: lineAll,
		// A proxy that ends says so to its sessions, and to who logs in at that moment.
		roles: rolesKept, mayFail: []string{"57P01", "57P03"}, gapMax: 15 * time.Second,
		run: restartAll(allTerminated, labOrders...),
	},
	{
		name: "three nodes and their servers killed at once, in all orders", line: lineAll,
		roles: rolesRenewed, gapMax: 15 * time.Second, run: restartAll(withServer, labOrders...),
	},
	{
		name: "power loss of all", line: lineAll, roles: rolesRenewed, mayFail: changeCodes,
		gapMax: hangMax, run: powerLoss,
	},
	{
		name: "delay 400 +/- 300 ms for 60 s, wan", line: lineDelay,
		labKind: labKind{profile: "wan"},
		roles:   rolesKept, run: weather(labLink{delay: 400 * time.Millisecond,
			jitter: 300 * time.Millisecond}, time.Minute),
	},
	{
		name: "primary's host lost 30 s, wan", line: lineHost, labKind: labKind{profile: "wan"},
		roles: rolesChanged, mayFail: changeCodes, gapMax: 20 * time.Second,
		serving: notThePrimary, run: loseHost(30 * time.Second),
	},
	{
		// Nobody is told: no connection is refused.
		name: "primary's host lost 15 s, lan", line: lineHost, labKind: labKind{profile: "lan"},
		roles: rolesChanged, mayFail: changeCodes, gapMax: 8 * time.Second,
		serving: notThePrimary, run: loseHost(15 * time.Second), aim: 4 * time.Second,
	},
	{
		name: "primary's host lost 15 s, lan and fence recruit", line: lineHost,
		labKind: labKind{profile: "lan", fence: "recruit"}, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 8 * time.Second, serving: notThePrimary,
		run: loseHost(15 * time.Second), aim: 2 * time.Second,
	},
	{
		// The old primary lives on, and nobody has waited for the lease of its proxy.
		name: "primary cut off from everyone 20 s, lan and fence recruit", line: lineCut,
		labKind: labKind{profile: "lan", fence: "recruit"}, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 8 * time.Second, serving: notThePrimary,
		feltFor: 10 * time.Second, feltBy: thePrimary,
		run: cutPrimary(true, true, everything, 20*time.Second),
	},
	{
		name: "primary's packets out are lost 20 s, lan and fence recruit", line: lineCut,
		labKind: labKind{profile: "lan", fence: "recruit"}, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 8 * time.Second, serving: notThePrimary,
		feltFor: 10 * time.Second, feltBy: thePrimary,
		run: cutPrimary(false, true, everything, 20*time.Second),
	},
	{
		name: "primary's packets in are lost 20 s, lan and fence recruit", line: lineCut,
		labKind: labKind{profile: "lan", fence: "recruit"}, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 8 * time.Second, serving: notThePrimary,
		feltFor: 10 * time.Second, feltBy: thePrimary,
		run: cutPrimary(true, false, everything, 20*time.Second),
	},
	{
		name: "primary's PostgreSQL port cut off 30 s, lan and fence recruit", line: lineCut,
		isFresh: true, labKind: labKind{profile: "lan", fence: "recruit"}, roles: rolesChanged,
		mayFail: changeCodes, gapMax: 25 * time.Second,
		run: cutServer(true, true, 30*time.Second),
	},
	{
		name: "host of a sidecar's lender lost 15 s", line: lineHost,
		labKind: labKind{hasSidecar: true}, roles: rolesKept, gapMax: 3 * time.Second,
		serving: theSidecarAnd(notTheLost), run: loseLender(false, 15*time.Second),
	},
	{
		name: "host of the primary and of a sidecar's lender lost 15 s", line: lineHost,
		labKind: labKind{hasSidecar: true}, roles: rolesChanged, mayFail: changeCodes,
		gapMax: 8 * time.Second, serving: theSidecarAnd(notTheLost),
		run: loseLender(true, 15*time.Second),
	},
	{
		// It holds its sessions, and nobody else is in the least concerned.
		name: "sidecar cut off from the voters 20 s", line: lineCut,
		labKind: labKind{hasSidecar: true}, roles: rolesKept, gapMax: 2 * time.Second,
		feltFor: 12 * time.Second, feltBy: theSidecar, run: cutSidecar(20*time.Second, nil),
	},
	{
		// What it borrowed must have run out before the old primary gives way.
		name: "sidecar cut off from the voters 20 s, switchover meanwhile", line: lineCut,
		labKind: labKind{hasSidecar: true}, roles: rolesChanged, mayFail: changeCodes,
		gapMax: 8 * time.Second, feltFor: 12 * time.Second, feltBy: theSidecar,
		run: cutSidecar(20*time.Second, switchover),
	},
}
