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

// simTick is no multiple of a millisecond: what the product does every so often since a tick
// never happens at another tick.
const simTick = 50*time.Millisecond + 13*time.Microsecond

// simLag is the longest time, in milliseconds, from a look at the clock to the effect: reachTime.
const simLag = 99

// tick lets one step of the world's own time pass: views, agents, replication, leases, clients.
func (w *simWorld) tick() {
	w.tickProcesses()
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
		if w.isStreamingLocked(m, false) && m.pg.disk.state == "" {
			up := &w.nodes[m.pg.upstream].pg
			upto := min(len(up.wal), len(m.pg.wal)+1+w.rng.IntN(6))
			m.pg.wal = append(m.pg.wal, up.wal[len(m.pg.wal):upto]...)
		}
	}
	for _, name := range w.names {
		w.tickClientLocked(w.nodes[name])
		w.tickProbeLocked(w.nodes[name])
	}
	w.tickSlotsLocked()
	w.checkLeasesLocked()
	w.tickReportsLocked()
	w.noteAllLocked()
}

// tickClientLocked writes through a node's proxy, and acknowledges what is durable.
func (w *simWorld) tickClientLocked(p *simNode) {
	if !p.isAwakeLocked() || p.view.Lock == nil {
		return
	}
	l := p.view.Lock
	holder := w.nodes[l.Holder]
	lag := w.jitterLocked(simLag)
	hasLease := w.hasLeaseLocked(p, l.Epoch, lag)
	if hasLease {
		w.noteUse(p, l.Epoch, lag)
	}
	mayUse := hasLease || w.isFenceless
	incarnation := holder.resultLocked().Incarnation
	isRight := l.Incarnation == incarnation || w.bug == bugSameEpoch
	if mayUse && isRight && holder.pg.phase == election.PhasePrimary && holder.pg.isOpen &&
		w.areConnectedLocked(p.name, l.Holder) {
		w.noteLocked(p.name, "uses", l.Epoch)
		if was, ok := w.used[l.Epoch]; ok && was != incarnation {
			w.violate("clients use %s and %s under epoch %d", was, incarnation, l.Epoch)
		}
		w.used[l.Epoch] = incarnation
		if l.Epoch < w.ackedEpoch && !w.isFenceless && !w.waived[l.Epoch] {
			w.violate("clients read under epoch %d after %d acknowledged", l.Epoch, w.ackedEpoch)
		}
		if holder.writesLocked() {
			c := simCommit{entry: holder.writeLocked(), epoch: l.Epoch, proxy: p.name}
			c.index, c.xid = len(holder.pg.wal), w.xids[c.entry]
			holder.pg.pending = append(holder.pg.pending, c)
		}
	}
	w.ackLocked(holder)
}

// ackLocked answers the commits that the standbys have which the server waits for.
func (w *simWorld) ackLocked(primary *simNode) {
	rest := primary.pg.pending[:0]
	for _, c := range primary.pg.pending {
		if !w.isDurableLocked(primary, c.index) || primary.pg.phase != election.PhasePrimary {
			rest = append(rest, c)
			continue
		}
		p := w.nodes[c.proxy]
		hasLease := w.hasLeaseLocked(p, c.epoch, w.jitterLocked(simLag)) || w.isFenceless
		if !p.isAwakeLocked() || !w.areConnectedLocked(c.proxy, primary.name) || !hasLease {
			w.doubtful = append(w.doubtful, c)
			continue
		}
		w.noteLocked(c.proxy, "acknowledges", c.epoch, c.entry)
		w.checkLateLocked(c)
		w.ackedEpoch = max(w.ackedEpoch, c.epoch)
		w.acked[c.entry] = true
		if w.isOff {
			w.ackedWhole[c.entry] = c
		}
	}
	primary.pg.pending = rest
}

// tickProbeLocked is what a node sees of the primary.
func (w *simWorld) tickProbeLocked(n *simNode) {
	if n.view.Lock == nil || !n.isAwakeLocked() {
		return
	}
	holder := w.nodes[n.view.Lock.Holder]
	probe := election.ProbeRefused
	switch {
	case !w.areConnectedLocked(n.name, holder.name):
		probe = election.ProbeTimeout
	case w.rng.Float64() < w.lossy/2:
		probe = election.ProbeTimeout
	case holder.pg.phase == election.PhasePrimary || holder.pg.phase == election.PhaseStandby:
		probe = election.ProbeOK
	}
	if probe != n.probe || n.probeEpoch != n.view.Lock.Epoch {
		w.noteLocked(n.name, "probes "+string(probe), n.view.Lock.Epoch)
		n.probe, n.probeEpoch, n.probeCount = probe, n.view.Lock.Epoch, 0
	}
	n.probeCount++
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
		simSleep(0, classFaults)
	}
	if next != "" {
		n := r.w.nodes[next]
		r.w.mu.Lock()
		n.recv, n.lateTarget = map[string]simReport{}, nil
		n.forgetRecruitsLocked()
		n.setViewLocked()
		r.w.mu.Unlock()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		r.cancel, r.done = cancel, done
		go func() {
			defer close(done)
			simSleep(0, classLead+n.index) // its ticks come at no moment of a fault
			r.controllers[next].RunLeader(ctx)
		}()
	} else {
		r.cancel, r.done = nil, nil
	}
	if oldCancel != nil && isOverlap {
		simSleep(100*time.Millisecond, classFaults)
		oldCancel()
		<-oldDone
		simSleep(0, classFaults)
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
	for _, name := range r.w.names {
		n, p := r.w.nodes[name], simPolicy(bug)
		if p.SyncMode != election.SyncOff {
			p.SyncMode = simMode(seed)
		}
		p.Fence = r.w.fence
		r.controllers[name] = election.NewController(n, p)
	}
	r.w.said = func() election.Decision {
		if c := r.controllers[r.w.leader]; c != nil {
			return c.LastDecision()
		}
		return election.Decision{}
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
		r.w.mu.Lock()
		r.w.isOver = true
		for _, name := range r.w.names {
			r.w.nodes[name].endProcessLocked()
		}
		r.w.mu.Unlock()
		r.w.late.Wait()
		close(stop)
		clock.Wait()
	}
}

// runSim runs one schedule in a bubble of its own time and returns what went wrong.
func runSim(t *testing.T, seed uint64, bug simBug, prepare ...func(*simWorld)) (
	wrong []string, story string, history []election.Change, w *simWorld,
) {
	synctest.Test(t, func(*testing.T) {
		r := newSimRun(seed, bug)
		for _, f := range prepare {
			f(r.w)
		}
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
	w.nap(40) // out of step with the world, so that no two things happen at one moment
	r.lead(false)
	r.waitSettled(10*time.Second, 0)
	w.mu.Lock()
	w.lossy, w.isFaulty = []float64{0, 0.1, 0.3}[w.rng.IntN(3)], true
	settled := w.state.Lock
	steps := 4 + w.rng.IntN(16)
	w.mu.Unlock()
	for range steps {
		w.nap(1200)
		what := r.fault()
		w.mu.Lock()
		w.noteLocked("fault", what)
		w.mu.Unlock()
		fmt.Fprintf(&story, "%6dms %s\n", time.Since(start).Milliseconds(), what)
	}
	w.mu.Lock()
	if w.isMild && w.state.Lock != settled {
		w.violate("roles changed under faults below the thresholds: %+v", w.state.Lock)
	}
	w.isFaulty = false
	w.mu.Unlock()
	w.nap(40)
	r.heal()
	fmt.Fprintf(&story, "%6dms healed\n", time.Since(start).Milliseconds())
	w.mu.Lock()
	from := len(w.acked)
	w.mu.Unlock()
	isSettled := r.waitSettled(60*time.Second, from)
	hung := ""
	if isSettled && w.seed%6 == 4 {
		hung = r.resigns()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	wrong := slices.Clone(w.violations)
	if hung != "" {
		wrong = append(wrong, hung, w.dumpLocked())
	}
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
// prints its seed; -sim.seed=N -sim.runs=1 runs it again.
func TestControllerSimulation(t *testing.T) {
	runs := 2000
	if testing.Short() {
		runs = 200
	}
	if *simRuns > 0 {
		runs = *simRuns
	}
	defer oneThread()()
	kinds := map[election.IntentKind]int{}
	degraded, changedSync, lost, waived, asked := 0, 0, 0, 0, simAsked{}
	lostOff, resigned := 0, 0
	for i := range runs {
		seed := *simSeed + uint64(i)
		wrong, story, history, w := runSim(t, seed, bugNone)
		degraded, changedSync = degraded+w.degraded, changedSync+w.changedSync
		lost, waived = lost+w.lostAccepted, waived+len(w.waived)
		asked.add(w.asked)
		lostOff, resigned = lostOff+w.lost, resigned+w.resigned
		for _, h := range history {
			kinds[h.Kind]++
		}
		if len(wrong) > 0 {
			t.Fatalf("seed %d:\n%s\n%s\nagain: go test -tags hashicorpmetrics ./election "+
				"-run ControllerSimulation -sim.runs=1 -sim.seed=%d", seed,
				strings.Join(wrong, "\n"), story, seed)
		}
		if *simRuns == 1 {
			fmt.Fprint(os.Stderr, story)
		}
	}
	t.Logf("%d schedules, changes of the lock: %v, of the sync set: %d, degraded: %d; an operator "+
		"got %v and accepted the loss of %d commits; lost without synchronous replication: %d; "+
		"primaries replaced for their data disk at last: %d", runs, kinds, changedSync, degraded,
		asked, lost, lostOff, resigned)
	asked.check(t, runs)
	if runs >= 1000 && (lostOff < runs/100 || resigned < runs/20) {
		t.Error("the schedules hardly lose commits, or hardly spoil data disks at last")
	}
	if runs >= 100 && waived < runs/20 {
		t.Error("the schedules hardly waive promises")
	}
	if runs >= 100 && degraded < runs/200 {
		t.Error("the schedules hardly degrade")
	}
	for _, k := range []election.IntentKind{
		election.IntentBootstrap, election.IntentFailover, election.IntentSwitchover,
		election.IntentRestart,
	} {
		if runs >= 200 && kinds[k] < runs/50 {
			t.Errorf("the schedules hardly reach kind %s", k)
		}
	}
}
