package election_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"holdfast/election"
	"holdfast/pgwire"
)

// simBug is a mistake that the simulation must find.
type simBug string

const (
	bugNone          simBug = ""
	bugFewRecruits   simBug = "chooses before N-W+1 recruits"
	bugTargetLate    simBug = "makes the target durable after the promotion"
	bugIgnoresPledge simBug = "agents ignore their pledge"
	bugSameEpoch     simBug = "restarts in place without a new epoch"
	bugNoEndorsement simBug = "promotes before a majority endorsed"
	bugNoRecord      simBug = "chooses by the configuration and not by the record of the sync set"
	bugMaintenance   simBug = "does not look whether there is maintenance"
	bugAnyone        simBug = "promotes another one than the operator named"
	bugNoStop        simBug = "answers an order to stop without a stop"
	bugWaives        simBug = "waives promises without a fence"
	bugSimOver       simBug = "agents take orders of a change that is over"
	bugSimStarts     simBug = "agents take orders to start when the lock of their epoch is entered"
	bugSimOldReport  simBug = "reports count for the epoch in which they come"
)

// simWorld is a model of the whole group: one replicated state, agents with a WAL made of numbered
// entries, proxies that write under leases, and a network. mu guards all of it.
type simWorld struct {
	mu    sync.Mutex
	seed  uint64
	rng   *rand.Rand
	bug   simBug
	state *election.State
	nodes map[string]*simNode
	names []string
	// servers are the names of those that have a PostgreSQL.
	servers    []string
	hasWitness bool
	letsAllIn  bool // no standby takes no logins
	// isOff: commits wait for nobody, and some are lost; ackedWhole has the others.
	isOff      bool
	ackedWhole map[uint64]simCommit
	// lost and resigned count what was lost then, and primaries whose disk was spoiled at last.
	lost, resigned int
	recruits       map[simRecruit]election.OrderResult
	// leader leads the group; "" while nobody does.
	leader string
	// lossy is the share of messages that are lost, late or answered in vain.
	lossy float64
	// isFenceless makes proxies ignore their leases: recruiting alone must then protect
	// acknowledged commits.
	isFenceless bool
	// fence is that of the schedule; waived are the epochs whose promises were not waited for.
	fence  string
	waived map[uint64]bool

	nextEntry  uint64
	acked      map[uint64]bool
	ackedEpoch uint64
	used       map[uint64]string // epoch -> incarnation that clients used
	targets    map[uint64]string // epoch -> durable target
	// followed has whom each member was ordered to follow, by the epoch.
	followed   map[uint64]map[string]string
	entered    func(*election.Lock) // what a test wants to see of a new lock; may be nil
	violations []string
	// degraded and changedSync count the entries of the sync set.
	degraded, changedSync int
	// asked counts what an operator got, lostAccepted the commits that were lost by consent.
	asked        simAsked
	lostAccepted int
	// answers has what was told of requests, carried how often each was carried out, by the token.
	answers map[string]error
	carried map[string]int
	// consent has the member that an operator accepted a loss for, by the epoch that it replaces.
	consent      map[uint64]string
	maintainedAt time.Time
	late         sync.WaitGroup // processes, and messages that are still under way
	// isOver ends all processes.
	isOver bool
	// yes has who endorsed an epoch, endorsed is the highest that a majority endorsed.
	yes      map[uint64]map[string]bool
	endorsed uint64
	// xids has the transaction ids of entries; doubtful are commits that nobody was told about.
	xids     map[uint64]uint64
	doubtful []simCommit
	// isMild allows only faults below the thresholds: roles must not change.
	isMild     bool
	history    *history // nil: it is not recorded
	isFaulty   bool
	trace      simTrace
	said       func() election.Decision // the newest
	laterCount int
	oneWay     map[string]map[string]bool // messages from one to another are lost
}

// simNode is one node: voter, agent, PostgreSQL and proxy; it is the Coordinator of its controller.
type simNode struct {
	w     *simWorld
	name  string
	index int // its place among the names
	// isUp: the node's process runs. isCut: its host is cut off from all others.
	isUp, isCut, isSlow bool
	view                *election.State
	changed             chan struct{}
	observed            chan struct{}
	recv                map[string]simReport
	// pgBusy has one place: one order at a time. A mutex would stop the bubble's time.
	pgBusy chan struct{}
	pg     simServer

	probe      election.ProbeResult
	probeEpoch uint64
	probeCount int
	lease      simLease
	lateTarget *election.Command
}

type simReport struct {
	report election.Report
	at     time.Time
}

// simServer is a PostgreSQL.
type simServer struct {
	phase       election.MemberPhase
	wal         []uint64
	incarnation int
	upstream    string
	pledged     uint64
	// promotedAt is the epoch under which it was promoted or started as a primary.
	promotedAt uint64
	isClean    bool
	isOpen     bool
	// promotesBadly is how many orders to promote fail.
	promotesBadly int
	pending       []simCommit
	// nextXid is the next transaction id; lo and hi bound those that a promotion is certain of.
	nextXid, lo, hi uint64
	sync            simSync
	disk            simDataDisk
	slots           simSlots
	// startedAt is when it became a primary, or was started as one.
	startedAt time.Time
}

type simCommit struct {
	entry uint64
	xid   uint64
	index int
	epoch uint64
	proxy string
}

func newSimWorld(seed uint64, bug simBug) *simWorld {
	w := &simWorld{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), bug: bug, nodes: map[string]*simNode{},
		acked: map[uint64]bool{}, used: map[uint64]string{}, targets: map[uint64]string{},
		followed: map[uint64]map[string]string{},
		names:    []string{"pg1", "pg2", "pg3"}, nextEntry: 1, asked: simAsked{},
		answers: map[string]error{}, carried: map[string]int{},
		consent: map[uint64]string{}, yes: map[uint64]map[string]bool{},
		oneWay: map[string]map[string]bool{}, xids: map[uint64]uint64{}, trace: newSimTrace(),
		ackedWhole: map[uint64]simCommit{}, recruits: map[simRecruit]election.OrderResult{},
	}
	w.configure(seed, bug)
	for i, n := range w.names {
		w.nodes[n] = &simNode{
			w: w, name: n, index: i, isUp: true, view: w.state, changed: make(chan struct{}),
			observed: make(chan struct{}), recv: map[string]simReport{},
			pgBusy: make(chan struct{}, 1), lease: w.newSimLease(),
		}
		if !w.nodes[n].isWitness() {
			w.nodes[n].pg.phase = election.PhaseEmpty
		}
		w.oneWay[n] = map[string]bool{}
	}
	return w
}

func (w *simWorld) violate(format string, args ...any) {
	w.violations = append(w.violations, fmt.Sprintf(format, args...))
}

// reachLocked tells that a's messages get to b's host.
func (w *simWorld) reachLocked(a, b string) bool {
	return a == b || !w.nodes[a].isCut && !w.nodes[b].isCut && !w.oneWay[a][b]
}

// areConnectedLocked tells that they can talk with each other.
func (w *simWorld) areConnectedLocked(a, b string) bool {
	return w.reachLocked(a, b) && w.reachLocked(b, a)
}

func (w *simWorld) majorityLocked(of string) bool {
	n := 0
	for _, b := range w.names {
		if v := w.nodes[b]; v.isUp && !v.lease.isPaused && !v.lease.isStalled &&
			w.areConnectedLocked(of, b) {
			n++
		}
	}
	return n > len(w.names)/2 && w.isVoterLocked(of)
}

// isVoterLocked tells that a node takes part in Raft.
func (w *simWorld) isVoterLocked(name string) bool {
	n := w.nodes[name]
	return n.isUp && !n.lease.isPaused && !n.lease.isStalled
}

// setViewLocked shows a node the newest state.
func (n *simNode) setViewLocked() {
	if n.view != n.w.state {
		if n.view.LastEpoch > n.w.state.LastEpoch {
			n.w.violate("%s saw epoch %d before %d", n.name, n.view.LastEpoch, n.w.state.LastEpoch)
		}
		n.view = n.w.state
		n.w.noteLocked(n.name, "sees", n.view.LastEpoch, uint64(len(n.view.History)))
		close(n.changed)
		n.changed = make(chan struct{})
	}
}

// State implements election.Coordinator.
func (n *simNode) State() (*election.State, <-chan struct{}) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	late := n.lateTarget
	if it := n.view.Intent; late != nil && it != nil && it.Epoch == late.Target.Epoch {
		s, it := *n.view, *n.view.Intent
		it.To = late.Target.To
		s.Intent = &it
		return &s, n.changed
	}
	switch n.w.bug {
	case bugNoRecord:
		return n.withoutSyncLocked(), n.changed
	case bugSimWitness:
		return n.withWitnessLocked(), n.changed
	case bugMaintenance, bugAnyone:
		return n.withoutOperatorLocked(), n.changed
	}
	return n.view, n.changed
}

var errSim = errors.New("simulated fault")

// apply writes to the replicated state; the write may be lost, or land without an answer.
func (n *simNode) apply(ctx context.Context, cmd election.Command) (election.Result, error) {
	w, d := n.w, n.dice(actApply)
	if cmd.Target != nil {
		n.checkTarget(cmd.Target)
	}
	if err := d.begin(ctx); err != nil {
		return election.Result{}, err
	}
	d.nap(20)
	w.mu.Lock()
	defer w.mu.Unlock()
	if cmd.Target != nil && w.bug == bugTargetLate {
		n.lateTarget = &cmd
		return election.Result{V: 1, Epoch: cmd.Target.Epoch}, nil
	}
	return n.applyLocked(cmd)
}

func (n *simNode) applyLocked(cmd election.Command) (election.Result, error) {
	w, d := n.w, n.dice(actApply)
	if w.leader != n.name || !w.majorityLocked(n.name) || d.chance(w.lossy/2) {
		w.noteLocked(n.name, "writes in vain "+string(cmd.Kind))
		return election.Result{}, errSim
	}
	before := w.state
	after, res := election.ApplyCommand(before, cmd)
	if w.bug != bugLostUpdate || cmd.Begin == nil || d.upto(10) > 0 {
		w.state = after
	}
	w.noteLocked(n.name, "writes "+string(cmd.Kind), res.Epoch, uint64(len(res.Refused)))
	w.checkStateLocked(before, after)
	w.aimLocked(before, after)
	n.setViewLocked()
	if d.chance(w.lossy / 2) {
		return election.Result{}, errSim
	}
	return res, nil
}

// checkStateLocked holds the invariants of the replicated state and of what it promises.
func (w *simWorld) checkStateLocked(before, after *election.State) {
	if after.LastEpoch < before.LastEpoch {
		w.violate("the epoch counter went from %d to %d", before.LastEpoch, after.LastEpoch)
	}
	w.checkSyncLocked(before, after)
	w.checkOperatorLocked(before, after)
	w.checkProofLocked(before, after)
	if after.Intent != nil && after.Intent.To != "" {
		w.targets[after.Intent.Epoch] = after.Intent.To
	}
	if after.Lock == nil || before.Lock != nil && before.Lock.Epoch == after.Lock.Epoch {
		return
	}
	l := after.Lock
	if before.Lock != nil && l.Epoch <= before.Lock.Epoch {
		w.violate("the lock went from epoch %d to %d", before.Lock.Epoch, l.Epoch)
	}
	w.resolveLocked(after)
	w.checkRepointLocked(before, l)
	w.checkAnswersLocked(after)
	if w.entered != nil {
		w.entered(l)
	}
	w.checkSlotsOfLockLocked(l)
	if w.isOff {
		w.checkLossLocked(after)
		return
	}
	wal, lost := w.nodes[l.Holder].pg.wal, 0
	isAccepted := w.isAcceptedLocked(before, after)
	for e := range w.acked {
		if !slices.Contains(wal, e) {
			lost++
			if isAccepted {
				delete(w.acked, e)
			}
		}
	}
	if isAccepted {
		w.lostAccepted += lost
		return
	}
	if lost > 0 {
		w.violate("acknowledged commits lost with %s under epoch %d: %d\n%s", l.Holder, l.Epoch,
			lost, w.dumpLocked())
	}
}

// Observations implements election.Coordinator.
func (n *simNode) Observations() ([]election.Observation, <-chan struct{}) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	var out []election.Observation
	for _, name := range n.w.names {
		if r, ok := n.recv[name]; ok {
			out = append(out, election.Observation{Report: r.report, Age: time.Since(r.at)})
		}
	}
	return out, n.observed
}

// Name implements election.Coordinator.
func (n *simNode) Name() string { return n.name }

// UnplannedChanges implements election.Coordinator; the simulation sets no limit on them.
func (n *simNode) UnplannedChanges() []time.Duration { return nil }

// Timing implements election.Coordinator.
func (n *simNode) Timing() election.Timing { return simTiming() }

func simTiming() election.Timing {
	t, err := election.TimingOf(election.ProfileLAN)
	if err != nil {
		panic(err)
	}
	return t
}

// Now implements election.Coordinator.
func (n *simNode) Now() int64 { return time.Now().UnixNano() }

// Log implements election.Coordinator.
func (n *simNode) Log() *zap.Logger { return zap.NewNop() }

// Call implements election.Coordinator: an order may be lost, be carried out late or twice, or be
// answered in vain.
func (n *simNode) Call(
	ctx context.Context, member string, o election.Order,
) (election.OrderResult, error) {
	w := n.w
	m := w.nodes[member]
	w.noteFollow(member, o)
	d := w.diceOf(n.name, uint64(time.Now().UnixNano()), 90+uint64(m.index))
	d.class = classCall + 2*(4*n.index+m.index) + d.block()
	if err := d.begin(ctx); err != nil {
		return election.OrderResult{}, err
	}
	d.nap(20)
	w.mu.Lock()
	isThere, isUp := w.areConnectedLocked(n.name, member), m.isUp
	fate, delay := d.float(), time.Duration(d.upto(4e9))
	lossy := w.lossy
	w.noteLocked(n.name, "orders "+string(o.Kind)+" of "+member, o.Epoch)
	w.mu.Unlock()
	switch {
	case !isThere || fate < lossy/3:
		<-ctx.Done()
		return election.OrderResult{}, ctx.Err()
	case !isUp:
		return election.OrderResult{}, errSim
	case fate < 2*lossy/3: // late: after the coordinator has given up, perhaps
		w.mu.Lock()
		w.laterLocked(delay, func() { _, _ = m.do(context.Background(), o) })
		w.mu.Unlock()
		<-ctx.Done()
		return election.OrderResult{}, ctx.Err()
	}
	if d.chance(lossy) { // it comes a second time, perhaps when its change is long over
		w.mu.Lock()
		w.laterLocked(3*delay, func() { _, _ = m.do(context.Background(), o) })
		w.mu.Unlock()
	}
	res, err := m.do(ctx, o)
	if fate > 1-lossy/3 {
		<-ctx.Done()
		return election.OrderResult{}, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n.lateTarget != nil && o.Kind == election.OrderPromote {
		_, _ = n.applyLocked(*n.lateTarget)
		n.lateTarget = nil
	}
	if err == nil {
		n.noteRecruitLocked(member, o, &res)
	}
	return res, err
}

// timeline is that of the position: a standby that has not reached the switch point is on the old.
func (s *simServer) timeline() uint32 {
	if len(s.wal) == 0 {
		return 0
	}
	return uint32(s.wal[len(s.wal)-1] >> 32)
}

func (s *simServer) lsn() pgwire.LSN { return pgwire.LSN(100 + len(s.wal)) }

// dumpLocked prints the servers.
func (w *simWorld) dumpLocked() string {
	var b strings.Builder
	for _, name := range w.names {
		pg := w.nodes[name].pg
		fmt.Fprintf(&b, "  %s: %s timeline %d lsn %s upstream %q pledged %d promoted %d\n",
			name, pg.phase, pg.timeline(), pg.lsn(), pg.upstream, pg.pledged, pg.promotedAt)
	}
	return b.String()
}
