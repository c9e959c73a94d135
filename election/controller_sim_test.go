package election_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/election"
)

var (
	simRuns = flag.Int("sim.runs", 0, "number of simulated schedules; 0: a few for each test")
	simSeed = flag.Uint64("sim.seed", 1, "seed of the first schedule")
)

const simTick = 50 * time.Millisecond

// tick lets one step of the world's own time pass: views, agents, replication, leases, clients.
func (w *simWorld) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range w.names {
		n := w.nodes[name]
		if w.majorityLocked(name) && w.rng.IntN(4) > 0 {
			n.setViewLocked()
		}
		n.tickAgentLocked()
	}
	for _, name := range w.names {
		m := w.nodes[name]
		if w.isStreamingLocked(m, false) {
			up := &w.nodes[m.pg.upstream].pg
			upto := min(len(up.wal), len(m.pg.wal)+1+w.rng.IntN(6))
			m.pg.wal = append(m.pg.wal, up.wal[len(m.pg.wal):upto]...)
		}
	}
	for _, name := range w.names {
		w.tickLeaseLocked(w.nodes[name])
		w.tickClientLocked(w.nodes[name])
		w.tickProbeLocked(w.nodes[name])
	}
	w.tickReportsLocked()
}

// tickLeaseLocked renews the lease of a node's proxy, or releases it before an intent.
func (w *simWorld) tickLeaseLocked(p *simNode) {
	if !p.isUp || p.view.Lock == nil {
		return
	}
	if p.view.Intent != nil {
		p.leaseUntil = time.Time{}
		for _, name := range w.names {
			if v := w.nodes[name]; v.isUp && w.reachLocked(p.name, name) {
				delete(v.promises, p.name)
			}
		}
		return
	}
	epoch, granted := p.view.Lock.Epoch, 0
	for _, name := range w.names {
		v := w.nodes[name]
		if v.isUp && w.reachLocked(p.name, name) && v.endorsed <= epoch {
			v.promises[p.name] = simPromise{epoch, time.Now().Add(simTP)}
			granted++
		}
	}
	if granted > len(w.names)/2 {
		p.leaseEpoch, p.leaseUntil = epoch, time.Now().Add(simTL)
	}
}

// tickClientLocked writes through a node's proxy, and acknowledges what is durable.
func (w *simWorld) tickClientLocked(p *simNode) {
	if !p.isUp || p.view.Lock == nil {
		return
	}
	l := p.view.Lock
	holder := w.nodes[l.Holder]
	mayUse := p.leaseEpoch == l.Epoch && time.Now().Before(p.leaseUntil) || w.isFenceless
	incarnation := holder.resultLocked().Incarnation
	isRight := l.Incarnation == incarnation || w.bug == bugSameEpoch
	if mayUse && isRight && holder.pg.phase == election.PhasePrimary && holder.pg.isOpen &&
		w.reachLocked(p.name, l.Holder) {
		if was, ok := w.used[l.Epoch]; ok && was != incarnation {
			w.violate("clients use %s and %s under epoch %d", was, incarnation, l.Epoch)
		}
		w.used[l.Epoch] = incarnation
		if l.Epoch < w.ackedEpoch && !w.isFenceless {
			w.violate("clients read under epoch %d after %d acknowledged", l.Epoch, w.ackedEpoch)
		}
		e := w.entryLocked(holder.pg.timeline())
		holder.pg.wal = append(holder.pg.wal, e)
		c := simCommit{entry: e, index: len(holder.pg.wal), epoch: l.Epoch, proxy: p.name}
		holder.pg.pending = append(holder.pg.pending, c)
	}
	w.ackLocked(holder)
}

// ackLocked answers the commits that the standbys have which the server waits for.
func (w *simWorld) ackLocked(primary *simNode) {
	var rest []simCommit
	for _, c := range primary.pg.pending {
		if !w.isDurableLocked(primary, c.index) || primary.pg.phase != election.PhasePrimary {
			rest = append(rest, c)
			continue
		}
		p := w.nodes[c.proxy]
		hasLease := p.leaseEpoch == c.epoch && time.Now().Before(p.leaseUntil)
		if !p.isUp || !w.reachLocked(c.proxy, primary.name) || !hasLease && !w.isFenceless {
			continue
		}
		if c.epoch < w.ackedEpoch && !w.isFenceless {
			w.violate("epoch %d acknowledges after %d", c.epoch, w.ackedEpoch)
		}
		w.ackedEpoch = max(w.ackedEpoch, c.epoch)
		w.acked[c.entry] = true
	}
	primary.pg.pending = rest
}

// tickProbeLocked is what a node sees of the primary.
func (w *simWorld) tickProbeLocked(n *simNode) {
	if n.view.Lock == nil {
		return
	}
	holder := w.nodes[n.view.Lock.Holder]
	probe := election.ProbeRefused
	switch {
	case !w.reachLocked(n.name, holder.name):
		probe = election.ProbeTimeout
	case holder.pg.phase == election.PhasePrimary || holder.pg.phase == election.PhaseStandby:
		probe = election.ProbeOK
	}
	if probe != n.probe || n.probeEpoch != n.view.Lock.Epoch {
		n.probe, n.probeEpoch, n.probeCount = probe, n.view.Lock.Epoch, 0
	}
	n.probeCount++
}

func (w *simWorld) tickReportsLocked() {
	l, ok := w.nodes[w.leader]
	if !ok {
		return
	}
	for _, name := range w.names {
		n := w.nodes[name]
		if !n.isUp || !w.reachLocked(l.name, name) || w.rng.IntN(3) == 0 {
			continue
		}
		r := election.Report{V: 1, Node: name, Epoch: n.probeEpoch, Probe: n.probe,
			ProbeCount: n.probeCount}
		r.Member = election.MemberStatus{
			Name: name, Phase: n.pg.phase, Incarnation: n.resultLocked().Incarnation,
			Timeline: n.pg.timeline(), LSN: n.pg.lsn(), Pledged: n.pg.pledged,
			Streaming: w.isStreamingLocked(n, false), Upstream: n.pg.upstream + ":5432",
		}
		n.reportSyncLocked(&r)
		l.recv[name] = simReport{r, time.Now()}
	}
	close(l.observed)
	l.observed = make(chan struct{})
}

// simRun is one schedule.
type simRun struct {
	w           *simWorld
	controllers map[string]*election.Controller
	cancel      context.CancelFunc
	done        chan struct{}
}

// lead makes a node that reaches a majority the leader; the old one ends first or overlaps.
func (r *simRun) lead(isOverlap bool) {
	oldCancel, oldDone := r.cancel, r.done
	r.w.mu.Lock()
	var able []string
	for _, name := range r.w.names {
		if r.w.majorityLocked(name) {
			able = append(able, name)
		}
	}
	next := ""
	if len(able) > 0 {
		next = able[r.w.rng.IntN(len(able))]
	}
	if next == r.w.leader {
		isOverlap = false // one controller never leads twice at once
	}
	r.w.leader = next
	r.w.mu.Unlock()
	if oldCancel != nil && !isOverlap {
		oldCancel()
		<-oldDone
	}
	if next != "" {
		n := r.w.nodes[next]
		r.w.mu.Lock()
		n.recv, n.lateTarget = map[string]simReport{}, nil
		n.setViewLocked()
		r.w.mu.Unlock()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		r.cancel, r.done = cancel, done
		go func() {
			defer close(done)
			r.controllers[next].RunLeader(ctx)
		}()
	} else {
		r.cancel, r.done = nil, nil
	}
	if oldCancel != nil && isOverlap {
		time.Sleep(100 * time.Millisecond)
		oldCancel()
		<-oldDone
	}
}

// simPolicy is the policy under test, with short bounds.
func simPolicy(bug simBug) election.Policy {
	p := election.DefaultPolicy(simTiming())
	p.ReportFresh, p.EndorseTimeout = 600*time.Millisecond, 4*time.Second
	p.RecruitTimeout, p.PromoteTimeout = time.Second, 2*time.Second
	p.StopTimeout, p.StartTimeout, p.CheckpointTimeout = time.Second, 2*time.Second, time.Second
	p.DrainTimeout, p.ApplyTimeout, p.MaxChanges = time.Second, time.Second, 1000
	p.BootstrapTimeout = 2 * time.Second
	p.SyncDegradeAfter, p.SyncReturnAfter = time.Second, 200*time.Millisecond
	if bug == bugFewRecruits {
		p.SyncMode = election.SyncOff
	}
	return p
}

// fault does one bad thing, or ends one.
func (r *simRun) fault() string {
	w := r.w
	w.mu.Lock()
	name := w.names[w.rng.IntN(len(w.names))]
	n := w.nodes[name]
	kind := w.rng.IntN(14)
	what, q := "", election.Request{}
	switch kind {
	case 0, 1, 2:
		what = "server of " + name + " killed"
		if w.state.Lock != nil && kind > 0 {
			n = w.nodes[w.state.Lock.Holder]
			what = "server of the primary " + n.name + " killed"
		}
		n.killLocked()
	case 3:
		n.isUp = !n.isUp
		what = fmt.Sprintf("node %s up: %t", name, n.isUp)
	case 4:
		n.isUp = !n.isUp
		if !n.isUp {
			n.killLocked()
		}
		what = fmt.Sprintf("node and server %s up: %t", name, n.isUp)
	case 5, 6:
		n.isCut = !n.isCut
		what = fmt.Sprintf("%s cut off: %t", name, n.isCut)
	case 7:
		n.isSlow = !n.isSlow
		what = fmt.Sprintf("%s slow: %t", name, n.isSlow)
	case 8, 9, 10:
		q = w.requestLocked(name)
		what = fmt.Sprintf("asked for: %s %s, lossy: %t", q.Kind, q.Member, q.AcceptLoss)
	case 11:
		what = w.maintainLocked()
	default:
		what = "new leader"
	}
	isLost := w.leader != "" && !w.majorityLocked(w.leader) || w.leader == ""
	leader := w.leader
	w.mu.Unlock()
	if q.Kind != "" && leader != "" {
		r.askLater(leader, q)
	}
	if kind >= 12 || isLost {
		r.lead(kind == 12)
	}
	return what
}

func (n *simNode) killLocked() {
	if n.pg.phase == election.PhasePrimary || n.pg.phase == election.PhaseStandby {
		n.pg.phase, n.pg.isClean, n.pg.isOpen = election.PhaseStopped, false, false
		n.pg.pending = nil
		// A standby keeps what it flushed, a primary all that it wrote.
	}
}

// heal ends all faults.
func (r *simRun) heal() {
	r.w.mu.Lock()
	r.w.lossy = 0
	for _, n := range r.w.nodes {
		n.isUp, n.isCut, n.isSlow = true, false, false
		if n.pg.phase == election.PhaseStopped && n.pg.promotedAt == 0 {
			n.pg.phase = election.PhaseStandby // agents start standbys
			n.pg.incarnation++
		}
	}
	r.w.mu.Unlock()
	r.lead(false)
	r.endMaintenance()
}

// isSettled tells that one primary serves, and newly acknowledged commits come.
func (r *simRun) isSettled(from int) bool {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.Lock == nil || w.state.Intent != nil || len(w.acked) < from+20 {
		return false
	}
	primaries := 0
	for _, n := range w.nodes {
		if n.pg.phase == election.PhasePrimary {
			primaries++
		}
	}
	return primaries == 1
}

func newSimRun(seed uint64, bug simBug) *simRun {
	r := &simRun{w: newSimWorld(seed, bug), controllers: map[string]*election.Controller{}}
	for name, n := range r.w.nodes {
		p := simPolicy(bug)
		if p.SyncMode != election.SyncOff {
			p.SyncMode = simMode(seed)
		}
		r.controllers[name] = election.NewController(n, p)
	}
	return r
}

// start lets the world's time pass; the returned function ends everything and waits for it.
func (r *simRun) start() (end func()) {
	stop := make(chan struct{})
	var clock sync.WaitGroup
	clock.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(simTick):
				r.w.tick()
			}
		}
	})
	return func() {
		if r.cancel != nil {
			r.cancel()
			<-r.done
		}
		r.w.late.Wait()
		close(stop)
		clock.Wait()
	}
}

// runSim runs one schedule in a bubble of its own time and returns what went wrong.
func runSim(t *testing.T, seed uint64, bug simBug) (wrong []string, story string,
	history []election.Change, w *simWorld) {
	synctest.Test(t, func(*testing.T) {
		r := newSimRun(seed, bug)
		end := r.start()
		wrong, story = r.run()
		end()
		history, w = r.w.state.History, r.w
	})
	return wrong, story, history, w
}

func (r *simRun) run() ([]string, string) {
	w := r.w
	var story strings.Builder
	start := time.Now()
	r.lead(false)
	r.waitSettled(10*time.Second, 0)
	w.mu.Lock()
	w.lossy = []float64{0, 0.1, 0.3}[w.rng.IntN(3)]
	steps := 5 + w.rng.IntN(25)
	w.mu.Unlock()
	for range steps {
		time.Sleep(time.Duration(w.random(1500)) * time.Millisecond)
		fmt.Fprintf(&story, "%6dms %s\n", time.Since(start).Milliseconds(), r.fault())
	}
	r.heal()
	fmt.Fprintf(&story, "%6dms healed\n", time.Since(start).Milliseconds())
	w.mu.Lock()
	from := len(w.acked)
	w.mu.Unlock()
	isSettled := r.waitSettled(60*time.Second, from)
	w.mu.Lock()
	defer w.mu.Unlock()
	wrong := slices.Clone(w.violations)
	if !isSettled {
		d := election.Decision{}
		if c := r.controllers[w.leader]; c != nil {
			d = c.LastDecision()
		}
		wrong = append(wrong, fmt.Sprintf("not settled: %s: %s; lock %+v", w.leader, d.Summary,
			w.state.Lock))
		wrong = append(wrong, w.dumpLocked())
	}
	for _, h := range w.state.History {
		fmt.Fprintf(&story, "  lock %d %s %s: %s\n", h.Lock.Epoch, h.Kind, h.Lock.Holder, h.Cause)
	}
	return wrong, story.String()
}

func (r *simRun) waitSettled(limit time.Duration, from int) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(simTick) {
		if r.isSettled(from) {
			return true
		}
	}
	return false
}

// TestControllerSimulation runs seeded schedules of faults against the real Controller. A failure
// prints its seed; -sim.seed=N -sim.runs=1 runs it again (the interleaving of goroutines may
// differ).
func TestControllerSimulation(t *testing.T) {
	runs := 2000
	if testing.Short() {
		runs = 200
	}
	if *simRuns > 0 {
		runs = *simRuns
	}
	kinds := map[election.IntentKind]int{}
	degraded, changedSync, lost, asked := 0, 0, 0, simAsked{}
	for i := range runs {
		seed := *simSeed + uint64(i)
		wrong, story, history, w := runSim(t, seed, bugNone)
		degraded, changedSync = degraded+w.degraded, changedSync+w.changedSync
		lost += w.lostAccepted
		asked.add(w.asked)
		for _, h := range history {
			kinds[h.Kind]++
		}
		if len(wrong) > 0 {
			t.Fatalf("seed %d:\n%s\n%s", seed, strings.Join(wrong, "\n"), story)
		}
		if *simRuns == 1 {
			fmt.Fprint(os.Stderr, story)
		}
	}
	t.Logf("%d schedules, changes of the lock: %v, of the sync set: %d, degraded: %d; an operator "+
		"got %v and accepted the loss of %d commits", runs, kinds, changedSync, degraded, asked, lost)
	asked.check(t, runs)
	if runs >= 100 && degraded < runs/20 {
		t.Error("the schedules hardly degrade")
	}
	for _, k := range []election.IntentKind{
		election.IntentBootstrap, election.IntentFailover, election.IntentSwitchover,
		election.IntentRestart,
	} {
		if runs >= 100 && kinds[k] < runs/20 {
			t.Errorf("the schedules hardly reach kind %s", k)
		}
	}
}

// TestSimulationFindsBugs shows that the invariants bite.
func TestSimulationFindsBugs(t *testing.T) {
	want := map[simBug]string{
		bugFewRecruits:   "acknowledged commits lost",
		bugTargetLate:    "the durable target is",
		bugIgnoresPledge: "below its pledge",
		bugSameEpoch:     "clients use",
		bugNoEndorsement: "clients read under epoch",
		bugNoRecord:      "acknowledged commits lost",
		bugMaintenance:   "by itself in maintenance",
		bugAnyone:        "an operator asked for",
		bugNoStop:        "that was asked for ends with",
	}
	for bug, text := range want {
		t.Run(strings.ReplaceAll(string(bug), " ", "_"), func(t *testing.T) {
			for i := range 3000 {
				wrong, _, _, _ := runSim(t, uint64(1+i), bug)
				if strings.Contains(strings.Join(wrong, "\n"), text) {
					t.Logf("found in schedule %d: %s", i+1, wrong[0])
					return
				}
			}
			t.Errorf("not found: %s", bug)
		})
	}
}
