package election

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

var (
	regainRuns = flag.Int("regain.runs", 4000, "schedules of the simulation of lost Raft logs")
	regainSeed = flag.Int("regain.seed", 0, "seed of its first schedule")
)

// regainBug is a mistake that the simulation must find.
type regainBug string

const (
	bugVotesAtOnce  regainBug = "a node without a log votes and follows at once"
	bugSameTerm     regainBug = "it votes in a term in which it may have voted"
	bugShortLog     regainBug = "it votes for a log that lacks what it may have stored"
	bugOldLeader    regainBug = "it follows a leader of an older term"
	bugSelfElected  regainBug = "it asks for votes with a part of its log"
	bugAsksMajority regainBug = "it asks a majority of the others"
	bugLostMajority regainBug = "it goes on although a majority lost its log"
)

// lostNode is what a node of the model has on disk, and the leader's part in memory. It votes and
// stores as hashicorp/raft does, but without pre-votes and without regard to a leader that is
// known, which only keep elections rare.
type lostNode struct {
	name  string
	term  uint64
	voted string   // in term
	log   []uint64 // the term of each entry
	rec   *regainRecord
	heard map[string]raftPosition

	leads bool // term
	votes map[string]bool
	match map[string]int
}

// lostMessage is on its way; a message may be lost, and any is delivered next.
type lostMessage struct {
	kind     string // vote, voted, append, stored
	from, to string
	term     uint64
	log      []uint64 // of vote and append
	size     int      // of stored
}

type lostWorld struct {
	r        *rand.Rand
	bug      regainBug
	names    []string
	nodes    map[string]*lostNode
	wire     []lostMessage
	leaders  map[uint64]string
	commits  map[int]uint64 // entry to its term
	problem  string
	regained int
	rates    [5]int // of campaigns, entries, appends, questions and lost disks
}

func newLostWorld(seed uint64, bug regainBug) *lostWorld {
	w := &lostWorld{r: rand.New(rand.NewPCG(seed, 7)), bug: bug, nodes: map[string]*lostNode{},
		leaders: map[uint64]string{}, commits: map[int]uint64{}}
	for i, most := range []int{8, 8, 20, 12, 2} {
		w.rates[i] = 1 + w.r.IntN(most)
	}
	for i := range 3 + 2*w.r.IntN(2) {
		w.names = append(w.names, fmt.Sprint(i))
	}
	for _, name := range w.names {
		w.nodes[name] = &lostNode{name: name, term: 1, log: []uint64{1}}
	}
	return w
}

func (n *lostNode) lastTerm() uint64 {
	if len(n.log) == 0 {
		return 0
	}
	return n.log[len(n.log)-1]
}

func (w *lostWorld) position(n *lostNode) raftPosition {
	p := raftPosition{Term: n.term, LogTerm: n.lastTerm(), LogIndex: uint64(len(n.log))}
	if len(n.log) > 0 {
		p.Voters = w.names
	}
	p.Lost = n.rec != nil && !n.rec.isCaughtUp(p)
	return p
}

func lastOf(log []uint64) (term, index uint64) {
	if len(log) > 0 {
		term = log[len(log)-1]
	}
	return term, uint64(len(log))
}

// mayVote is the rule of the record, with the mistakes.
func (w *lostWorld) mayVote(n *lostNode, term uint64, log []uint64) bool {
	if n.rec == nil || w.bug == bugVotesAtOnce {
		return true
	}
	rec := *n.rec
	if w.bug == bugSameTerm {
		rec.Term = 0
	}
	if w.bug == bugShortLog {
		rec.LogTerm, rec.LogIndex = 0, 0
	}
	logTerm, index := lastOf(log)
	return rec.mayVote(term, logTerm, index)
}

func (w *lostWorld) mayFollow(n *lostNode, term uint64) bool {
	return n.rec == nil || w.bug == bugVotesAtOnce || n.rec.mayFollow(term) ||
		w.bug == bugOldLeader && n.rec.Asked
}

func (w *lostWorld) send(m lostMessage) {
	if w.r.IntN(10) > 0 {
		w.wire = append(w.wire, m)
	}
}

func (w *lostWorld) sendAll(m lostMessage) {
	for _, to := range w.names {
		if m.to = to; to != m.from {
			w.send(m)
		}
	}
}

func (w *lostWorld) campaign(n *lostNode) {
	if n.rec != nil && !n.rec.Asked && w.bug != bugVotesAtOnce || len(n.log) == 0 {
		return // it takes part in nothing, or knows of no voters
	}
	n.term++
	n.voted, n.leads, n.votes = n.name, false, map[string]bool{n.name: true}
	if w.mayVote(n, n.term, n.log) || w.bug == bugSelfElected {
		w.sendAll(lostMessage{kind: "vote", from: n.name, term: n.term, log: slices.Clone(n.log)})
	}
}

// later takes a newer term over.
func (n *lostNode) later(term uint64) {
	if term > n.term {
		n.term, n.voted, n.leads, n.votes = term, "", false, nil
	}
}

func (w *lostWorld) deliver(m lostMessage) {
	n := w.nodes[m.to]
	switch m.kind {
	case "vote":
		if !w.mayVote(n, m.term, m.log) || m.term < n.term {
			return
		}
		n.later(m.term)
		term, index := lastOf(m.log)
		// The same candidate gets its vote again, whatever its log is now.
		if n.voted == m.from || n.voted == "" && w.position(n).compareLog(term, index) <= 0 {
			n.voted = m.from
			w.send(lostMessage{kind: "voted", from: n.name, to: m.from, term: m.term})
		}
	case "voted":
		if n.votes != nil && m.term == n.term && !n.leads {
			n.votes[m.from] = true
			if len(n.votes) > len(w.names)/2 {
				w.elect(n)
			}
		}
	case "append":
		if !w.mayFollow(n, m.term) || m.term < n.term {
			return
		}
		n.later(m.term)
		n.votes = nil
		for i, term := range m.log {
			if i < len(n.log) && n.log[i] != term {
				n.log = n.log[:i]
			}
			if i == len(n.log) {
				n.log = append(n.log, term)
			}
		}
		w.send(lostMessage{kind: "stored", from: n.name, to: m.from, term: m.term, size: len(m.log)})
	case "stored":
		if n.leads && m.term == n.term {
			n.match[m.from] = max(n.match[m.from], m.size)
			w.commit(n)
		}
	}
}

// elect checks what an election promises: one leader for a term, with all that was committed.
func (w *lostWorld) elect(n *lostNode) {
	n.leads, n.match = true, map[string]int{}
	if old, ok := w.leaders[n.term]; ok {
		w.problem = fmt.Sprintf("term %d has the leaders %s and %s", n.term, old, n.name)
	}
	w.leaders[n.term] = n.name
	for i, term := range w.commits {
		if i >= len(n.log) || n.log[i] != term {
			w.problem = fmt.Sprintf("leader %s of term %d lacks entry %d", n.name, n.term, i)
		}
	}
	n.log = append(n.log, n.term)
}

func (w *lostWorld) commit(n *lostNode) {
	for i := len(n.log) - 1; i >= 0 && n.log[i] == n.term; i-- {
		have := 1
		for _, size := range n.match {
			if size > i {
				have++
			}
		}
		if have <= len(w.names)/2 {
			continue
		}
		for j := range i + 1 {
			if old, ok := w.commits[j]; ok && old != n.log[j] {
				w.problem = fmt.Sprintf("entry %d is committed twice", j)
			}
			w.commits[j] = n.log[j]
		}
		return
	}
}

// wipe takes the disk away. What the former process had sent is still read. Somebody has to be left
// who has heard of an election: a group without is one at its first start.
func (w *lostWorld) wipe(name string) {
	if !w.position(w.nodes[name]).isFirst() && !slices.ContainsFunc(w.names, func(other string) bool {
		p := w.position(w.nodes[other])
		return other != name && !p.Lost && !p.isFirst()
	}) {
		return
	}
	w.nodes[name] = &lostNode{name: name, rec: &regainRecord{V: Version},
		heard: map[string]raftPosition{}}
}

// ask takes one answer, and goes by what there is: answers may be of different moments.
func (w *lostWorld) ask(n *lostNode) {
	if n.rec == nil {
		return
	}
	if n.rec.Asked {
		if n.rec.isOver(w.position(n)) {
			n.rec = nil
		}
		return
	}
	other := w.names[w.r.IntN(len(w.names))]
	if other == n.name {
		return
	}
	n.heard[other] = w.position(w.nodes[other])
	answers := maps.Clone(n.heard)
	if w.bug == bugAsksMajority && len(answers)+1 > len(w.names)/2+1 {
		for _, name := range w.names {
			if _, ok := answers[name]; !ok && name != n.name {
				answers[name] = raftPosition{Term: 1, LogTerm: 1, LogIndex: 1}
			}
		}
	}
	if w.bug == bugLostMajority {
		for name, a := range answers {
			a.Lost = false
			answers[name] = a
		}
	}
	if rec, why := judgeRegain(n.name, w.names, answers); why == "" {
		n.rec = &rec
		w.regained++
	}
}

func (w *lostWorld) step() {
	n := w.nodes[w.names[w.r.IntN(len(w.names))]]
	what, dice := 0, w.r.IntN(100)
	for what < len(w.rates) && dice >= w.rates[what] {
		dice -= w.rates[what]
		what++
	}
	switch {
	case what == 0:
		w.campaign(n)
	case what == 1 && n.leads && len(n.log) < 40:
		n.log = append(n.log, n.term)
	case what == 2 && n.leads:
		size := len(n.log)
		if w.r.IntN(3) == 0 {
			size = 1 + w.r.IntN(size) // a batch of them
		}
		w.sendAll(lostMessage{kind: "append", from: n.name, term: n.term,
			log: slices.Clone(n.log[:size])})
	case what == 3:
		w.ask(n)
	case what == 4:
		w.wipe(n.name)
	case what == len(w.rates) && len(w.wire) > 0:
		i := w.r.IntN(len(w.wire))
		m := w.wire[i]
		w.wire = slices.Delete(w.wire, i, i+1)
		w.deliver(m)
	}
}

// run returns what went wrong, and how much came to pass.
func (w *lostWorld) run() string {
	for range 500 {
		if w.step(); w.problem != "" {
			return w.problem
		}
	}
	return ""
}

// TestRegainIsSafe runs the rules of a node that lost its Raft log against a model of Raft with
// delay, loss and reordering: a term has one leader at most, and each has what was committed.
func TestRegainIsSafe(t *testing.T) {
	var elected, committed, regained int
	for i := range *regainRuns {
		seed := *regainSeed + i
		w := newLostWorld(uint64(seed), "")
		if problem := w.run(); problem != "" {
			t.Fatalf("%s (go test ./election -run RegainIsSafe -regain.runs=1 -regain.seed=%d)", problem,
				seed)
		}
		elected, committed = elected+len(w.leaders), committed+len(w.commits)
		regained += w.regained
	}
	t.Logf("%d schedules: %d leaders, %d entries committed, %d nodes regained their vote",
		*regainRuns, elected, committed, regained)
	if *regainRuns >= 1000 && (elected < *regainRuns || committed < *regainRuns ||
		regained < *regainRuns/5) {
		t.Error("the schedules show too little")
	}
}

// TestRegainSimulationFindsBugs: each rule is needed. Some mistakes take many schedules: the search
// begins where one is near.
func TestRegainSimulationFindsBugs(t *testing.T) {
	for bug, from := range map[regainBug]int{
		bugVotesAtOnce: 0, bugSameTerm: 15000, bugShortLog: 800, bugOldLeader: 47500,
		bugSelfElected: 21100, bugAsksMajority: 400, bugLostMajority: 100,
	} {
		const limit = 5000
		problem := ""
		for seed := from; problem == "" && seed < from+limit; seed++ {
			if problem = newLostWorld(uint64(seed), bug).run(); problem != "" {
				t.Logf("%s: schedule %d: %s", bug, seed, problem)
			}
		}
		if problem == "" {
			t.Errorf("%s: not found in %d schedules", bug, limit)
		}
	}
}
