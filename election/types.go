package election

import (
	"context"
	"time"

	"holdfast/pgwire"
)

// Version is the version that log entries, snapshots and RPCs of this release carry. A reader
// refuses a higher one and ignores fields it does not know.
const Version = 1

// Member is one PostgreSQL instance under a node's control, or a witness voter without one.
type Member struct {
	// Name is the node's name; it is also the application_name of its standby.
	Name string `json:"name"`
	// Address is the node-to-node address, host:port.
	Address string `json:"address"`
	// Postgres is the address of the PostgreSQL server, host:port; empty for a witness.
	Postgres string `json:"postgres,omitempty"`
	// Priority orders otherwise equal candidates; the higher wins.
	Priority int `json:"priority,omitempty"`
	// NoFailover forbids promotion.
	NoFailover bool `json:"nofailover,omitempty"`
}

// Lock is the leader lock: the durable record of who is primary under which epoch.
type Lock struct {
	Epoch  uint64 `json:"epoch"`
	Holder string `json:"holder"`
	// Incarnation names the start of the holder's shared memory (DESIGN 10.8).
	Incarnation  string     `json:"incarnation"`
	Timeline     uint32     `json:"timeline"`
	PromotionLSN pgwire.LSN `json:"promotion_lsn"`
	// XidLo and XidHi bound the transaction ids of older epochs: below XidLo the server knows
	// the outcome, at or past XidHi the transaction never arrived, between nothing is known.
	XidLo uint64 `json:"xid_lo"`
	XidHi uint64 `json:"xid_hi"`
}

// IntentKind says what change of the lock an intent is for.
type IntentKind string

// The kinds of intents.
const (
	IntentBootstrap  IntentKind = "bootstrap"
	IntentFailover   IntentKind = "failover"
	IntentSwitchover IntentKind = "switchover"
	IntentRestart    IntentKind = "restart"
)

// Intent is the durable announcement of a change of the lock; it owns a fresh epoch.
type Intent struct {
	Epoch uint64     `json:"epoch"`
	Kind  IntentKind `json:"kind"`
	// From and FromEpoch name the lock that this intent replaces; empty and 0 at bootstrap.
	From      string `json:"from,omitempty"`
	FromEpoch uint64 `json:"from_epoch,omitempty"`
	// To is the new holder; empty until a candidate was chosen. It is durable before the order
	// to promote is given.
	To string `json:"to,omitempty"`
	// Tried lists members that were ordered to promote under intents this one replaced; they
	// are the first candidates (DESIGN 10.7).
	Tried []string `json:"tried,omitempty"`
	Cause string   `json:"cause"`
	// Evidence is what the decision rested on, in words for a DBA.
	Evidence []string `json:"evidence,omitempty"`
	// Request names the command that began it, and what was asked for (wishToken).
	Request string `json:"request,omitempty"`
	// StopsHolder tells that the holder's server is stopped in order first, after a drain (restart).
	StopsHolder bool `json:"planned,omitempty"`
	// Only is the one member that may be chosen (failover that an operator asked for).
	Only string `json:"only,omitempty"`
	// AcceptLoss tells that acknowledged commits may be lost by it (failover).
	AcceptLoss bool `json:"accept_loss,omitempty"`
	// Slots are the old primary's logical slots as they were known when it began.
	Slots []LogicalSlot `json:"slots,omitempty"`
	// Auto tells that nobody asked for a switchover: the primary is cut off.
	Auto bool `json:"auto,omitempty"`
}

// drains tells that sessions may finish their transactions before the epoch is given up.
func (it *Intent) drains() bool { return it.Kind == IntentSwitchover || it.StopsHolder }

// cutDrainMax bounds the drain where the primary is cut off: most proxies do not reach it, so that
// what is open there cannot end, and their clients have waited for long.
const cutDrainMax = time.Second

// drainTime is how long sessions have for that, where Config.DrainTimeout is drain.
func (it *Intent) drainTime(drain time.Duration) time.Duration {
	if !it.drains() {
		return 0
	}
	if it.Auto {
		return min(drain, cutDrainMax)
	}
	return drain
}

// Change is one entry of the lock's history.
type Change struct {
	Lock  Lock       `json:"lock"`
	Kind  IntentKind `json:"kind"`
	From  string     `json:"from,omitempty"`
	Cause string     `json:"cause"`
	// Evidence is what the decision rested on; only the newest changes keep theirs.
	Evidence []string `json:"evidence,omitempty"`
	// At is the coordinator's wall clock, for people only; no decision reads it.
	At time.Time `json:"at"`
	// Asked tells that an operator asked for it.
	Asked bool `json:"planned,omitempty"`
	// Request is that of the intent; empty from a release that does not keep it.
	Request string `json:"request,omitempty"`
	// PhasesMS is how long each phase took, in milliseconds.
	PhasesMS map[string]int64 `json:"phases_ms,omitempty"`
	// Slots tell of the logical slots that were lost with it, or went on behind.
	Slots []string `json:"slots,omitempty"`
}

// isUnplanned tells that nobody asked for the change: it counts for the limit on them.
func (c *Change) isUnplanned() bool {
	return !c.Asked && c.Kind != IntentBootstrap
}

// State is the replicated state: all that the Raft log builds. It holds nothing that changes by
// itself, so that in steady state nothing is written.
type State struct {
	V         int     `json:"v"`
	Cluster   string  `json:"cluster"`
	SystemID  string  `json:"system_id,omitempty"`
	LastEpoch uint64  `json:"last_epoch"`
	Lock      *Lock   `json:"lock,omitempty"`
	Intent    *Intent `json:"intent,omitempty"`
	// Ahead tells of a switchover that is about to begin.
	Ahead   *Announcement `json:"ahead,omitempty"`
	Members []Member      `json:"members,omitempty"`
	History []Change      `json:"history,omitempty"`
	// Sync is the sync set; nil until the first record.
	Sync *SyncRecord `json:"sync,omitempty"`
	// Maintenance is set while nobody but an operator changes anything.
	Maintenance *Maintenance `json:"maintenance,omitempty"`
	// Voters is who votes on leases; nil as long as the members never changed at run time.
	Voters       *VoterSet     `json:"voters,omitempty"`
	MemberChange *MemberChange `json:"member_change,omitempty"`
	// Recovered counts the times the group was recovered from a lost quorum by one node.
	Recovered uint64 `json:"recovered,omitempty"`
}

// MemberPhase is what the agent's PostgreSQL is doing.
type MemberPhase string

// The phases of a member.
const (
	// PhaseUnknown is proof of nothing: not looked at yet, or it cannot be looked at now.
	PhaseUnknown  MemberPhase = "unknown"
	PhaseEmpty    MemberPhase = "empty"    // no data directory
	PhaseForeign  MemberPhase = "foreign"  // data that this cluster did not make
	PhaseStopped  MemberPhase = "stopped"  // data, no postmaster
	PhaseStarting MemberPhase = "starting" // postmaster, no connection yet
	PhasePrimary  MemberPhase = "primary"
	PhaseStandby  MemberPhase = "standby"
	PhaseCloning  MemberPhase = "cloning"
	PhaseRewind   MemberPhase = "rewinding"
	// PhaseRecovering is a standby that has let nobody in for a while: it replays, or cannot make
	// a snapshot before a transaction of the primary ends. It may stream and acknowledge.
	PhaseRecovering MemberPhase = "recovering"
)

// StandbyStatus is a standby as its primary sees it (pg_stat_replication).
type StandbyStatus struct {
	Name      string     `json:"name"`
	State     string     `json:"state"`
	SyncState string     `json:"sync_state"`
	FlushLSN  pgwire.LSN `json:"flush_lsn"`
	ReplayLSN pgwire.LSN `json:"replay_lsn"`
}

// MemberStatus is the agent's newest sample of its PostgreSQL; it costs nothing to read.
type MemberStatus struct {
	Name        string      `json:"name"`
	Phase       MemberPhase `json:"phase"`
	Pid         int         `json:"pid,omitempty"`
	Incarnation string      `json:"incarnation,omitempty"`
	SystemID    string      `json:"system_id,omitempty"`
	// ServerVersion is server_version_num, e.g. 150018.
	ServerVersion int    `json:"server_version,omitempty"`
	Timeline      uint32 `json:"timeline,omitempty"`
	// LSN is the newest position: on a primary the insert position, on a standby the further of
	// receive and replay.
	LSN pgwire.LSN `json:"lsn,omitempty"`
	// Streaming tells that a walreceiver is connected and in state "streaming".
	Streaming bool `json:"streaming,omitempty"`
	// Upstream is host:port of the walreceiver's sender.
	Upstream string `json:"upstream,omitempty"`
	// Standbys and Slots are filled on every running member.
	Standbys []StandbyStatus `json:"standbys,omitempty"`
	Slots    []string        `json:"slots,omitempty"`
	// Logical are the logical slots; of a primary that is stopped, those that it had.
	Logical []LogicalSlot `json:"logical,omitempty"`
	// Sync is what a primary's agent tells of its sync set.
	Sync MemberSync `json:"sync,omitzero"`
	// Lost is what the member gave up when it last rejoined; nil if it never did.
	Lost *LostSummary `json:"lost,omitempty"`
	// Pledged is the highest epoch that the member was ordered under (durable).
	Pledged uint64 `json:"pledged,omitempty"`
	// CheckpointTimeline is the timeline of the last checkpoint in pg_control.
	CheckpointTimeline uint32 `json:"checkpoint_timeline,omitempty"`
	// DiskBad tells why the data disk takes no writes; empty if it does.
	DiskBad string `json:"disk_bad,omitempty"`
	// Adopted tells that the server was adopted, as the primary or as a standby, and waits for
	// the group's first lock; empty otherwise.
	Adopted string `json:"adopted,omitempty"`
	// PendingRestart are settings that were changed and wait for a start of the server, at most
	// pendingMax of them; if there are more, "..." is the last.
	PendingRestart []string `json:"pending_restart,omitempty"`
	// Problem is what keeps the member from its place, in words for a DBA; empty if nothing.
	Problem string `json:"problem,omitempty"`
}

// ProbeResult is what a node sees when it tries to use the primary of the lock's epoch.
type ProbeResult string

// The results of a probe.
const (
	ProbeNone    ProbeResult = "none"    // no lock, or not probed yet
	ProbeOK      ProbeResult = "ok"      // TCP connect and SSLRequest/handshake byte answered
	ProbeRefused ProbeResult = "refused" // connection refused: nobody listens there
	ProbeTimeout ProbeResult = "timeout"
	ProbeError   ProbeResult = "error"
)

// Report is what a node tells the Raft leader, every interval and at once on a change.
type Report struct {
	V     int    `json:"v"`
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"` // of the lock the probe was made under
	// At is when it was made, by the boot clock of the node's process Life, and compared with At of
	// the same Life only. Kept is how long it was kept before it was sent, by the same clock; both
	// are 0 from a release that does not tell.
	Life   uint64        `json:"life,omitempty"`
	At     int64         `json:"at,omitempty"`
	Kept   time.Duration `json:"kept,omitempty"`
	Member MemberStatus  `json:"member"`
	Probe  ProbeResult   `json:"probe"`
	// ProbeCount is how many probes in a row had this result.
	ProbeCount int `json:"probe_count"`
	// BlindFor is how long no probe under Epoch has succeeded; 0 if the newest has.
	BlindFor time.Duration `json:"blind_for,omitempty"`
	// UsableAgo is how long ago a probe under Epoch has succeeded; 0 if the newest has, or none.
	UsableAgo time.Duration `json:"usable_ago,omitempty"`
	// Reaches are the other members whose servers answer this node time and again; told while
	// probes of the primary fail only.
	Reaches []string `json:"reaches,omitempty"`
	// Borrowers is what the node's sidecars see; nil if there are none.
	Borrowers *BorrowerView `json:"borrowers,omitempty"`
	// Sessions and Held are the node's proxy's client sessions, and those being held.
	Sessions int `json:"sessions"`
	Held     int `json:"held"`
	// LeaseEpoch is the epoch the node holds a valid lease for; 0 if none.
	LeaseEpoch uint64 `json:"lease_epoch"`
	// SyncV is the node's SyncVersion.
	SyncV int `json:"sync_v,omitempty"`
	// Sync is what the node's configuration asks of commits; nil from a release that does not tell.
	Sync *SyncMode `json:"sync,omitempty"`
}

// sentAt is the report as it is sent at that time by the clock of At.
func (r Report) sentAt(now int64) Report {
	r.Kept = max(0, time.Duration(now-r.At))
	return r
}

// isBefore tells that the report was made before another one of the same process.
func (r *Report) isBefore(other *Report) bool {
	return r.Life != 0 && r.Life == other.Life && r.At < other.At
}

// Observation is a report with its age when it was looked at.
type Observation struct {
	Report
	Age time.Duration `json:"age"`
	// ledFor is the age of the leadership if the report was made before that; 0: it was not.
	ledFor time.Duration
}

// OrderKind is what an agent is told to do.
type OrderKind string

// The orders. Each is idempotent and refused if its epoch is below the highest that the agent
// was ordered under.
const (
	OrderBootstrap    OrderKind = "bootstrap"     // initdb, start behind the closed door, roles
	OrderRecruit      OrderKind = "recruit"       // pledge, stop streaming, read the position
	OrderPromote      OrderKind = "promote"       // slots, sync names, promote, read the boundary
	OrderFollow       OrderKind = "follow"        // stream from Upstream
	OrderStop         OrderKind = "stop"          // fast stop of a primary, give its shutdown LSN
	OrderStartPrimary OrderKind = "start-primary" // restart in place behind the closed door
	OrderCheckpoint   OrderKind = "checkpoint"
	OrderRestart      OrderKind = "restart" // stop and start of a standby
	OrderReinit       OrderKind = "reinit"  // throw a standby's data away and clone it anew
	OrderSlots        OrderKind = "slots"   // read the logical slots now
)

// Order is an instruction of the coordinator to one agent.
type Order struct {
	V     int       `json:"v"`
	Kind  OrderKind `json:"kind"`
	Epoch uint64    `json:"epoch"`
	// Upstream is the member to follow (follow).
	Upstream Member `json:"upstream,omitzero"`
	// Members are all members: their slots are made (promote, bootstrap).
	Members []Member `json:"members,omitempty"`
	// SyncNames is synchronous_standby_names for the new primary (promote, bootstrap, start).
	SyncNames string `json:"sync_names,omitempty"`
	// WaitLSN is the position a recruit must have replayed before it answers (switchover).
	WaitLSN pgwire.LSN `json:"wait_lsn,omitempty"`
}

// OrderResult is an agent's answer to an order; which fields are set depends on the kind.
type OrderResult struct {
	V           int        `json:"v"`
	Timeline    uint32     `json:"timeline,omitempty"`
	LSN         pgwire.LSN `json:"lsn,omitempty"` // position; promotion LSN; shutdown checkpoint
	XidLo       uint64     `json:"xid_lo,omitempty"`
	XidHi       uint64     `json:"xid_hi,omitempty"`
	Incarnation string     `json:"incarnation,omitempty"`
	SystemID    string     `json:"system_id,omitempty"`
	// Logical are the logical slots, after a promotion and of slots, if HasLogical tells that they
	// were read.
	Logical    []LogicalSlot `json:"logical,omitempty"`
	HasLogical bool          `json:"has_logical,omitempty"`
}

// Agent controls the local PostgreSQL. The controller calls it directly or by RPC.
type Agent interface {
	// Status returns the newest sample without blocking.
	Status() MemberStatus
	// Changed is closed at the next change of Status that matters for a decision.
	Changed() <-chan struct{}
	// Do carries an order out; it blocks until done or ctx ends. Repeating it is harmless.
	Do(ctx context.Context, o Order) (OrderResult, error)
}

// WatchfulAgent is an Agent that can look at its server more often for a moment.
type WatchfulAgent interface{ LookClosely() }

// FormerMember is an Agent that remembers whether its node was ever a member of a group.
type FormerMember interface {
	// WasMember names the file that remembers, and tells whether it says so.
	WasMember() (file string, yes bool)
}

// StateSource is where agents and lessees see the replicated state: the local FSM of a voter, or
// a long-poll of any voter.
type StateSource interface {
	// State returns the newest state known here (never nil; treat as read-only) and a channel
	// that is closed when there is a newer one.
	State() (*State, <-chan struct{})
}

// Gate is what a lease opens: the node's proxy. The lessee closes it before it releases.
type Gate interface {
	// Drain starts no new unit of work under the epoch and returns when none is open, or when
	// ctx ends; either way Cut follows.
	Drain(ctx context.Context, epoch uint64)
	// Cut returns when nothing of epochs up to this one can reach a client or the old primary
	// any more.
	Cut(epoch uint64)
}
