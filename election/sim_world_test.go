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
)

// The model's lease: T_L, and T_P of a promise.
const (
	simTL = 2 * time.Second
	simTP = 2500 * time.Millisecond
)

// simWorld is a model of the whole group: one replicated state, agents with a WAL made of numbered
// entries, proxies that write under leases, and a network. mu guards all of it.
type simWorld struct {
	mu    sync.Mutex
	rng   *rand.Rand
	bug   simBug
	state *election.State
	nodes map[string]*simNode
	names []string
	// leader leads the group; "" while nobody does.
	leader string
	// lossy is the share of messages that are lost, late or answered in vain.
	lossy float64
	// isFenceless makes proxies ignore their leases: recruiting alone must then protect
	// acknowledged commits.
	isFenceless bool

	nextEntry  uint64
	acked      map[uint64]bool
	ackedEpoch uint64
	used       map[uint64]string // epoch -> incarnation that clients used
	targets    map[uint64]string // epoch -> durable target
	violations []string
	// degraded and changedSync count the entries of the sync set.
	degraded, changedSync int
	// asked counts what an operator got, lostAccepted the commits that were lost by consent.
	asked        simAsked
	lostAccepted int
	// consent has the member that an operator accepted a loss for, by the epoch that it replaces.
	consent      map[uint64]string
	maintainedAt time.Time
	late         sync.WaitGroup // messages that are still under way
}

// simNode is one node: voter, agent, PostgreSQL and proxy; it is the Coordinator of its controller.
type simNode struct {
	w    *simWorld
	name string
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
	// The proxy's lease and the voter's endorsement and promises.
	leaseEpoch uint64
	leaseUntil time.Time
	endorsed   uint64
	promises   map[string]simPromise
	lateTarget *election.Command
}

type simReport struct {
	report election.Report
	at     time.Time
}

type simPromise struct {
	epoch uint64
	until time.Time
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
	sync          simSync
}

type simCommit struct {
	entry uint64
	index int
	epoch uint64
	proxy string
}

func newSimWorld(seed uint64, bug simBug) *simWorld {
	w := &simWorld{
		rng: rand.New(rand.NewPCG(seed, 7)), bug: bug, nodes: map[string]*simNode{},
		acked: map[uint64]bool{}, used: map[uint64]string{}, targets: map[uint64]string{},
		names: []string{"pg1", "pg2", "pg3"}, nextEntry: 1, asked: simAsked{},
		consent: map[uint64]string{},
	}
	w.isFenceless = seed%3 == 0
	w.state = &election.State{V: 1}
	for _, n := range w.names {
		w.state.Members = append(w.state.Members, election.Member{Name: n, Postgres: n + ":5432"})
	}
	for _, n := range w.names {
		w.nodes[n] = &simNode{
			w: w, name: n, isUp: true, view: w.state, changed: make(chan struct{}),
			observed: make(chan struct{}), recv: map[string]simReport{},
			promises: map[string]simPromise{}, pg: simServer{phase: election.PhaseEmpty},
			pgBusy: make(chan struct{}, 1),
		}
	}
	return w
}

func (w *simWorld) violate(format string, args ...any) {
	w.violations = append(w.violations, fmt.Sprintf(format, args...))
}

// reachLocked tells that a's messages get to b's host.
func (w *simWorld) reachLocked(a, b string) bool {
	return a == b || !w.nodes[a].isCut && !w.nodes[b].isCut
}

func (w *simWorld) majorityLocked(of string) bool {
	n := 0
	for _, b := range w.names {
		if w.nodes[b].isUp && w.reachLocked(of, b) {
			n++
		}
	}
	return w.nodes[of].isUp && n > len(w.names)/2
}

// setViewLocked shows a node the newest state.
func (n *simNode) setViewLocked() {
	if n.view != n.w.state {
		if n.view.LastEpoch > n.w.state.LastEpoch {
			n.w.violate("%s saw epoch %d before %d", n.name, n.view.LastEpoch, n.w.state.LastEpoch)
		}
		n.view = n.w.state
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
	case bugMaintenance, bugAnyone:
		return n.withoutOperatorLocked(), n.changed
	}
	return n.view, n.changed
}

var errSim = errors.New("simulated fault")

// Apply implements election.Coordinator: the write may be lost, or land without an answer.
func (n *simNode) Apply(_ context.Context, cmd election.Command) (election.Result, error) {
	w := n.w
	time.Sleep(time.Duration(w.random(20)) * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	if cmd.Target != nil && w.bug == bugTargetLate {
		n.lateTarget = &cmd
		return election.Result{V: 1, Epoch: cmd.Target.Epoch}, nil
	}
	return n.applyLocked(cmd)
}

func (n *simNode) applyLocked(cmd election.Command) (election.Result, error) {
	w := n.w
	if w.leader != n.name || !w.majorityLocked(n.name) || w.rng.Float64() < w.lossy/2 {
		return election.Result{}, errSim
	}
	before := w.state
	after, res := election.ApplyCommand(before, cmd)
	w.state = after
	w.checkStateLocked(before, after)
	n.setViewLocked()
	if w.rng.Float64() < w.lossy/2 {
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

// EndorseAll implements election.Coordinator: voters endorse once their promises have ended.
func (n *simNode) EndorseAll(ctx context.Context, epoch uint64) error {
	for ctx.Err() == nil {
		if n.endorsedBy(epoch) || n.w.bug == bugNoEndorsement {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return ctx.Err()
}

func (n *simNode) endorsedBy(epoch uint64) bool {
	w := n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	count := 0
	for _, name := range w.names {
		v := w.nodes[name]
		if !v.isUp || !w.reachLocked(n.name, name) {
			continue
		}
		isFree := true
		for _, p := range v.promises {
			isFree = isFree && (p.epoch >= epoch || time.Now().After(p.until))
		}
		if v.endorsed < epoch && isFree && v.view.LastEpoch >= epoch {
			v.endorsed = epoch
		}
		if v.endorsed >= epoch {
			count++
		}
	}
	return count > len(w.names)/2
}

// Call implements election.Coordinator: an order may be lost, be carried out late, or be answered
// in vain.
func (n *simNode) Call(
	ctx context.Context, member string, o election.Order,
) (election.OrderResult, error) {
	w := n.w
	time.Sleep(time.Duration(1+w.random(20)) * time.Millisecond)
	w.mu.Lock()
	m := w.nodes[member]
	isThere, isUp := w.reachLocked(n.name, member), m.isUp
	fate, delay := w.rng.Float64(), time.Duration(w.rng.IntN(4000))*time.Millisecond
	lossy := w.lossy
	w.mu.Unlock()
	switch {
	case !isThere || fate < lossy/3:
		<-ctx.Done()
		return election.OrderResult{}, ctx.Err()
	case !isUp:
		return election.OrderResult{}, errSim
	case fate < 2*lossy/3: // late: after the coordinator has given up, perhaps
		w.late.Go(func() {
			time.Sleep(delay)
			_, _ = m.do(context.Background(), o)
		})
		<-ctx.Done()
		return election.OrderResult{}, ctx.Err()
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
	return res, err
}

func (w *simWorld) random(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
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
