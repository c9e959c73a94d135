package election

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// raftPosition is how far a node's Raft is.
type raftPosition struct {
	// Term is the newest that the node has taken part in, LogTerm and LogIndex are of the last
	// entry that it has.
	Term     uint64 `json:"term"`
	LogTerm  uint64 `json:"log_term"`
	LogIndex uint64 `json:"log_index"`
	// Voters are those of its newest configuration.
	Voters []string `json:"voters,omitempty"`
	// Lost tells that it started without a log, and may have voted and stored what it does not
	// know of.
	Lost bool `json:"lost,omitempty"`
}

// compareLog orders by the last entry as an election does (Raft thesis 3.6.1).
func (p raftPosition) compareLog(term, index uint64) int {
	return cmp.Or(cmp.Compare(p.LogTerm, term), cmp.Compare(p.LogIndex, index))
}

// isFirst tells that the node has seen no election: it has the first configuration at most.
func (p raftPosition) isFirst() bool { return p.Term <= 1 && p.compareLog(1, 1) <= 0 }

// regainRecord is kept in the stable store from a start without a log on. What such a node voted
// for and stored before it does not know; it behaves as one that has the term and the log that
// are written here (DESIGN.md I78).
type regainRecord struct {
	V int `json:"v"`
	// Asked tells that the others were asked and the rest is known.
	Asked    bool   `json:"asked"`
	Term     uint64 `json:"term"`
	LogTerm  uint64 `json:"log_term"`
	LogIndex uint64 `json:"log_index"`
}

// mayVote tells whether a vote for a candidate of that term and with that last entry takes back
// nothing that this node may have voted for or stored.
func (r regainRecord) mayVote(term, logTerm, logIndex uint64) bool {
	candidate := raftPosition{LogTerm: logTerm, LogIndex: logIndex}
	return r.Asked && term > r.Term && candidate.compareLog(r.LogTerm, r.LogIndex) >= 0
}

// mayFollow tells whether a leader of that term may be listened to.
func (r regainRecord) mayFollow(term uint64) bool { return r.Asked && term >= r.Term }

// isCaughtUp tells whether the own log stands for the one that is written here.
func (r regainRecord) isCaughtUp(p raftPosition) bool {
	return r.Asked && p.compareLog(r.LogTerm, r.LogIndex) >= 0
}

// isOver tells whether Raft's own rules say all that the record says.
func (r regainRecord) isOver(p raftPosition) bool { return r.isCaughtUp(p) && p.Term > r.Term }

// judgeRegain makes the record from the answers of the other nodes, or tells what is missing.
// Every other voter has to answer: any of them may be the candidate that got this node's vote, or
// the leader whose entry it stored. configured are the voters as long as there is no log anywhere.
func judgeRegain(self string, configured []string, answers map[string]raftPosition,
) (regainRecord, string) {
	r := regainRecord{V: Version, Asked: true}
	voters, newest := configured, raftPosition{}
	isFirst := true
	for _, a := range answers {
		r.Term = max(r.Term, a.Term)
		if a.compareLog(r.LogTerm, r.LogIndex) > 0 {
			r.LogTerm, r.LogIndex = a.LogTerm, a.LogIndex
		}
		if len(a.Voters) > 0 && a.compareLog(newest.LogTerm, newest.LogIndex) > 0 {
			voters, newest = a.Voters, a
		}
		isFirst = isFirst && a.isFirst()
	}
	var missing []string
	lost := 0
	for _, name := range voters {
		a, ok := answers[name]
		switch {
		case name == self:
			lost++
		case !ok:
			missing = append(missing, name)
		case a.Lost:
			lost++
		}
	}
	majority := len(voters)/2 + 1
	switch isVoter := slices.Contains(voters, self); {
	case !isVoter && len(voters)-len(missing) >= majority:
		return r, "" // it is to be added, and comes as a learner
	case len(missing) > 0:
		slices.Sort(missing)
		return r, "it waits for an answer of " + strings.Join(missing, ", ")
	case !isFirst && lost >= majority:
		return r, fmt.Sprintf("%d of the %d voters have lost theirs, and with them entries that "+
			"no other one may have: see `holdfast raft recover`", lost, len(voters))
	}
	return r, ""
}

// regainKey is where the record is in the stable store.
var regainKey = []byte("holdfast.regain")

// regain is the record of a node that started without a log, as long as it says more than Raft's
// own rules.
type regain struct {
	mu  sync.Mutex
	rec regainRecord
	why string // what the node waits for
}

func (g *regain) record() regainRecord {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rec
}

// waits tells what a node that does not take part in Raft yet waits for; empty if it does.
func (g *regain) waits() string {
	if g == nil {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rec.Asked {
		return ""
	}
	return cmp.Or(g.why, "it asks the others")
}

// loadRegain reads the record, and begins one where there is no log. Nil is a node with a memory.
func loadRegain(s *store, hasLog bool, here raftPosition) (*regain, error) {
	b, err := s.Get(regainKey)
	if err != nil && err.Error() != "not found" { // the error that Raft asks of a stable store
		return nil, fmt.Errorf("read %s from the Raft log: %w", regainKey, err)
	}
	var rec regainRecord
	if len(b) > 0 {
		if err := json.Unmarshal(b, &rec); err != nil {
			return nil, fmt.Errorf("read %s from the Raft log: %w", regainKey, err)
		}
		if rec.V > Version {
			return nil, fmt.Errorf("%s has version %d, this release knows %d: upgrade", regainKey,
				rec.V, Version)
		}
	}
	switch {
	case len(b) == 0 && hasLog:
		return nil, nil
	case len(b) > 0 && rec.isOver(here):
		return nil, s.Set(regainKey, nil)
	case len(b) == 0:
		rec = regainRecord{V: Version}
		if err := saveRegain(s, rec); err != nil {
			return nil, err
		}
	}
	return &regain{rec: rec}, nil
}

func saveRegain(s *store, rec regainRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return s.Set(regainKey, b)
}
