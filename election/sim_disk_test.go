package election_test

import (
	"context"
	"fmt"
	"time"

	"holdfast/election"
)

// Mistakes about data disks that the simulation must find.
const bugSimDisk simBug = "an agent does not tell that its data disk takes no writes"

// simDataDisk is the disk of a data directory.
type simDataDisk struct {
	// state is "", "hangs" or "is full"; since is when that began.
	state string
	since time.Time
}

// simDiskTold is how long an agent's probe of the disk takes to find out.
const simDiskTold = 1500 * time.Millisecond

func (w *simWorld) spoilDiskLocked(n *simNode, state string) {
	n.pg.disk = simDataDisk{state, time.Now()}
	w.noteLocked(n.name, "data disk "+state)
}

func (w *simWorld) mendDiskLocked(n *simNode) {
	if n.pg.disk.state != "" {
		n.pg.disk = simDataDisk{}
		w.noteLocked(n.name, "data disk works")
	}
}

// faultOfDiskLocked makes a data disk hang or full for a while: mostly the primary's.
func (w *simWorld) faultOfDiskLocked(n *simNode) string {
	if l := w.state.Lock; l != nil && w.rng.IntN(4) > 0 {
		n = w.nodes[l.Holder]
	}
	state := []string{"hangs", "is full"}[w.rng.IntN(2)]
	w.spoilDiskLocked(n, state)
	since := n.pg.disk.since
	w.endLater(12000, func() {
		if n.pg.disk.since.Equal(since) {
			w.mendDiskLocked(n)
		}
	})
	return fmt.Sprintf("data disk of %s %s", n.name, state)
}

// writesLocked tells that the server can write now. Without space for WAL it ends at once
// (PANIC), if it was not for data alone.
func (n *simNode) writesLocked() bool {
	if n.pg.disk.state == "is full" && n.pg.phase == election.PhasePrimary {
		if d := n.dice(actDisk); d.upto(3) == 0 {
			n.killLocked()
		}
	}
	return n.pg.disk.state == ""
}

// waitDisk waits as long as an agent that carries an order out has to: a disk that hangs lets
// nothing go on. It is false if ctx ends first.
func (n *simNode) waitDisk(ctx context.Context, d *simDice) bool {
	for ctx.Err() == nil {
		n.w.mu.Lock()
		hangs := n.pg.disk.state == "hangs" && !n.w.isOver
		n.w.mu.Unlock()
		if !hangs {
			return true
		}
		d.nap(100)
	}
	return false
}

// reportDiskLocked is what a report says about the disk.
func (n *simNode) reportDiskLocked(r *election.Report) {
	if n.pg.disk.state != "" && time.Since(n.pg.disk.since) > simDiskTold &&
		n.w.bug != bugSimDisk {
		r.Member.DiskBad = "it " + n.pg.disk.state
	}
}

// resigns spoils the data disk of the primary for good, when all else works, and looks that
// another one is the primary in time; then that the old one comes back when its disk does.
func (r *simRun) resigns() (wrong string) {
	w := r.w
	w.mu.Lock()
	old := w.state.Lock
	isSure := w.state.Sync != nil && w.state.Sync.Epoch == old.Epoch
	if isSure {
		for _, rule := range w.state.Sync.Rules {
			isSure = isSure && (rule.Wait > 0 || rule.MayLose)
		}
	}
	for _, name := range w.servers {
		m := w.nodes[name]
		isSure = isSure && (name == old.Holder || w.isStreamingLocked(m, false))
	}
	if !isSure {
		w.mu.Unlock()
		return "" // nobody may be promoted now
	}
	w.resigned++
	n := w.nodes[old.Holder]
	w.spoilDiskLocked(n, []string{"hangs", "is full"}[w.rng.IntN(2)])
	w.mu.Unlock()
	if !r.waitFor(30*time.Second, func() bool { return r.isServedWithout(old.Holder) }) {
		return fmt.Sprintf("the data disk of %s takes no writes, and nobody takes over",
			old.Holder)
	}
	w.mu.Lock()
	w.mendDiskLocked(n)
	w.mu.Unlock()
	isBack := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return n.pg.phase == election.PhaseStandby && w.isStreamingLocked(n, false)
	}
	if !r.waitFor(30*time.Second, isBack) {
		return fmt.Sprintf("%s does not come back though its disk works again", old.Holder)
	}
	return ""
}

// isServedWithout tells that another one has the lock and acknowledges; where commits may wait for
// nobody but that one, that it has the lock.
func (r *simRun) isServedWithout(but string) bool {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.state.Lock
	return w.state.Intent == nil && l.Holder != but && (w.hasWitness || w.ackedEpoch >= l.Epoch)
}

// waitFor waits until something is so.
func (r *simRun) waitFor(limit time.Duration, isSo func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(simTick) {
		if isSo() {
			return true
		}
	}
	return false
}
