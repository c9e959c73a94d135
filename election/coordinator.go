package election

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// Coordinator is what the controller works with: the replicated state, the observations, and the
// ways to act. Node implements it; tests have their own.
type Coordinator interface {
	StateSource
	// Name is this node's.
	Name() string
	// Apply writes a command to the log and returns its result. An error leaves the outcome
	// unknown: read the state back. A refusal is in the result.
	Apply(ctx context.Context, c Command) (Result, error)
	// Observations are the newest reports of all nodes, with their age; changed is closed at the
	// next one that differs.
	Observations() (obs []Observation, changed <-chan struct{})
	// EndorseAll asks all voters to endorse the epoch of the current intent. It returns nil
	// when a majority has: no promise for an older epoch stands in the way any more. recruits
	// claims that these members fence the old primary, so that promises need not be waited for.
	EndorseAll(ctx context.Context, epoch uint64, recruits ...string) error
	// Call carries an order out on that member's node.
	Call(ctx context.Context, member string, o Order) (OrderResult, error)
	// UnplannedChanges are how long ago unplanned changes of the lock were entered in the state
	// here; those of before the start of this node, and all but the newest, are left out.
	UnplannedChanges() []time.Duration
	// Timing are the group's times.
	Timing() Timing
	// Now is CLOCK_BOOTTIME in nanoseconds.
	Now() int64
	Log() *zap.Logger
}

// LeaderLoop is what runs on the Raft leader and only there.
type LeaderLoop interface {
	// RunLeader works until ctx ends, which it does when leadership is lost.
	RunLeader(ctx context.Context)
	// Request asks the running loop for what an operator wants; it returns when that is done, or
	// with the reason why not. The checks say what it rests on.
	Request(ctx context.Context, r Request) ([]Check, error)
	// LastDecision is the newest decision.
	LastDecision() Decision
}

// Timing are the times of the lease and of Raft (DESIGN.md, "Lease arithmetic").
type Timing struct {
	// Interval is the pause between renewals, reports and probes (h).
	Interval time.Duration
	// Doubt is how long after sending a renewal new work may start (T_H).
	Doubt time.Duration
	// Lease is how long after sending a renewal the epoch may be used (T_L).
	Lease time.Duration
	// Promise is how long after receiving a renewal a voter endorses nothing higher (T_P).
	Promise time.Duration
	// Heartbeat is Raft's heartbeat and election timeout.
	Heartbeat time.Duration
	// Silence is how long a standby hears nothing from the primary's host before it gives the
	// stream up, and with it its word for that primary: wal_receiver_timeout.
	Silence time.Duration
}
