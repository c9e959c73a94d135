package election_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/election"
)

// simCut cuts the way of clients and of probes to a primary, which the nodes' own traffic does not
// take: its node reports as ever.
type simCut struct {
	mu     sync.Mutex
	from   time.Time
	holder string // whom the cut is about; "*": whoever is the primary
	seen   int    // entries of the history that were looked at
	heals  bool   // it ends when a checkpoint is ordered
	ages   []time.Time
}

// cutView is a node as the controller of a group with such a cut sees it.
type cutView struct {
	*simNode
	cut *simCut
}

// Observations implements election.Coordinator.
func (v cutView) Observations() ([]election.Observation, <-chan struct{}) {
	obs, changed := v.simNode.Observations()
	s, _ := v.State()
	v.cut.mu.Lock()
	defer v.cut.mu.Unlock()
	v.cut.noteLocked(s)
	if s.Lock == nil || v.cut.from.IsZero() || v.cut.holder != "*" && v.cut.holder != s.Lock.Holder {
		return obs, changed
	}
	for i := range obs {
		o := &obs[i]
		if o.Node == s.Lock.Holder || o.Epoch != s.Lock.Epoch {
			continue
		}
		o.Probe, o.ProbeCount, o.BlindFor = election.ProbeTimeout, 50, time.Since(v.cut.from)
		for _, name := range v.w.names {
			if name != o.Node && name != s.Lock.Holder {
				o.Reaches = append(o.Reaches, name)
			}
		}
	}
	return obs, changed
}

// Call implements election.Coordinator.
func (v cutView) Call(ctx context.Context, member string, o election.Order,
) (election.OrderResult, error) {
	v.cut.mu.Lock()
	if v.cut.heals && o.Kind == election.OrderCheckpoint {
		v.cut.from, v.cut.heals = time.Time{}, false
	}
	v.cut.mu.Unlock()
	return v.simNode.Call(ctx, member, o)
}

// UnplannedChanges implements election.Coordinator: the limit is part of these tests.
func (v cutView) UnplannedChanges() []time.Duration {
	v.cut.mu.Lock()
	defer v.cut.mu.Unlock()
	var out []time.Duration
	for _, at := range v.cut.ages {
		out = append(out, time.Since(at))
	}
	return out
}

func (c *simCut) noteLocked(s *election.State) {
	for ; c.seen < len(s.History); c.seen++ {
		if h := s.History[c.seen]; !h.Asked && h.Kind != election.IntentBootstrap {
			c.ages = append(c.ages, time.Now())
		}
		if c.holder == "*" {
			c.from = time.Now()
		}
	}
}

// begin cuts the way to holder from now on.
func (c *simCut) begin(holder string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from, c.holder = time.Now(), holder
}

// cutAfter is Policy.CutAfter of these tests: longer than simPolicy's SyncDegradeAfter.
const cutAfter = 3 * time.Second

// cutGroup runs f against a group with a primary and no faults.
func cutGroup(t *testing.T, mode string, f func(r *simRun, c *simCut, old election.Lock)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r, c := newSimRun(1, bugNone), &simCut{}
		for name, n := range r.w.nodes {
			p := simPolicy(bugNone)
			p.SyncMode, p.CutAfter = mode, cutAfter
			r.controllers[name] = election.NewController(cutView{n, c}, p)
		}
		end := r.start()
		r.lead(false)
		if !r.waitSettled(10*time.Second, 0) {
			t.Error("no primary")
		}
		f(r, c, r.newest().Lock)
		end()
		for _, v := range r.w.violations {
			t.Error(v)
		}
	})
}

func (r *simRun) historyNow() []election.Change {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return slices.Clone(r.w.state.History)
}

// holdStreams keeps all standbys from streaming, or lets them.
func (r *simRun) holdStreams(isHeld bool) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	for _, n := range r.w.nodes {
		n.isSlow = isHeld
	}
}

// awaitChange waits until the lock is another one than old.
func (r *simRun) awaitChange(limit time.Duration, old election.Lock) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(simTick) {
		if r.newest().Lock.Epoch != old.Epoch {
			return true
		}
	}
	return false
}

// TestCutOffPrimaryIsSwitched: the primary lives and most proxies cannot reach it, while standbys
// stream: after the hysteresis it is switched in order to one that they reach, once, and for good.
func TestCutOffPrimaryIsSwitched(t *testing.T) {
	cutGroup(t, election.SyncQuorum, func(r *simRun, c *simCut, old election.Lock) {
		begun := time.Now()
		c.begin(old.Holder)
		if !r.awaitChange(20*time.Second, old) {
			t.Errorf("no change: %s", r.controllers[r.w.leader].LastDecision().Summary)
			return
		}
		h := r.newest()
		if took := time.Since(begun); took < cutAfter || h.Kind != election.IntentSwitchover ||
			h.Lock.Holder == old.Holder || h.Asked || !strings.Contains(h.Cause, "cut off") {
			t.Errorf("after %s: %+v", took, h)
		}
		if !r.waitSettled(20*time.Second, r.ackedNow()) {
			t.Error("not settled")
		}
		time.Sleep(5 * time.Minute)
		if now := r.newest(); now.Lock.Epoch != h.Lock.Epoch {
			t.Errorf("changed again: %+v", now)
		}
	})
}

// TestCutOffPrimaryIsReachedAgain: the checkpoint before the change takes longer than the fault.
// The primary is not moved for what is over.
func TestCutOffPrimaryIsReachedAgain(t *testing.T) {
	cutGroup(t, election.SyncQuorum, func(r *simRun, c *simCut, old election.Lock) {
		c.heals = true
		c.begin(old.Holder)
		if r.awaitChange(time.Minute, old) {
			t.Errorf("changed: %+v", r.newest())
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.heals {
			t.Error("no checkpoint was ordered")
		}
	})
}

// TestCutOffPrimaryWithoutStandbys: standbys are cut off, too. Where commits wait for them, they go
// on waiting, which alone allows the failover that comes; nothing acknowledged is lost.
func TestCutOffPrimaryWithoutStandbys(t *testing.T) {
	cutGroup(t, election.SyncQuorum, func(r *simRun, c *simCut, old election.Lock) {
		c.begin(old.Holder)
		r.holdStreams(true)
		if !r.awaitChange(20*time.Second, old) {
			t.Errorf("no change: %s", r.controllers[r.w.leader].LastDecision().Summary)
			return
		}
		r.holdStreams(false)
		h := r.newest()
		if h.Kind != election.IntentFailover || h.Lock.Holder == old.Holder {
			t.Errorf("change is %+v", h)
		}
		if !r.waitSettled(20*time.Second, r.ackedNow()) {
			t.Error("not settled")
		}
		if r.w.degraded > 0 {
			t.Error("commits stopped waiting for standbys just before the failover")
		}
	})
}

// TestCutOffPrimaryKeepsWhatIsAlone: where commits wait for nobody, the standbys that are cut off
// lack what was acknowledged: the primary stays, and the decision says why.
func TestCutOffPrimaryKeepsWhatIsAlone(t *testing.T) {
	cutGroup(t, election.SyncOff, func(r *simRun, c *simCut, old election.Lock) {
		c.begin(old.Holder)
		r.holdStreams(true)
		if r.awaitChange(2*time.Minute, old) {
			t.Errorf("changed: %+v", r.newest())
		}
		d := r.controllers[r.w.leader].LastDecision()
		for _, text := range []string{"stays the primary", "is not streaming", "alone"} {
			if !strings.Contains(d.Summary, text) {
				t.Errorf("the decision does not say %q: %s", text, d.Summary)
			}
		}
	})
}

// TestCutOffDoesNotFlap: each new primary is cut off as well. The lock changes twice in ten minutes
// and no more.
func TestCutOffDoesNotFlap(t *testing.T) {
	cutGroup(t, election.SyncQuorum, func(r *simRun, c *simCut, old election.Lock) {
		before := len(r.historyNow())
		c.begin("*")
		time.Sleep(9 * time.Minute)
		if n := len(r.historyNow()) - before; n != 2 {
			t.Errorf("%d changes: %s", n, r.controllers[r.w.leader].LastDecision().Summary)
		}
	})
}
