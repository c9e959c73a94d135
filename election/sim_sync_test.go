package election_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/election"
)

// simSync is a server's sync set and how far its agent is with the record.
type simSync struct {
	rule   election.SyncRule
	proved election.MemberSync
	// epoch and seq name the record that was acted upon, barrier the WAL at that time.
	epoch, seq uint64
	barrier    int
}

// takeSyncLocked is the setting of an order.
func (n *simNode) takeSyncLocked(o election.Order) {
	rule, ok := election.ParseSyncSetting(o.SyncNames)
	if !ok {
		n.w.violate("%s is ordered to have %q", n.name, o.SyncNames)
	}
	// An order that comes late, when its epoch's record was acted upon already, changes nothing.
	if n.pg.sync.epoch < o.Epoch {
		n.pg.sync.rule = rule
	}
}

// tickSyncLocked is what the holder's agent does with the record.
func (n *simNode) tickSyncLocked() {
	y, l := n.view.Sync, n.view.Lock
	p := &n.pg.sync
	if y == nil || y.Epoch != l.Epoch || !n.pg.isOpen || n.w.rng.IntN(3) == 0 ||
		y.Epoch < p.epoch || y.Epoch == p.epoch && y.Seq < p.seq {
		return
	}
	if y.Epoch != p.epoch || y.Seq != p.seq {
		p.epoch, p.seq, p.barrier = y.Epoch, y.Seq, len(n.pg.wal)
		p.rule = y.Rules[len(y.Rules)-1]
		return
	}
	if n.w.bug == bugSimWidened && p.rule.Wait > 0 {
		p.rule.Names = otherNames(n.w.names, n.name) // and the record comes later
	}
	if len(y.Rules) == 1 || n.w.flushedLocked(n, p.rule.Names, p.barrier) >= p.rule.Wait {
		p.proved = election.MemberSync{Epoch: y.Epoch, Seq: y.Seq}
	}
}

func otherNames(names []string, but string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == but })
}

// flushedLocked counts the streaming standbys among names that have the WAL up to index.
func (w *simWorld) flushedLocked(primary *simNode, names []string, index int) int {
	count := 0
	for _, name := range names {
		m := w.nodes[name]
		if m != nil && m.pg.upstream == primary.name && w.isStreamingLocked(m, false) &&
			len(m.pg.wal) >= index {
			count++
		}
	}
	return count
}

// isDurableLocked tells that the server acknowledges a commit.
func (w *simWorld) isDurableLocked(primary *simNode, index int) bool {
	rule := primary.pg.sync.rule
	if w.bug == bugFewRecruits { // the server waits, and the choice does not know
		rule = election.SyncRule{Wait: 1, Names: w.names}
	}
	return w.flushedLocked(primary, rule.Names, index) >= rule.Wait
}

// reportSyncLocked is the part of a report about the sync set.
func (n *simNode) reportSyncLocked(r *election.Report) {
	r.SyncV = election.SyncVersion
	if n.pg.phase != election.PhasePrimary {
		return
	}
	r.Member.Sync = n.pg.sync.proved
	r.Member.Sync.Names, r.Member.Sync.Under = n.pg.sync.rule.Setting(), n.pg.promotedAt
	for _, name := range n.w.names {
		if m := n.w.nodes[name]; m.pg.upstream == n.name && n.w.isStreamingLocked(m, false) {
			r.Member.Standbys = append(r.Member.Standbys, election.StandbyStatus{Name: name,
				State: "streaming"})
		}
	}
}

// withoutSyncLocked is what a coordinator sees that keeps the record, but does not look at it when
// the primary is lost.
func (n *simNode) withoutSyncLocked() *election.State {
	l := n.view.Lock
	if l == nil || n.view.Intent == nil && n.w.nodes[l.Holder].pg.phase == election.PhasePrimary {
		return n.view
	}
	out := *n.view
	out.Sync = nil
	return &out
}

// checkSyncLocked counts the entries of the sync set, and bounds the rules of a joint one.
func (w *simWorld) checkSyncLocked(before, after *election.State) {
	if after.Sync == nil || before.Sync == after.Sync {
		return
	}
	w.changedSync++
	if len(after.Sync.Rules) > 4 {
		w.violate("the record has %d rules", len(after.Sync.Rules))
	}
	wasDegraded := before.Sync != nil && before.Sync.Degraded != nil
	if after.Sync.Degraded != nil && !wasDegraded {
		w.degraded++
	}
}

// syncGroup runs f against a group without faults in a mode.
func syncGroup(t *testing.T, mode string, f func(r *simRun)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		seed := uint64(1)
		for simMode(seed) != mode {
			seed++
		}
		r := newSimRun(seed, bugNone)
		end := r.start()
		r.lead(false)
		if !r.waitSettled(10*time.Second, 0) {
			t.Error("no primary")
		}
		time.Sleep(3 * time.Second) // the world's: the first record is written and proved
		f(r)
		end()
		for _, v := range r.w.violations {
			t.Error(v)
		}
	})
}

// sync returns the record.
func (r *simRun) sync() election.SyncRecord {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if r.w.state.Sync == nil {
		return election.SyncRecord{}
	}
	return *r.w.state.Sync
}

// slow makes the standbys stop or go on.
func (r *simRun) slow(isSlow bool) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	for name, n := range r.w.nodes {
		n.isSlow = isSlow && name != r.w.state.Lock.Holder
	}
}

// waitSync waits until the record is as ok says.
func (r *simRun) waitSync(t *testing.T, what string, ok func(election.SyncRecord) bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(simTick) {
		if ok(r.sync()) {
			return
		}
	}
	t.Errorf("the sync set does not get %s: %+v", what, r.sync())
}

func isSettledAt(wait int) func(election.SyncRecord) bool {
	return func(y election.SyncRecord) bool {
		return len(y.Rules) == 1 && y.Rules[0].Wait == wait
	}
}

// TestSyncDegradesAndHeals: with both standbys away commits go on after the delay, and the record
// says so; when they are back commits wait again. In between the primary's host is lost: nobody
// is promoted, and the decision says why.
func TestSyncDegradesAndHeals(t *testing.T) {
	for _, mode := range []string{election.SyncQuorum, election.SyncOn} {
		t.Run(mode, func(t *testing.T) { syncGroup(t, mode, func(r *simRun) { degradeAndHeal(t, r) }) })
	}
}

func degradeAndHeal(t *testing.T, r *simRun) {
	r.waitSync(t, "first", isSettledAt(1))
	before := r.ackedNow()
	r.slow(true)
	time.Sleep(500 * time.Millisecond)
	if y := r.sync(); len(y.Rules) != 1 || y.Degraded != nil {
		t.Errorf("degraded at once: %+v", y)
	}
	r.waitSync(t, "degraded", isSettledAt(0))
	y := r.sync()
	if y.Degraded == nil || !strings.Contains(y.Degraded.Why, "nobody is promoted") {
		t.Errorf("record is %+v", y.Degraded)
	}
	time.Sleep(time.Second)
	if now := r.ackedNow(); now < before+10 {
		t.Errorf("%d commits while degraded", now-before)
	}
	lock := r.newest().Lock
	r.w.mu.Lock()
	r.w.nodes[lock.Holder].killLocked()
	r.w.nodes[lock.Holder].isUp = false
	isLeader := r.w.leader == lock.Holder
	r.w.mu.Unlock()
	if isLeader {
		r.lead(false)
	}
	time.Sleep(20 * time.Second)
	if c := r.newest(); c.Lock.Epoch != lock.Epoch {
		t.Errorf("promoted while degraded: %+v", c)
	}
	d := r.controllers[r.w.leader].LastDecision()
	if !strings.Contains(d.Summary, lock.Holder+" acknowledges commits alone") {
		t.Errorf("decision is %q", d.Summary)
	}
	r.slow(false)
	r.heal()
	if !r.waitSettled(20*time.Second, r.ackedNow()) {
		t.Error("not settled after the primary came back")
	}
	r.waitSync(t, "healed", func(y election.SyncRecord) bool {
		return isSettledAt(1)(y) && y.Degraded == nil
	})
}

// TestSyncStrictNeverDegrades: commits wait for as long as it takes.
func TestSyncStrictNeverDegrades(t *testing.T) {
	syncGroup(t, election.SyncStrict, func(r *simRun) {
		r.waitSync(t, "first", isSettledAt(1))
		r.slow(true)
		time.Sleep(time.Second)
		before, seq := r.ackedNow(), r.sync().Seq
		time.Sleep(time.Minute)
		if now := r.ackedNow(); now != before {
			t.Errorf("%d commits were acknowledged without a standby", now-before)
		}
		if y := r.sync(); y.Seq != seq {
			t.Errorf("the sync set changed to %+v", y)
		}
		r.slow(false)
		if !r.waitSettled(10*time.Second, before) {
			t.Error("commits do not go on")
		}
	})
}

// TestSyncSetStandsStill: in steady state the record is not written (DESIGN.md I7, I43).
func TestSyncSetStandsStill(t *testing.T) {
	for _, mode := range []string{election.SyncQuorum, election.SyncOn, election.SyncStrict} {
		syncGroup(t, mode, func(r *simRun) {
			r.waitSync(t, "first", isSettledAt(1))
			time.Sleep(5 * time.Second)
			seq := r.sync().Seq
			time.Sleep(time.Minute)
			if now := r.sync().Seq; now != seq {
				t.Errorf("%s: %d entries in a minute", mode, now-seq)
			}
		})
	}
}

// TestSyncNarrowsAndFailsOver: once the set has followed the loss of one standby, the other alone
// is enough for a failover.
func TestSyncNarrowsAndFailsOver(t *testing.T) {
	syncGroup(t, election.SyncQuorum, func(r *simRun) {
		old := r.newest().Lock
		r.w.mu.Lock()
		for _, name := range r.w.names {
			if name != old.Holder && name != r.w.leader {
				r.w.nodes[name].killLocked()
				r.w.nodes[name].isUp = false
				break
			}
		}
		r.w.mu.Unlock()
		r.waitSync(t, "narrower", func(y election.SyncRecord) bool {
			return len(y.Rules) == 1 && len(y.Rules[0].Names) == 1
		})
		r.w.mu.Lock()
		r.w.nodes[old.Holder].killLocked()
		r.w.nodes[old.Holder].pg.phase = election.PhaseEmpty // its disk is gone
		r.w.mu.Unlock()
		time.Sleep(10 * time.Second)
		if c := r.newest(); c.Kind != election.IntentFailover || c.Lock.Holder == old.Holder {
			t.Errorf("change is %+v", c)
		}
	})
}
