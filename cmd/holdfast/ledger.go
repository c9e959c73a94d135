package main

import (
	"fmt"
	"sync"
)

// Outcome is what the client was told of one write.
type Outcome uint8

// The outcomes of a write.
const (
	// OutcomePending is a write that was not answered yet.
	OutcomePending Outcome = iota
	// OutcomeAcknowledged is a commit that was reported as done: it must be there exactly once.
	OutcomeAcknowledged
	// OutcomeRefused is a write that was reported as not done: it must not be there.
	OutcomeRefused
	// OutcomeInDoubt is a write of which nothing is known: it may be there, but at most once.
	OutcomeInDoubt
)

// Ledger remembers what was promised of each write, to be held against what the database has. It
// is safe for concurrent use. A write costs one byte.
type Ledger struct {
	mu     sync.Mutex
	marks  []Outcome // by id less 1
	counts [4]int64
	notes  map[int64]string // of writes that were not acknowledged, the first of them
}

// Bounds of what is kept to explain a broken promise.
const (
	ledgerNotesMax    = 10000
	ledgerExamplesMax = 10
)

// Begin returns the id of a new write; no two writes, not even a retry, have the same.
func (l *Ledger) Begin() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marks = append(l.marks, OutcomePending)
	l.counts[OutcomePending]++
	return int64(len(l.marks))
}

// Settle records what the client was told. A write is settled once. The note explains an outcome
// that is not an acknowledgement.
func (l *Ledger) Settle(id int64, o Outcome, note string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id < 1 || id > int64(len(l.marks)) || l.marks[id-1] != OutcomePending {
		panic(fmt.Sprintf("BUG: ledger: write %d is not pending", id))
	}
	l.marks[id-1] = o
	l.counts[OutcomePending]--
	l.counts[o]++
	if note != "" && len(l.notes) < ledgerNotesMax {
		if l.notes == nil {
			l.notes = make(map[int64]string)
		}
		l.notes[id] = note
	}
}

// Count returns how many writes have the outcome.
func (l *Ledger) Count(o Outcome) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[o]
}

// SettledBelow returns the first id that is still pending, or the one that comes next: all below
// it are settled.
func (l *Ledger) SettledBelow(from int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := max(from, 1); id <= int64(len(l.marks)); id++ {
		if l.marks[id-1] == OutcomePending {
			return id
		}
	}
	return int64(len(l.marks)) + 1
}

// LedgerReport is how the database agrees with the ledger.
type LedgerReport struct {
	Acknowledged int64 `json:"acknowledged"`
	Refused      int64 `json:"refused"`
	InDoubt      int64 `json:"in_doubt"`
	// Pending are writes that were never answered; they are treated as in doubt.
	Pending int64 `json:"pending"`
	// Lost are acknowledged writes that are not there.
	Lost int64 `json:"lost"`
	// Doubled are writes that are there more than once.
	Doubled int64 `json:"doubled"`
	// Ghosts are refused writes that are there all the same.
	Ghosts int64 `json:"ghosts"`
	// Foreign are rows that no write made.
	Foreign int64 `json:"foreign"`
	// InDoubtThere are the writes in doubt that turned out to be there.
	InDoubtThere int64 `json:"in_doubt_there"`
	// Unbalanced are counters and sums that do not agree with the rows.
	Unbalanced int64 `json:"unbalanced"`
	// Examples explain some of the broken promises.
	Examples []string `json:"examples,omitempty"`
}

func (r *LedgerReport) example(format string, args ...any) {
	if len(r.Examples) < ledgerExamplesMax {
		r.Examples = append(r.Examples, fmt.Sprintf(format, args...))
	}
}

// Wrong is how many promises were broken.
func (r LedgerReport) Wrong() int64 {
	return r.Lost + r.Doubled + r.Ghosts + r.Foreign + r.Unbalanced
}

// LedgerRow is how often the database has a write.
type LedgerRow struct {
	ID, Count int64
}

// Check holds the rows with ids in [from, to) against the ledger. The rows are all there are in
// that range, in any order, each id once.
func (l *Ledger) Check(from, to int64, rows []LedgerRow) LedgerReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	from, to = max(from, 1), min(to, int64(len(l.marks))+1)
	var r LedgerReport
	isThere := make([]bool, max(to-from, 0))
	for _, row := range rows {
		if row.ID < from || row.ID >= to {
			r.Foreign += row.Count
			r.example("row %d was written by nobody", row.ID)
			continue
		}
		isThere[row.ID-from] = true
		if row.Count > 1 {
			r.Doubled++
			r.example("write %d is there %d times: %s", row.ID, row.Count, l.notes[row.ID])
		}
		switch l.marks[row.ID-1] {
		case OutcomeRefused:
			r.Ghosts++
			r.example("write %d is there though it was refused: %s", row.ID, l.notes[row.ID])
		case OutcomeInDoubt, OutcomePending:
			r.InDoubtThere++
		case OutcomeAcknowledged:
		}
	}
	for id := from; id < to; id++ {
		switch l.marks[id-1] {
		case OutcomeAcknowledged:
			r.Acknowledged++
			if !isThere[id-from] {
				r.Lost++
				r.example("write %d is not there though it was acknowledged", id)
			}
		case OutcomeRefused:
			r.Refused++
		case OutcomeInDoubt:
			r.InDoubt++
		case OutcomePending:
			r.Pending++
		}
	}
	return r
}
