package main

import (
	"fmt"
	"slices"
	"strings"
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
// is safe for concurrent use. A write costs three bytes.
type Ledger struct {
	mu      sync.Mutex
	marks   []ledgerMark // by id less 1
	counts  [4]int64
	kinds   ledgerNames
	codes   ledgerNames
	rowless map[uint8]bool   // kinds of writes that leave no row of their own
	notes   map[int64]string // of writes that were not acknowledged, the first of them
}

// ledgerMark is what is known of one write; kind and code are places in the ledger's names.
type ledgerMark struct {
	outcome    Outcome
	kind, code uint8
}

// ledgerNames gives each name a small number. What does not fit shares the last one.
type ledgerNames []string

// ledgerNamesMax is how many there may be: a mark has a byte for them.
const ledgerNamesMax = 255

func (n *ledgerNames) place(name string) uint8 {
	if i := slices.Index(*n, name); i >= 0 {
		return uint8(i)
	}
	if len(*n) == ledgerNamesMax {
		(*n)[ledgerNamesMax-1] = "others"
		return ledgerNamesMax - 1
	}
	*n = append(*n, name)
	return uint8(len(*n) - 1)
}

// Bounds of what is kept to explain a broken promise.
const (
	ledgerNotesMax    = 10000
	ledgerExamplesMax = 10
)

// Begin returns the id of a new write; no two writes, not even a retry, have the same.
func (l *Ledger) Begin() int64 { return l.BeginKind("") }

// BeginKind is Begin for a write that is counted with others of its kind.
func (l *Ledger) BeginKind(kind string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.beginLocked(l.kinds.place(kind))
}

// BeginRowless is BeginKind for a write that leaves no row with its id; all writes of the kind are
// so. Whoever asks has another way to see whether it is there.
func (l *Ledger) BeginRowless(kind string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	place := l.kinds.place(kind)
	if l.rowless == nil {
		l.rowless = make(map[uint8]bool)
	}
	l.rowless[place] = true
	return l.beginLocked(place)
}

func (l *Ledger) beginLocked(kind uint8) int64 {
	l.marks = append(l.marks, ledgerMark{kind: kind})
	l.counts[OutcomePending]++
	return int64(len(l.marks))
}

// Settle records what the client was told. A write is settled once. The note explains an outcome
// that is not an acknowledgement.
func (l *Ledger) Settle(id int64, o Outcome, note string) { l.SettleCode(id, o, "", note) }

// SettleCode is Settle with the SQLSTATE that the client was told, or a word in place of it.
func (l *Ledger) SettleCode(id int64, o Outcome, code, note string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id < 1 || id > int64(len(l.marks)) || l.marks[id-1].outcome != OutcomePending {
		panic(fmt.Sprintf("BUG: ledger: write %d is not pending", id))
	}
	l.marks[id-1].outcome, l.marks[id-1].code = o, l.codes.place(code)
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
		if l.marks[id-1].outcome == OutcomePending {
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
	// Kinds is the same by kind of write, in the order of the names; empty if no write has one.
	Kinds []LedgerKind `json:"kinds,omitempty"`
	// Examples explain some of the broken promises.
	Examples []string `json:"examples,omitempty"`
}

// LedgerKind is a LedgerReport of the writes of one kind.
type LedgerKind struct {
	Kind         string `json:"kind"`
	Acknowledged int64  `json:"acknowledged"`
	Refused      int64  `json:"refused"`
	InDoubt      int64  `json:"in_doubt"`
	// InDoubtThere are those in doubt that turned out to be there; of writes without a row of
	// their own nobody knows.
	InDoubtThere int64 `json:"in_doubt_there"`
	// Wrong are those that were lost, doubled or there though they were refused.
	Wrong int64 `json:"wrong"`
	// RefusedBy and DoubtBy count by SQLSTATE, or by a word if there was none.
	RefusedBy map[string]int64 `json:"refused_by,omitempty"`
	DoubtBy   map[string]int64 `json:"in_doubt_by,omitempty"`
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

// kind is the part of the report for a kind; it is made if there is none.
func (r *LedgerReport) kind(name string) *LedgerKind {
	i, found := slices.BinarySearchFunc(r.Kinds, name, func(k LedgerKind, name string) int {
		return strings.Compare(k.Kind, name)
	})
	if !found {
		r.Kinds = slices.Insert(r.Kinds, i, newLedgerKind(name))
	}
	return &r.Kinds[i]
}

func newLedgerKind(name string) LedgerKind {
	return LedgerKind{Kind: name, RefusedBy: map[string]int64{}, DoubtBy: map[string]int64{}}
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
	there := make([]int64, max(to-from, 0))
	for _, row := range rows {
		if row.ID < from || row.ID >= to {
			r.Foreign += row.Count
			r.example("row %d was written by nobody", row.ID)
			continue
		}
		there[row.ID-from] = row.Count
	}
	nameless := newLedgerKind("")
	for id := from; id < to; id++ {
		k := &nameless
		if name := l.kinds[l.marks[id-1].kind]; name != "" {
			k = r.kind(name)
		}
		l.checkLocked(&r, k, id, there[id-from])
	}
	return r
}

// checkLocked adds one write, which is there n times, to the report and to its kind's.
func (l *Ledger) checkLocked(r *LedgerReport, k *LedgerKind, id, n int64) {
	m := l.marks[id-1]
	if n > 1 {
		r.Doubled++
		k.Wrong++
		r.example("write %d (%s) is there %d times: %s", id, k.Kind, n, l.notes[id])
	}
	switch m.outcome {
	case OutcomeAcknowledged:
		r.Acknowledged++
		k.Acknowledged++
		if n == 0 && !l.rowless[m.kind] {
			r.Lost++
			k.Wrong++
			r.example("write %d (%s) is not there though it was acknowledged", id, k.Kind)
		}
	case OutcomeRefused:
		r.Refused++
		k.Refused++
		k.RefusedBy[l.codes[m.code]]++
		if n > 0 {
			r.Ghosts++
			k.Wrong++
			r.example("write %d (%s) is there though it was refused: %s", id, k.Kind,
				l.notes[id])
		}
	case OutcomeInDoubt, OutcomePending:
		l.doubtLocked(r, k, m, n)
	}
}

// doubtLocked adds a write of which the client does not know.
func (l *Ledger) doubtLocked(r *LedgerReport, k *LedgerKind, m ledgerMark, n int64) {
	k.InDoubt++
	if m.outcome == OutcomeInDoubt {
		r.InDoubt++
		k.DoubtBy[l.codes[m.code]]++
	} else {
		r.Pending++
		k.DoubtBy["pending"]++
	}
	if n > 0 {
		r.InDoubtThere++
		k.InDoubtThere++
	}
}

// Add sums up the reports of ranges; Unbalanced is of the whole table each time.
func (r *LedgerReport) Add(o LedgerReport) {
	r.Acknowledged += o.Acknowledged
	r.Refused += o.Refused
	r.InDoubt += o.InDoubt
	r.Pending += o.Pending
	r.Lost += o.Lost
	r.Doubled += o.Doubled
	r.Ghosts += o.Ghosts
	r.Foreign += o.Foreign
	r.InDoubtThere += o.InDoubtThere
	r.Unbalanced = o.Unbalanced
	for i := range o.Kinds {
		r.kind(o.Kinds[i].Kind).add(&o.Kinds[i])
	}
	for _, text := range o.Examples {
		r.example("%s", text)
	}
}

func (k *LedgerKind) add(o *LedgerKind) {
	k.Acknowledged += o.Acknowledged
	k.Refused += o.Refused
	k.InDoubt += o.InDoubt
	k.InDoubtThere += o.InDoubtThere
	k.Wrong += o.Wrong
	for code, n := range o.RefusedBy {
		k.RefusedBy[code] += n
	}
	for code, n := range o.DoubtBy {
		k.DoubtBy[code] += n
	}
}
