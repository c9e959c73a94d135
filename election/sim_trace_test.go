package election_test

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// A seed repeats step by step because of three rules, which all of the simulation keeps. Whatever
// happens by chance to a message, an order or a disk is a function of the seed, of what it happens
// to and of when, and not of who asks first. Each who sleeps has a class of its own: the
// nanoseconds below a tenth of a millisecond at which it wakes, which the product's own times,
// multiples of that, keep; so two that have nothing to do with each other never run at the same
// moment. And those who do, since one woke them, take nothing from each other.

// Classes of those who sleep; below simClasses, each one's own.
const (
	classWorld  = 0 // the world's clock: whole milliseconds
	classFaults = 1
	classLead   = 2   // of a leader that begins, 1 for each node
	classNode   = 20  // of what a node does, 24 for each node
	classCall   = 120 // of orders from one node to another, 2 for each pair
	classLink   = 160 // of messages from one node to another, 30 for each pair
	classLater  = 650 // of faults that end, and of orders that come late, one after the other
	classEach   = 1000
	simClasses  = 100 * classEach
)

// What a node does, for its classes and its dice.
const (
	actApply = iota
	actAgent
	actSave
	actAdmit
	actStart
	actDrain
	actAsk
	actDisk
)

// simTrace is all that happened in a schedule: a digest of each who did something, in the order in
// which it was done.
type simTrace struct {
	steps   int
	digests map[string]uint64
	// lines has the steps in words, where isRecorded.
	isRecorded bool
	lines      map[string][]string
}

func newSimTrace() simTrace {
	return simTrace{digests: map[string]uint64{}, lines: map[string][]string{}}
}

// noteLocked adds a step to the trace.
func (w *simWorld) noteLocked(by, what string, numbers ...uint64) {
	t, now := &w.trace, time.Now().UnixNano()
	h := mix(t.digests[by], uint64(now))
	for i := range len(what) {
		h = (h ^ uint64(what[i])) * fnvPrime
	}
	for _, n := range numbers {
		h = mix(h, n)
	}
	t.digests[by] = h
	t.steps++
	if t.isRecorded {
		at := now - simEpoch.UnixNano()
		t.lines[by] = append(t.lines[by], fmt.Sprintf("%13d %s: %s %v", at, by, what, numbers))
	}
}

// noteAllLocked adds how everything is at a tick of the world's clock.
func (w *simWorld) noteAllLocked() {
	d := w.said()
	w.noteLocked("leader "+w.leader, string(d.Do), w.state.LastEpoch, uint64(len(w.state.History)))
	for _, name := range w.names {
		n := w.nodes[name]
		pg, l := &n.pg, &n.lease
		w.noteLocked(name, "is "+string(pg.phase)+" of "+pg.upstream, uint64(pg.incarnation),
			uint64(pg.lsn()), pg.pledged, pg.promotedAt, oneIf(pg.isOpen), uint64(len(pg.pending)),
			pg.nextXid, pg.sync.epoch, pg.sync.seq)
		if l.isRunning {
			v := l.lessee.View()
			w.noteLocked(name, "may", v.Epoch(), uint64(v.Doubt()), uint64(v.Until()), l.cut)
		}
	}
}

// simEpoch is when a bubble's time begins.
var simEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

const fnvPrime = 0x100000001b3

func mix(h, n uint64) uint64 {
	d := simDice{state: h ^ n*fnvPrime}
	return d.next()
}

// digest is that of the whole trace.
func (t *simTrace) digest() uint64 {
	h := uint64(t.steps)
	for _, by := range slices.Sorted(keysOf(t.digests)) {
		for i := range len(by) {
			h = (h ^ uint64(by[i])) * fnvPrime
		}
		h = mix(h, t.digests[by])
	}
	return h
}

func keysOf(m map[string]uint64) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// firstDifference is where two recorded traces part; empty if they do not.
func (t *simTrace) firstDifference(other *simTrace) string {
	first, at := "", ""
	for by, mine := range t.lines {
		theirs := other.lines[by]
		for i := range max(len(mine), len(theirs)) {
			a, b := lineAt(mine, i), lineAt(theirs, i)
			if a == b {
				continue
			}
			if when := min(a, b); first == "" || when < at {
				first, at = fmt.Sprintf("\n  %s\n  %s", a, b), when
			}
			break
		}
	}
	return first
}

func lineAt(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "~ nothing more" // sorts behind every line
}

// dice are the chances of what a node does now.
func (n *simNode) dice(act int) simDice {
	d := n.w.diceOf(n.name, uint64(time.Now().UnixNano()), uint64(100+act))
	d.class = classNode + n.index*24 + act*3 + d.block()
	return d
}

// block is one of the hundred of a class.
func (d *simDice) block() int { return classEach * int(d.state%97) }

// begin is the first thing that whoever was asked for something does: a ctx that ends at the moment
// in which it was asked has ended before.
func (d *simDice) begin(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	t := time.NewTimer(simPause(0, d.class))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// nap lets up to that many milliseconds of the world's time pass for something that a node does.
func (n *simNode) nap(act, ms int) {
	d := n.dice(act)
	d.nap(ms)
}

// nap sleeps for up to that many milliseconds.
func (d *simDice) nap(ms int) { d.sleep(time.Duration(d.upto(uint64(ms) * 1e6))) }

// sleep sleeps for at least that long, until a moment of the dice's class.
func (d *simDice) sleep(least time.Duration) { simSleep(least, d.class) }

func simSleep(least time.Duration, class int) { time.Sleep(simPause(least, class)) }

// simPause is how long it is until a moment of the class.
func simPause(least time.Duration, class int) time.Duration {
	now := time.Now().UnixNano()
	at := now + int64(least)
	at += int64(class) - at%simClasses
	if at <= now {
		at += simClasses
	}
	if at%simClasses == now%simClasses {
		at++ // a deadline that was set now could end then
	}
	return time.Duration(at - now)
}

// laterLocked does something after that time, in a class of its own.
func (w *simWorld) laterLocked(after time.Duration, what func()) {
	class := classLater + w.laterCount%(classEach-classLater)
	w.laterCount++
	w.late.Go(func() {
		simSleep(after, class)
		what()
	})
}
