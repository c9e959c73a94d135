package election

import "time"

// Policy is what the decision and its transitions may do and how long they take. Ages and
// deadlines are durations measured on one node; none is compared across hosts.
type Policy struct {
	// SyncMode is one of SyncModes.
	SyncMode string
	// SyncWait is how many standbys a commit waits for in the modes quorum and strict.
	SyncWait int
	// SyncDegradeAfter is how long a standby may be away before commits are no longer waited for
	// on it; SyncReturnAfter, how long it must be there before they are again.
	SyncDegradeAfter, SyncReturnAfter time.Duration
	// Fence is one of Fences.
	Fence string
	// ReportFresh is the age up to which a report speaks for its node.
	ReportFresh time.Duration
	// ProofFresh is the age up to which a node's word that the primary works stands against
	// refused connections on all other sides: the host that died has reported just before.
	ProofFresh time.Duration
	// ProbeRepeats is how many failed probes in a row make a node blind; a refused connection
	// needs one.
	ProbeRepeats int
	// MaxChanges is how many unplanned changes may begin within FlapWindow.
	MaxChanges int
	FlapWindow time.Duration
	// CutAfter is how long a primary that runs must be of no use to most nodes, or to most
	// sidecars, before another member takes its place; 0: never.
	CutAfter time.Duration
	// LagMaxBytes bounds the lag of a switchover's target and, when commits wait for nobody,
	// of a failover's candidate. 0: no bound.
	LagMaxBytes uint64

	// EndorseTimeout bounds one wait for a majority's endorsement; above T_P.
	EndorseTimeout time.Duration
	// DrainTimeout is how long a switchover lets transactions finish.
	DrainTimeout time.Duration
	// HoldTimeout is how long clients are held, BackTime what is kept of it for the way back of a
	// switchover or planned restart; HoldTimeout 0: the steps' own bounds are the only ones.
	HoldTimeout time.Duration
	BackTime    time.Duration
	// RecruitTimeout bounds one order to recruit; RecruitGrace is how long late recruits are
	// waited for when enough have answered and the epoch is endorsed.
	RecruitTimeout time.Duration
	RecruitGrace   time.Duration
	// The bounds of the other orders.
	PromoteTimeout    time.Duration
	FollowTimeout     time.Duration
	StopTimeout       time.Duration
	StartTimeout      time.Duration
	CheckpointTimeout time.Duration
	// PrewarmTime is what proxies have to log sessions in on a switchover's target before it
	// begins; its checkpoint runs in the same time. 0: they are not told.
	PrewarmTime time.Duration
	// SlotWait is how long a switchover waits until its target has the logical slots.
	SlotWait         time.Duration
	BootstrapTimeout time.Duration
	// ApplyTimeout bounds one attempt to write to the replicated state.
	ApplyTimeout time.Duration
	// RetryPause is the pause after a step that failed.
	RetryPause time.Duration
	// Tick is how often the leader decides when nothing wakes it.
	Tick time.Duration
}

// backTime is what is kept of the hold budget for the way back: a server that stopped in order is
// up within a second, one that had to be stopped at once soon after, as its CHECKPOINT was just
// before.
const backTime = 10 * time.Second

// stepsTime is the least that a switchover needs for stop, last WAL and promotion.
const stepsTime = 5 * time.Second

// SwitchoverLeast is the least time for which proxies must hold clients, so that a switchover gets
// somewhere and can turn back in time: the drain, the promise of a proxy that cannot be reached,
// the steps, and the way back.
func SwitchoverLeast(t Timing, drain time.Duration) time.Duration {
	return drain + t.Promise + stepsTime + backTime
}

// DefaultPolicy returns the policy for a group's times.
func DefaultPolicy(t Timing) Policy {
	return Policy{
		SyncMode:          SyncQuorum,
		SyncWait:          1,
		SyncDegradeAfter:  10 * time.Second,
		SyncReturnAfter:   2 * time.Second,
		Fence:             FenceLease,
		ReportFresh:       4 * t.Interval,
		ProofFresh:        2*t.Interval + t.Interval/2,
		ProbeRepeats:      probeRepeats,
		MaxChanges:        6,
		FlapWindow:        time.Minute,
		CutAfter:          cutAfterDefault,
		LagMaxBytes:       16 << 20,
		EndorseTimeout:    2 * t.Promise,
		DrainTimeout:      10 * time.Second,
		BackTime:          backTime,
		RecruitTimeout:    3 * time.Second,
		RecruitGrace:      100 * time.Millisecond,
		PromoteTimeout:    10 * time.Second,
		FollowTimeout:     time.Second,
		StopTimeout:       10 * time.Second,
		StartTimeout:      30 * time.Second,
		CheckpointTimeout: 30 * time.Second,
		SlotWait:          20 * time.Second,
		BootstrapTimeout:  3 * time.Minute,
		ApplyTimeout:      4 * t.Heartbeat,
		RetryPause:        200 * time.Millisecond,
		Tick:              t.Interval / 2,
	}
}
