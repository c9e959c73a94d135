package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// demoEvent is what the demo tells as it goes on; which fields are set depends on the event.
type demoEvent struct {
	Event string `json:"event"`
	// Seconds is the time since the demo began.
	Seconds float64       `json:"t"`
	Text    string        `json:"text,omitempty"`
	Ready   *demoReady    `json:"ready,omitempty"`
	Change  *DemoChange   `json:"change,omitempty"`
	Stats   *LoadStats    `json:"stats,omitempty"`
	Ledger  *LedgerReport `json:"ledger,omitempty"`
	Result  *DemoResult   `json:"result,omitempty"`
}

// demoReady tells how to reach the cluster.
type demoReady struct {
	Dir     string     `json:"dir"`
	Primary string     `json:"primary"`
	Nodes   []demoNode `json:"nodes"`
	// Superuser and PasswordFile log in through any proxy.
	Superuser    string `json:"superuser"`
	PasswordFile string `json:"password_file"`
}

type demoNode struct {
	Name  string `json:"name"`
	Proxy string `json:"proxy"`
	HTTP  string `json:"http"`
}

// DemoChange is one fault or switchover and what came of it.
type DemoChange struct {
	Fault faultKind `json:"fault"`
	// Node is the one that was hit: the primary of that time.
	Node string `json:"node"`
	// Kind, From, To, Epoch, Cause and PhasesMS are the lock's history; Kind is empty if the
	// fault changed nothing.
	Kind     string           `json:"kind,omitempty"`
	From     string           `json:"from,omitempty"`
	To       string           `json:"to,omitempty"`
	Epoch    uint64           `json:"epoch,omitempty"`
	Cause    string           `json:"cause,omitempty"`
	PhasesMS map[string]int64 `json:"phases_ms,omitempty"`
	// Cut is how many connections were cut.
	Cut     int   `json:"cut_connections,omitempty"`
	TotalMS int64 `json:"total_ms,omitempty"`
	// FaultAt is when the fault was done, LockAt when the lock was entered, both by wall clocks:
	// on one machine the difference of what was measured beside them means something.
	FaultAt time.Time  `json:"fault_at"`
	LockAt  *time.Time `json:"lock_at,omitempty"`
	// GapMS is the longest time without an acknowledged commit of any session.
	GapMS int64 `json:"gap_ms"`
	// HealthyMS is the time until all members stream again.
	HealthyMS int64  `json:"healthy_ms"`
	Error     string `json:"error,omitempty"`
}

// DemoResult is how the demo ended.
type DemoResult struct {
	OK      bool         `json:"ok"`
	Wrong   []string     `json:"wrong,omitempty"`
	Seconds float64      `json:"seconds"`
	Stats   LoadStats    `json:"stats"`
	Ledger  LedgerReport `json:"ledger"`
	Changes []DemoChange `json:"changes"`
}

// judge fills in what was wrong.
func (r *DemoResult) judge() {
	bad := func(n int64, what string) {
		if n > 0 {
			r.Wrong = append(r.Wrong, fmt.Sprintf("%d %s", n, what))
		}
	}
	bad(r.Ledger.Lost, "acknowledged commits lost")
	bad(r.Ledger.Doubled, "commits doubled")
	bad(r.Ledger.Ghosts, "refused writes committed all the same")
	bad(r.Ledger.Foreign, "rows that nobody wrote")
	bad(r.Ledger.Unbalanced, "counters or sums that do not agree")
	bad(r.Stats.Dropped, "sessions dropped")
	bad(r.Stats.StateWrong, "sessions with wrong state")
	bad(r.Stats.Miscounted, "answers of counters that are wrong")
	bad(r.Stats.Refused, "statements refused with an error that a client cannot expect")
	for _, c := range r.Changes {
		if c.Error != "" {
			r.Wrong = append(r.Wrong, fmt.Sprintf("%s of %s: %s", c.Fault, c.Node, c.Error))
		}
	}
	r.OK = len(r.Wrong) == 0
}

// printJSON returns a printer of one object a line.
func printJSON(out io.Writer) func(demoEvent) {
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	return func(e demoEvent) {
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(e)
	}
}

// printPlain returns a printer of lines.
func printPlain(out io.Writer) func(demoEvent) {
	var mu sync.Mutex
	return func(e demoEvent) {
		mu.Lock()
		defer mu.Unlock()
		for line := range strings.SplitSeq(e.lines(), "\n") {
			fmt.Fprintf(out, "%7.1fs  %s\n", e.Seconds, line)
		}
	}
}

// lines says the event in words.
func (e *demoEvent) lines() string {
	switch e.Event {
	case "ready":
		return e.Ready.text()
	case "change":
		return e.Change.text()
	case "check":
		return checkText(e.Stats, e.Ledger)
	case "result":
		return e.Result.text()
	default:
		return e.Text
	}
}

func (r *demoReady) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ready: primary is %s\n", r.Primary)
	for _, n := range r.Nodes {
		fmt.Fprintf(&b, "  %s: proxy %s, holdfast status --url http://%s\n", n.Name, n.Proxy,
			n.HTTP)
	}
	host, port, _ := strings.Cut(r.Nodes[0].Proxy, ":")
	fmt.Fprintf(&b, "  PGSSLMODE=disable PGPASSWORD=$(cat %s) psql -h %s -p %s -U %s",
		r.PasswordFile, host, port, r.Superuser)
	return b.String()
}

func (c *DemoChange) text() string {
	var b strings.Builder
	switch {
	case c.Cut > 0:
		fmt.Fprintf(&b, "%d connections cut, %s stays primary", c.Cut, c.Node)
	case c.Kind == "":
		fmt.Fprintf(&b, "%s stays primary", c.Node)
	default:
		fmt.Fprintf(&b, "%s %s -> %s, epoch %d (ms: %s)", c.Kind, orDash(c.From), c.To, c.Epoch,
			phasesText(c.PhasesMS))
	}
	fmt.Fprintf(&b, "; %d ms without a commit, all members healthy after %.1f s", c.GapMS,
		float64(c.HealthyMS)/1000)
	if c.Error != "" {
		fmt.Fprintf(&b, "; WRONG: %s", c.Error)
	}
	return b.String()
}

func checkText(s *LoadStats, l *LedgerReport) string {
	text := fmt.Sprintf("%d sessions: %d kept, %d dropped", s.Sessions, s.Kept, s.Dropped)
	if s.Cut > 0 {
		text += fmt.Sprintf(", %d connections ended with their proxy's node", s.Cut)
	}
	return text + fmt.Sprintf("; %d commits, %d retried, %d in doubt; acknowledged commits: "+
		"%d lost, %d doubled", s.Commits, s.Retried, s.InDoubt, l.Lost, l.Doubled)
}

func (r *DemoResult) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "after %.0f s and %d changes: %s", r.Seconds, len(r.Changes),
		checkText(&r.Stats, &r.Ledger))
	fmt.Fprintf(&b, "\nchecked: %d writes acknowledged, %d refused, %d in doubt (%d of them are "+
		"there); session state looked at %d times", r.Ledger.Acknowledged, r.Ledger.Refused,
		r.Ledger.InDoubt+r.Ledger.Pending, r.Ledger.InDoubtThere, r.Stats.StateChecks)
	for _, line := range slices.Concat(r.gaps(), r.Ledger.lines()) {
		b.WriteString("\n" + line)
	}
	for _, w := range r.Wrong {
		b.WriteString("\nWRONG: " + w)
	}
	for _, d := range slices.Concat(r.Ledger.Examples, r.Stats.Drops) {
		b.WriteString("\n  " + d)
	}
	if r.OK {
		b.WriteString("\nnothing lost, nothing doubled, no session dropped")
	}
	return b.String()
}

// gaps is a line for each kind of fault with the times without a commit.
func (r *DemoResult) gaps() []string {
	var lines []string
	for _, kind := range allFaults {
		var ms []int64
		for _, c := range r.Changes {
			if c.Fault == kind {
				ms = append(ms, c.GapMS)
			}
		}
		if len(ms) == 0 {
			continue
		}
		slices.Sort(ms)
		lines = append(lines, fmt.Sprintf("%-10s %d times, without a commit: median %d ms, "+
			"longest %d ms", kind, len(ms), ms[(len(ms)-1)/2], ms[len(ms)-1]))
	}
	return lines
}

// seconds rounds to milliseconds.
func seconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }

// lines is a line for each kind of write.
func (r *LedgerReport) lines() []string {
	var lines []string
	for i := range r.Kinds {
		k := &r.Kinds[i]
		text := fmt.Sprintf("%-27s %d acknowledged, %d refused%s, %d in doubt%s", k.Kind,
			k.Acknowledged, k.Refused, codesText(k.RefusedBy), k.InDoubt, codesText(k.DoubtBy))
		if k.InDoubtThere > 0 {
			text += fmt.Sprintf(", %d of them there", k.InDoubtThere)
		}
		if k.Wrong > 0 {
			text += fmt.Sprintf("; WRONG: %d", k.Wrong)
		}
		lines = append(lines, text)
	}
	return lines
}

// codesText lists how often there was each code, in parentheses.
func codesText(codes map[string]int64) string {
	var parts []string
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		parts = append(parts, fmt.Sprintf("%s: %d", code, codes[code]))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
