package election

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// setBug is a mistake that the simulation of voter sets has to find.
type setBug string

const (
	setSound     setBug = ""
	bugUnfenced  setBug = "a set settles before a majority of the one before has taken it"
	bugOldStands setBug = "a set settles while promises under older ones stand"
	bugAnySet    setBug = "a voter promises under older sets"
	bugUnknown   setBug = "a voter that joins or lost its disk asks nobody"
	bugLateSet   setBug = "an epoch that is over is renewed with a newer set"
)

// setNode is a node's voter with its disk, and how much of the log its FSM has.
type setNode struct {
	w     *setWorld
	name  string
	clock setClock
	v     *voter
	disk  *endorsement // nil: no file
	at    int
	side  bool
}

// State implements StateSource.
func (n *setNode) State() (*State, <-chan struct{}) { return n.w.log[n.at], nil }

type setClock struct {
	rate   float64
	offset int64
}

func (c setClock) at(now int64) int64 { return int64(float64(now)*c.rate) + c.offset }

func (c setClock) when(at int64) int64 { return int64(float64(at-c.offset) / c.rate) }

// setLessee is one incarnation of a proxy.
type setLessee struct {
	clock       setClock
	incarnation uint64
	at          int // of the log
	tally       *Tally
	given       uint64
	side        bool
	lazy        int   // it looks at its log once in so many steps
	effect      int64 // true time until which something of the tally's epoch may arrive
}

type setMsg struct {
	at   int64
	what func()
}

// setWorld runs the voters, the replicated state and the leader's steps of this package against
// each other while the voter set changes. The log is a list of states; every node has its own
// part of it. True time is in nanoseconds; every host has a clock of its own.
type setWorld struct {
	r       *rand.Rand
	t       Timing
	bug     setBug
	now     int64
	log     []*State
	nodes   map[string]*setNode
	order   []string
	lessees []*setLessee
	queue   []setMsg
	inRaft  map[string]bool
	took    map[uint64]map[string]bool // voters that have answered for a version
	yes     map[uint64]map[string]bool // voters that have answered for an epoch
	ended   map[uint64]bool            // epochs that a majority has endorsed
	changes int
	shrinks bool // members are being removed, not added
	isCut   bool // those of the other side hear nothing, but from each other
}

const setPool = 6

func newSetWorld(seed int, bug setBug) *setWorld {
	t, _ := TimingOf(ProfileLAN)
	w := &setWorld{
		r: rand.New(rand.NewPCG(uint64(seed), 2)), t: t, bug: bug, now: int64(time.Hour),
		nodes: map[string]*setNode{}, inRaft: map[string]bool{},
		took: map[uint64]map[string]bool{}, yes: map[uint64]map[string]bool{},
		ended: map[uint64]bool{}, log: []*State{{V: Version}},
	}
	var first []Member
	for i := range setPool {
		n := &setNode{w: w, name: fmt.Sprintf("n%d", i), clock: w.newClock()}
		w.nodes[n.name], w.order = n, append(w.order, n.name)
		if i < 3 {
			n.disk = &endorsement{V: Version}
			first = append(first, Member{Name: n.name, Address: n.name + ":1"})
			w.inRaft[n.name] = true
		}
		w.start(n)
	}
	w.apply(Command{Kind: CommandRegister, Register: &RegisterMembers{"sim", first}})
	w.begin(IntentBootstrap)
	w.apply(Command{Kind: CommandTarget, Target: &SetTarget{Epoch: 1, To: "n0"}})
	w.apply(Command{Kind: CommandCommitLock, Commit: &CommitLock{Lock: Lock{Epoch: 1, Holder: "n0"}}})
	for range 3 {
		w.lessees = append(w.lessees, w.newLessee())
	}
	return w
}

func (w *setWorld) newClock() setClock {
	return setClock{
		rate:   1 + (w.r.Float64()*2-1)*0.0009,
		offset: int64(w.r.IntN(20)-10) * int64(time.Second),
	}
}

func (w *setWorld) head() *State { return w.log[len(w.log)-1] }

func (w *setWorld) apply(c Command) bool {
	next, r := apply(w.head(), c)
	if r.Refused == "" && next != w.head() {
		w.log = append(w.log, next)
	}
	return r.Refused == ""
}

// start makes a voter of what the node's disk has; its FSM has what it had.
func (w *setWorld) start(n *setNode) {
	e := endorsement{}
	if n.disk != nil {
		e = *n.disk
	}
	n.v = makeVoter(e, n.disk == nil, func(e endorsement) error {
		if w.r.IntN(10) == 0 {
			return errors.New("disk full")
		}
		n.disk = &e
		return nil
	}, w.t, n, func() int64 { return n.clock.at(w.now) })
	n.v.name = n.name
}

func (w *setWorld) newLessee() *setLessee {
	s, at := w.head(), len(w.log)-1
	l := &setLessee{
		clock: w.newClock(), incarnation: w.r.Uint64(), at: at,
		tally: NewTally(w.t, len(voterNames(s))), lazy: []int{10, 100, 400}[w.r.IntN(3)],
	}
	l.tally.Begin(lockEpoch(s))
	return l
}

// send delivers after a delay, perhaps twice, perhaps never.
func (w *setWorld) send(f func()) {
	for range 1 + w.r.IntN(2)*w.r.IntN(2) {
		if w.r.IntN(8) == 0 {
			continue
		}
		delay := int64(w.r.IntN(300)) * int64(time.Millisecond)
		if w.r.IntN(10) == 0 {
			delay += int64(w.r.IntN(5000)) * int64(time.Millisecond)
		}
		w.after(delay, f)
	}
}

func (w *setWorld) after(delay int64, f func()) {
	w.queue = append(w.queue, setMsg{w.now + delay, f})
}

// deliver lets time pass until then, message by message.
func (w *setWorld) deliver(then int64) error {
	for {
		next := -1
		for i, m := range w.queue {
			if m.at <= then && (next < 0 || m.at < w.queue[next].at) {
				next = i
			}
		}
		if next < 0 {
			w.now = then
			return nil
		}
		m := w.queue[next]
		w.queue = slices.Delete(w.queue, next, next+1)
		w.now = max(w.now, m.at)
		m.what()
		if err := w.check(); err != nil {
			return err
		}
	}
}

// renew sends a renewal of the lessee's epoch to the voter set that its state has.
func (w *setWorld) renew(l *setLessee, s *State) {
	if l.tally.epoch <= l.given {
		return
	}
	names := voterNames(s)
	l.tally.Resize(len(names))
	seq, epoch := l.tally.Send(l.clock.at(w.now))
	r := Renewal{Lessee: "p", Incarnation: l.incarnation, Seq: seq, Epoch: epoch,
		Set: setVersion(s)}
	for _, name := range names {
		w.send(func() {
			n, q := w.nodes[name], r
			if w.isCut && n.side != l.side {
				return
			}
			if w.bug == bugAnySet {
				q.Set = 1 << 40
			}
			a := n.v.renew(q)
			w.send(func() { w.answer(l, name, a) })
		})
	}
}

func (w *setWorld) answer(l *setLessee, name string, a RenewalAnswer) {
	l.tally.Answer(name, a)
	if _, until := l.tally.Deadlines(); l.clock.at(w.now) < until {
		l.effect = max(l.effect, l.clock.when(until)+int64(99*time.Millisecond))
	}
}

// look gives a lessee the state that its log has: it gives up what that ends.
func (w *setWorld) look(l *setLessee) {
	s := w.log[l.at]
	if e := l.tally.epoch; l.given < e && (intentFrom(s) >= e || lockEpoch(s) > e) {
		l.given, l.effect = e, 0
		r := Renewal{Lessee: "p", Incarnation: l.incarnation, Seq: l.tally.Release(), Epoch: e}
		for _, name := range w.order {
			w.send(func() {
				if n := w.nodes[name]; !w.isCut || n.side == l.side {
					n.v.release(r)
				}
			})
		}
	}
	if e := lockEpoch(s); e > l.tally.epoch {
		l.tally.Begin(e)
		l.effect = 0
	}
}

func (w *setWorld) begin(kind IntentKind) {
	s := w.head()
	w.changes++
	w.apply(Command{Kind: CommandBegin, Begin: &BeginIntent{
		Request: fmt.Sprint("r", w.changes), Kind: kind, From: lockHolder(s),
		FromEpoch: lockEpoch(s), Replaces: intentEpoch(s), Cause: "sim",
	}})
}

// endorse asks a voter of the intent's set for its epoch.
func (w *setWorld) endorse() {
	s := w.head()
	if s.Intent == nil {
		return
	}
	names := voterNames(s)
	name, epoch := names[w.r.IntN(len(names))], s.Intent.Epoch
	w.send(func() {
		if n := w.nodes[name]; w.hears(n.side) {
			w.tryEndorse(n, n.v, epoch, 100)
		}
	})
}

func (w *setWorld) tryEndorse(n *setNode, life *voter, epoch uint64, tries int) {
	if n.v != life || tries == 0 {
		return
	}
	wait, _, err := life.tryEndorse(epoch)
	if err != nil {
		return
	}
	if s, _ := n.State(); intentEpoch(s) == epoch {
		life.closeBelow(s.Intent)
	}
	if wait > 0 {
		w.after(int64(min(wait, endorsePoll)), func() { w.tryEndorse(n, life, epoch, tries-1) })
		return
	}
	if life.persist(context.Background(), endorsement{Endorsed: epoch}) != nil {
		return
	}
	if w.yes[epoch] == nil {
		w.yes[epoch] = map[string]bool{}
	}
	w.yes[epoch][n.name] = true
	names := voterNames(w.intentState(epoch))
	w.ended[epoch] = w.ended[epoch] || isMajority(w.yes[epoch], names)
}

// intentState is the state in which the intent of that epoch began.
func (w *setWorld) intentState(epoch uint64) *State {
	i := slices.IndexFunc(w.log, func(s *State) bool { return intentEpoch(s) == epoch })
	return w.log[i]
}

func isMajority(yes map[string]bool, names []string) bool {
	n := 0
	for _, name := range names {
		if yes[name] {
			n++
		}
	}
	return n > len(names)/2
}

func (w *setWorld) commit() {
	i := w.head().Intent
	if i == nil || !w.ended[i.Epoch] {
		return
	}
	to := w.head().Members[w.r.IntN(len(w.head().Members))].Name
	w.apply(Command{Kind: CommandTarget, Target: &SetTarget{Epoch: i.Epoch, To: to}})
	if to = w.head().Intent.To; to != "" {
		w.apply(Command{Kind: CommandCommitLock, Commit: &CommitLock{
			Lock: Lock{Epoch: i.Epoch, Holder: to},
		}})
	}
}

// hears tells that a side hears the leader.
func (w *setWorld) hears(side bool) bool { return !w.isCut || side }

// advance lets the logs of those that hear the leader catch up, and changes who does.
func (w *setWorld) advance() {
	if w.r.IntN(120) == 0 {
		w.isCut = w.r.IntN(4) > 0
		for _, name := range w.order {
			w.nodes[name].side = w.r.IntN(3) > 0
		}
		for _, l := range w.lessees {
			l.side = w.r.IntN(2) > 0
		}
	}
	step := func(at int) int { return min(len(w.log)-1, at+w.r.IntN(8)) }
	for _, name := range w.order {
		n := w.nodes[name]
		if _, inRaft := w.inRaft[name]; w.hears(n.side) && (inRaft || w.r.IntN(20) == 0) {
			n.at = step(n.at)
		}
	}
	for _, l := range w.lessees {
		if w.hears(l.side) && w.r.IntN(l.lazy) == 0 {
			l.at = step(l.at)
			w.look(l)
		}
	}
}

// crash restarts a voter, now and then without its disk. Two are never without a memory at the
// same time: what a majority has forgotten nobody can tell.
func (w *setWorld) crash() {
	n := w.nodes[w.order[w.r.IntN(len(w.order))]]
	n.clock = w.newClock()
	isAnyBlank := slices.ContainsFunc(voterNames(w.head()), func(name string) bool {
		return w.nodes[name].v.blank
	})
	if w.r.IntN(4) == 0 && !isAnyBlank {
		n.disk, n.at = nil, 0
	}
	// It has what its last snapshot had, until the leader tells how far the log is committed.
	n.at = w.r.IntN(n.at + 1)
	w.start(n)
}

// step does one random thing and checks the invariant.
func (w *setWorld) step() error {
	if err := w.deliver(w.now + int64(w.r.IntN(150))*int64(time.Millisecond)); err != nil {
		return err
	}
	w.advance()
	for _, name := range w.order {
		if w.r.IntN(3) == 0 {
			w.tend(w.nodes[name])
		}
	}
	for range w.r.IntN(3) {
		w.lead()
	}
	l := w.lessees[w.r.IntN(len(w.lessees))]
	switch w.r.IntN(40) {
	case 0:
		w.crash()
	case 1:
		if w.r.IntN(4) > 0 {
			break
		}
		w.lessees = append(w.lessees[1:], w.newLessee())
	case 2, 3:
		// Members get their turn in between.
		if w.head().Intent == nil || w.r.IntN(10) == 0 {
			w.begin(IntentFailover)
		}
	case 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15:
		w.endorse()
	case 16, 17, 18, 19:
		w.commit()
	case 20:
		if w.bug == bugLateSet {
			w.renew(l, w.head())
		}
	default:
		w.renew(l, w.log[l.at])
	}
	return w.check()
}

// check is the invariant: while something of an epoch may still arrive, no majority of the set of
// a later intent has endorsed its epoch.
func (w *setWorld) check() error {
	for _, l := range w.lessees {
		if w.now >= l.effect {
			continue
		}
		for e := l.tally.epoch + 1; e <= w.head().LastEpoch; e++ {
			if w.ended[e] {
				return fmt.Errorf("epoch %d may be used, though %d is endorsed (%v of %v)",
					l.tally.epoch, e, w.yes[e], voterNames(w.intentState(e)))
			}
		}
	}
	return nil
}
