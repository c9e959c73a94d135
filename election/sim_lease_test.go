package election_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"holdfast/election"
)

// Mistakes about the lease that the simulation must find.
const (
	bugSimFromSend   simBug = "promise counted from send"
	bugSimFromAnswer simBug = "lease counted from receipt"
	bugSimNoSilence  simBug = "forgotten silence after restart"
	bugSimForgets    simBug = "endorsement not durable"
	bugSimRelease    simBug = "release cancels newer renewals"
	bugSimShort      simBug = "promise as long as the lease"
	bugSimLostDisk   simBug = "voter that lost its disk knows nothing"
)

// simLease is what a node's process has of the lease: a voter and a lessee, both the real ones, on
// the host's clock, and the disk of the voter.
type simLease struct {
	clock simClock
	// shift is how far the voter's clock is turned back, by bugSimFromSend.
	shift  atomic.Int64
	voter  election.SimVoter
	lessee election.SimLessee
	stop   context.CancelFunc
	// life counts the node's processes. isRunning: this one has been started.
	life      int
	isRunning bool
	disk      election.SimDisk
	// cut is the epoch up to which the proxy's gate is cut.
	cut uint64
	// isPaused: the process is stopped and goes on later, when resumed is closed. isStalled: its
	// Raft disk hangs.
	isPaused, isStalled bool
	resumed             chan struct{}
	// newest is the newest renewal of each lessee that has arrived, for bugSimRelease.
	newest map[string]uint64
	// granted counts answers for bugSimFromAnswer, which lets the lease end at cheat.
	granted    map[uint64]int
	cheat      int64
	cheatEpoch uint64
}

// voterNow is the clock as the voter reads it.
func (n *simNode) voterNow() int64 { return n.lesseeNow() - n.lease.shift.Load() }

func (n *simNode) lesseeNow() int64 { return n.lease.clock.at(time.Now().UnixNano()) }

// newSimLease is a host's: a clock that runs at its own rate, and an empty disk.
func (w *simWorld) newSimLease() simLease {
	c := simClock{
		rate:   1 + (w.rng.Float64()*2-1)*simRate,
		offset: int64(w.rng.IntN(2000)-1000) * int64(time.Second),
	}
	return simLease{clock: c, disk: election.SimDisk{IsBlank: true}}
}

// voterTiming is what the voters keep, mistakes included.
func (w *simWorld) voterTiming() election.Timing {
	t := simTiming()
	if w.bug == bugSimShort {
		t.Promise = t.Lease
	}
	return t
}

// simDrain is how long a planned change waits for open units.
const simDrain = time.Second

// tickProcesses starts and ends the processes of nodes that went up or down.
func (w *simWorld) tickProcesses() {
	for _, name := range w.names {
		n := w.nodes[name]
		w.mu.Lock()
		isUp, isRunning := n.isUp && !w.isOver, n.lease.isRunning
		w.mu.Unlock()
		switch {
		case isUp && !isRunning:
			n.startProcess()
		case !isUp && isRunning:
			n.endProcess()
		}
	}
}

// startProcess starts a voter with what the disk remembers, and a lessee.
func (n *simNode) startProcess() {
	w := n.w
	w.mu.Lock()
	l := &n.lease
	l.life++
	l.isRunning, l.isPaused, l.newest = true, false, map[string]uint64{}
	life, d := l.life, l.disk
	w.noteLocked(n.name, "starts", d.Endorsed, d.Floor)
	if w.bug == bugSimForgets {
		d.Endorsed = 0
	}
	d.Save = func(endorsed, floor uint64) error { return n.save(life, endorsed, floor) }
	l.voter = election.NewSimVoter(d, w.voterTiming(), simDrain, w.fence, n, n.voterNow)
	if w.bug == bugSimNoSilence {
		l.voter.ForgetSilence(w.voterTiming(), n.voterNow())
	}
	links := make([]election.SimLink, 0, len(w.names))
	for _, name := range w.names {
		links = append(links, &simLink{n: n, to: w.nodes[name], life: life})
	}
	l.lessee = election.NewSimLessee(n.name, simTiming(), simDrain, links, n,
		&simGate{n, life}, n.lesseeNow)
	l.lessee.Incarnate(rand.New(rand.NewPCG(w.rng.Uint64(), 1)))
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	voter, lessee, pause := l.voter, l.lessee, n.dice(actStart)
	if d.IsBlank {
		early := n.dice(actAdmit)
		w.late.Go(func() {
			early.nap(20) // as below
			n.admit(ctx, voter)
		})
	}
	w.mu.Unlock()
	w.late.Go(func() {
		pause.nap(40) // so that no two hosts do everything at the same moments
		lessee.Run(ctx)
	})
}

func (n *simNode) endProcess() {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.endProcessLocked()
}

func (n *simNode) endProcessLocked() {
	l := &n.lease
	if !l.isRunning {
		return
	}
	l.stop()
	l.isRunning, l.cheat = false, 0
	n.w.noteLocked(n.name, "ends")
	l.life++
	n.resumeLocked()
}

// admit asks the other voters until a voter without a memory knows what they remember.
func (n *simNode) admit(ctx context.Context, voter election.SimVoter) {
	if n.w.bug == bugSimLostDisk {
		voter.ForgetEpochs(n.w.voterTiming(), n.voterNow())
		return
	}
	for ctx.Err() == nil {
		others := map[string]election.SimVoter{}
		n.w.mu.Lock()
		for _, name := range n.w.names {
			v := n.w.nodes[name]
			if v != n && v.isAwakeLocked() && n.w.areConnectedLocked(n.name, name) {
				others[name] = v.lease.voter
			}
		}
		n.w.mu.Unlock()
		if voter.Admit(ctx, len(n.w.names), others) {
			return
		}
		n.nap(actAdmit, 100)
	}
}

// save makes an endorsement durable, unless the process ends first or the disk hangs.
func (n *simNode) save(life int, endorsed, floor uint64) error {
	for {
		n.nap(actSave, 10)
		n.w.mu.Lock()
		l := &n.lease
		if l.life != life || n.w.isOver {
			n.w.mu.Unlock()
			return errSim
		}
		if !l.isStalled {
			l.disk.Endorsed, l.disk.Floor, l.disk.IsBlank = endorsed, floor, false
			n.w.noteEndorsedLocked(n.name, endorsed)
			n.w.mu.Unlock()
			return nil
		}
		n.w.mu.Unlock()
	}
}

// isAwakeLocked tells that the node's process runs and is not stopped.
func (n *simNode) isAwakeLocked() bool { return n.isUp && n.lease.isRunning && !n.lease.isPaused }

func (n *simNode) pauseLocked() {
	if n.lease.isRunning && !n.lease.isPaused {
		n.lease.isPaused, n.lease.resumed = true, make(chan struct{})
		n.w.noteLocked(n.name, "is paused")
	}
}

func (n *simNode) resumeLocked() {
	if n.lease.isPaused {
		n.lease.isPaused = false
		n.w.noteLocked(n.name, "goes on")
		close(n.lease.resumed)
	}
}

// waitAwake waits until the process is not stopped and has got to a message; false if ctx ends.
func (n *simNode) waitAwake(ctx context.Context, d *simDice) bool {
	for ctx.Err() == nil {
		n.w.mu.Lock()
		isPaused, resumed := n.lease.isPaused, n.lease.resumed
		n.w.mu.Unlock()
		if !isPaused {
			return true
		}
		select {
		case <-resumed:
			d.nap(1)
		case <-ctx.Done():
		}
	}
	return false
}

// simGate is the proxy of a node's process.
type simGate struct {
	n    *simNode
	life int
}

// Drain implements election.Gate.
func (g *simGate) Drain(ctx context.Context, epoch uint64) {
	d := g.n.dice(actDrain)
	t := time.NewTimer(simPause(time.Duration(d.upto(100e6)), d.class))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Cut implements election.Gate: no answer of the epoch gets to a client any more.
func (g *simGate) Cut(epoch uint64) {
	w := g.n.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if g.n.lease.life == g.life {
		g.n.lease.cut = max(g.n.lease.cut, epoch)
		w.noteLocked(g.n.name, "cuts", epoch)
	}
}

// hasLeaseLocked tells that what a node's proxy does now may have an effect under the epoch: it
// has looked at its clock a moment ago, at most what the lease arithmetic allows (d).
func (w *simWorld) hasLeaseLocked(p *simNode, epoch uint64, lag time.Duration) bool {
	l := &p.lease
	if !p.isAwakeLocked() || l.cut >= epoch {
		return false
	}
	read := l.clock.at(time.Now().Add(-lag).UnixNano())
	if l.cheatEpoch == epoch && read < l.cheat {
		return true
	}
	v := l.lessee.View()
	return v.Epoch() == epoch && read < v.Until()
}

// EndorseAll implements election.Coordinator.
func (n *simNode) EndorseAll(ctx context.Context, epoch uint64, recruits ...string) error {
	h := n.w.history
	if h == nil {
		return n.endorseAll(ctx, epoch, recruits)
	}
	call := h.at()
	err := n.endorseAll(ctx, epoch, recruits)
	h.add(4, historyInput{kind: opEndorse, epoch: epoch}, call,
		historyOutput{isUnknown: err != nil})
	return err
}

// endorseAll asks all voters, as a node does.
func (n *simNode) endorseAll(ctx context.Context, epoch uint64, recruits []string) error {
	if n.w.bug == bugNoEndorsement {
		return nil
	}
	asked := n.dice(actAsk)
	if err := asked.begin(ctx); err != nil {
		return err
	}
	return election.AskMajority(ctx, n.w.names, func(ctx context.Context, name string) error {
		v := n.w.nodes[name]
		k := &simLink{n: n, to: v, life: int(asked.state & 0xffff)}
		d := k.dice(epoch, 3)
		for v != n && !n.w.carry(n, v, &d) {
			d.nap(100)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if v != n && d.chance(0.1) && n.w.isLossy() { // it comes a second time, perhaps much later
			again := simDice{d.next(), d.class + 2}
			n.w.late.Go(func() { v.endorseLate(epoch, recruits, again) })
		}
		if !v.waitAwake(ctx, &d) {
			return ctx.Err()
		}
		if err := v.endorse(ctx, epoch, recruits); err != nil {
			return err
		}
		if v != n && !n.w.carry(v, n, &d) {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
}

// endorseLate is a request that comes when whoever asked has its answer, or has given up.
func (n *simNode) endorseLate(epoch uint64, recruits []string, d simDice) {
	d.sleep(time.Duration(d.upto(4e9)))
	ctx, cancel := context.WithTimeout(context.Background(), simPause(4*time.Second, d.class))
	defer cancel()
	if n.waitAwake(ctx, &d) {
		_ = n.endorse(ctx, epoch, recruits)
	}
}

// endorse is what a voter does when it is asked to.
func (n *simNode) endorse(ctx context.Context, epoch uint64, recruits []string) error {
	n.w.mu.Lock()
	n.noteWaivedLocked(recruits)
	voter, life, isAwake := n.lease.voter, n.lease.life, n.isAwakeLocked()
	n.w.mu.Unlock()
	if !isAwake {
		return errSim
	}
	if n.w.bug == bugWaives && n.w.fence == election.FenceRecruit {
		voter.ForgetPromises()
	}
	if err := voter.Endorse(ctx, epoch, recruits); err != nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if n.lease.life != life {
		return errSim
	}
	return nil
}

// noteEndorsedLocked notes when a majority has endorsed an epoch.
func (w *simWorld) noteEndorsedLocked(voter string, epoch uint64) {
	if w.yes[epoch] == nil {
		w.yes[epoch] = map[string]bool{}
	}
	w.yes[epoch][voter] = true
	w.noteLocked(voter, "endorsed", epoch)
	if len(w.yes[epoch]) > len(w.names)/2 && epoch > w.endorsed {
		w.endorsed = epoch
		w.checkLeasesLocked()
	}
}

// checkLeasesLocked is what the first invariant of DESIGN 9 rests on: once a majority has endorsed
// an epoch, nothing that is done under an older one can have an effect any more.
func (w *simWorld) checkLeasesLocked() {
	for _, name := range w.names {
		p := w.nodes[name]
		if !p.lease.isRunning {
			continue
		}
		epoch := p.lease.lessee.View().Epoch()
		if epoch > 0 && epoch < w.endorsed && !w.waived[epoch] &&
			w.hasLeaseLocked(p, epoch, simLag*time.Millisecond) {
			w.violate("%s may use epoch %d though %d is endorsed", name, epoch, w.endorsed)
		}
	}
}

func (w *simWorld) isLossy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lossy > 0
}

// jitterLocked is a random time below that many milliseconds, in nanoseconds, so that hardly ever
// two things happen at the same moment.
func (w *simWorld) jitterLocked(ms int) time.Duration {
	return time.Duration(w.rng.Int64N(int64(ms)*int64(time.Millisecond))) + 1
}

// nap lets up to that many milliseconds pass for whoever does bad things.
func (w *simWorld) nap(ms int) {
	w.mu.Lock()
	after := w.jitterLocked(ms)
	w.mu.Unlock()
	simSleep(after, classFaults)
}
