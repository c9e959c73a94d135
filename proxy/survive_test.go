package proxy_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"holdfast/proxy"
)

var (
	surviveSample = flag.Int("survive.sample", 1, "at how many messages of a conversation, in "+
		"each direction, a fault that restarts the server is tried (others: four times as many); "+
		"0: at all")
	surviveSeed = flag.Uint64("survive.seed", 1, "seed of the sample")
	surviveOut  = flag.String("survive.out", "", "file to write the table to")
)

// survivors are the conversations that the table has.
var survivors = slices.Concat(scripts, []script{
	{name: "temporary tables", told: true, steps: []scriptStep{
		q("BEGIN"), q("CREATE TEMP TABLE mine (a int PRIMARY KEY, b text DEFAULT 'x')"),
		q("INSERT INTO mine SELECT generate_series(1, 50)"), q("COMMIT"),
		q("SELECT count(*), min(b) FROM mine"), q("SELECT 1"), q("SELECT a + 0 FROM mine WHERE a > 47"),
		q("BEGIN"), q("UPDATE mine SET b = 'y'"), q("DROP TABLE mine"), q("COMMIT"), q("SELECT 2"),
	}},
})

// guards are the modes that the table has.
var guards = []string{proxy.GuardAll, proxy.GuardExplicit, proxy.GuardOff}

// tally is what became of the conversations of a cell.
type tally struct {
	tried, kept int
	codes       map[string]int
}

func (c *tally) String() string {
	if c.tried == 0 {
		return "-"
	}
	if c.kept == c.tried {
		return fmt.Sprintf("kept (%d)", c.tried)
	}
	var parts []string
	for code, n := range c.codes {
		if code == "" {
			code = "no answer in the test's time"
		}
		parts = append(parts, fmt.Sprintf("%s: %d", code, n))
	}
	sort.Strings(parts)
	return fmt.Sprintf("kept %d of %d, %s", c.kept, c.tried, strings.Join(parts, ", "))
}

// TestWhatSurvives runs every conversation against every fault in every guard mode. A client must
// see what it sees without a fault, or one of the errors of the contract: 40001, and 08007 only
// where the mode leaves it unknown. That 40001 is true is for TestJudge…, TestCutAnywhere and
// TestReplay… to show: here tables are compared only where nothing was told. No session is lost.
func TestWhatSurvives(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute and more; TestCutAnywhere has the same conversations")
	}
	faults := []*fault{faultCut, faultLease, faultCrash, faultStop, faultSwitchover}
	rng := rand.New(rand.NewPCG(*surviveSeed, 0))
	table := map[string]map[string]*tally{}
	for _, guard := range guards {
		t.Run(guard, func(t *testing.T) {
			s := newStage(t, func(c *proxy.Config) { c.CommitGuard = guard })
			for _, f := range faults {
				for i := range survivors {
					s.fill(table, &survivors[i], f, guard, rng)
				}
			}
		})
	}
	text := surviveTable(faults, table)
	t.Log("\n" + text)
	if *surviveOut != "" {
		if err := os.WriteFile(filepath.FromSlash(*surviveOut), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// fill fills in a cell of the table.
func (s *stage) fill(table map[string]map[string]*tally, sc *script, f *fault, guard string,
	rng *rand.Rand,
) {
	s.t.Helper()
	if *onlyScript != "" && *onlyScript != sc.name {
		return
	}
	if table[sc.name] == nil {
		table[sc.name] = map[string]*tally{}
	}
	table[sc.name][f.name+"/"+guard] = s.tally(sc, f, guard, rng)
}

// tally tries a fault at messages of a conversation.
func (s *stage) tally(sc *script, f *fault, guard string, rng *rand.Rand) *tally {
	s.t.Helper()
	cell := &tally{codes: map[string]int{}}
	for _, toward := range []bool{true, false} {
		want := s.run(sc, f, -1, toward)
		for _, at := range sample(want.sent, f, rng) {
			got := s.run(sc, f, at, toward)
			if !got.hit {
				continue
			}
			cell.tried++
			diff := difference(want.seen, got.seen)
			if diff == "" && want.table == got.table {
				cell.kept++
				continue
			}
			code := honest(got.seen, guard)
			if sc.told && isTold(got.seen) {
				code = "57P01"
			}
			if diff == "" || code == "" {
				s.t.Errorf("%s: %s at %d of %d, to the server %v, guard %s, seed %d: %s; table %q "+
					"instead of %q", sc.name, f.name, at, want.sent, toward, guard, *surviveSeed, diff,
					got.table, want.table)
			}
			cell.codes[code]++
		}
	}
	return cell
}

// sample picks the messages that a fault is tried at.
func sample(n int, f *fault, rng *rand.Rand) []int {
	all := rng.Perm(n)
	slow := f != faultCut && f != faultLease
	if slow && *surviveOut == "" && rng.IntN(6) > 0 {
		return nil // a test picks some of the cells that take a second each
	}
	if *surviveSample > 0 {
		most := *surviveSample
		if !slow {
			most *= 4
		}
		all = all[:min(len(all), most)]
	}
	return all
}

// honest is the error that a client was told, if it is one that it may be told in that mode.
func honest(seen []string, guard string) string {
	if isGone(seen) {
		return ""
	}
	for _, m := range seen {
		switch {
		case m == "E 40001":
			return "40001"
		case m == "E 08007" && guard != proxy.GuardAll:
			return "08007"
		}
	}
	return ""
}

// isTold tells that the session ended, and said that it had what cannot be carried.
func isTold(seen []string) bool {
	return len(seen) > 1 && isGone(seen) && seen[len(seen)-2] == "E 57P01"
}

// surviveTable is the document.
func surviveTable(faults []*fault, table map[string]map[string]*tally) string {
	var b strings.Builder
	b.WriteString("# What survives\n\nWritten by `make survives` from what it saw on a real server: " +
		"each conversation below, with each fault\nat some of its messages, drawn at random, in both " +
		"directions (TestCutAnywhere cuts at every one).\n*kept (n)*: in all n cases the client " +
		"saw, to the byte, what it sees without a fault, and the tables are the\nsame. Errors are " +
		"counted by SQLSTATE: 40001 says that surely nothing was done, 08007 that nobody can " +
		"know;\nwhere one was told the tables are not compared here. A case that loses the session " +
		"or is not answered fails\nthe test, but with temporary tables that are committed: those are " +
		"carried over a planned change only, and 57P01\ntells their client so. The conversations are " +
		"in proxy/scripts_test.go and survive_test.go.\n")
	var names []string
	for i := range survivors {
		if table[survivors[i].name] != nil {
			names = append(names, survivors[i].name)
		}
	}
	for _, guard := range guards {
		fmt.Fprintf(&b, "\n## `commit_guard: %s`\n\n| conversation |", guard)
		for _, f := range faults {
			fmt.Fprintf(&b, " %s |", f.name)
		}
		b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(faults)) + "\n")
		for _, name := range names {
			fmt.Fprintf(&b, "| %s |", name)
			for _, f := range faults {
				fmt.Fprintf(&b, " %s |", table[name][f.name+"/"+guard])
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}
