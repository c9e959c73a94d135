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

	"holdfast/pgwire"
	"holdfast/proxy"
)

var (
	surviveSample = flag.Int("survive.sample", 1, "at how many messages of a conversation, in "+
		"each direction, a fault that restarts the server is tried (others: two and three times as "+
		"many); 0: at all")
	surviveSeed = flag.Uint64("survive.seed", 1, "seed of the sample")
	surviveOut  = flag.String("survive.out", "", "file to write the table to")
)

// survivors are the conversations that the table has.
var survivors = slices.Concat(scripts, []script{
	{name: "temporary tables", steps: []scriptStep{
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
	if c == nil || c.tried == 0 {
		return "-"
	}
	if c.kept == c.tried {
		return fmt.Sprintf("kept (%d)", c.tried)
	}
	var parts []string
	for code, n := range c.codes {
		parts = append(parts, fmt.Sprintf("%s: %d", code, n))
	}
	sort.Strings(parts)
	return fmt.Sprintf("kept %d of %d, %s", c.kept, c.tried, strings.Join(parts, ", "))
}

// add counts an ending.
func (c *tally) add(e ending) {
	c.tried++
	codes := map[string]bool{}
	for _, code := range e.told {
		codes[code] = true
	}
	if e.gone {
		codes["57P01"] = true
	}
	for code := range codes {
		c.codes[code]++
	}
	if len(codes) == 0 {
		c.kept++
	}
}

// matrix is the stage of a guard mode, and the table that all of them fill in.
type matrix struct {
	*randomStage
	guard string
	rng   *rand.Rand
	table map[string]map[string]*tally
	cells int
}

func newMatrix(t *testing.T, guard string) *matrix {
	t.Helper()
	m := &matrix{guard: guard, rng: rand.New(rand.NewPCG(*surviveSeed, 0))}
	m.randomStage = newRandomStage(t, func(c *proxy.Config) { c.CommitGuard = guard })
	m.ask("CREATE TABLE t (a int PRIMARY KEY, b text); GRANT ALL ON t TO app")
	const gids = "(SELECT coalesce(string_agg(gid, ',' ORDER BY gid), '') FROM pg_prepared_xacts)"
	m.reset = func() {
		for gid := range strings.SplitSeq(m.ask("SELECT "+gids), ",") {
			if gid != "" {
				m.ask("ROLLBACK PREPARED '" + gid + "'")
			}
		}
		m.ask("TRUNCATE t")
	}
	m.tables = "SELECT coalesce(string_agg(a || left(b, 20), ',' ORDER BY a), '') || ' and ' || " +
		gids + " FROM t"
	return m
}

// TestWhatSurvives runs every conversation against every fault in every guard mode, each at drawn
// messages, bytes of them, or moments. What the client is told has to be what the contract says of
// the very point at which its connection was lost (survive_expect_test.go), and to be true: the
// rest of the conversation, and the tables, are those of a server that did what was not denied,
// and not what was (survive_truth_test.go).
func TestWhatSurvives(t *testing.T) {
	if testing.Short() {
		t.Skip("minutes; TestCutAnywhere has the same conversations")
	}
	table := map[string]map[string]*tally{}
	for _, guard := range guards {
		t.Run(guard, func(t *testing.T) {
			m := newMatrix(t, guard)
			m.table = table
			for i := range survivors {
				m.fill(newConversation(&survivors[i]), matrixFaults)
			}
			m.fillRest()
			m.away()
			t.Logf("%d cells (-survive.seed=%d)", m.cells, *surviveSeed)
		})
	}
	text := surviveTable(table)
	t.Log("\n" + text)
	if *surviveOut != "" {
		if err := os.WriteFile(filepath.FromSlash(*surviveOut), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// fillRest has the conversations that few clients have: every fault in the mode that leaves nothing
// open, and cuts in the others.
func (m *matrix) fillRest() {
	m.t.Helper()
	faults := matrixFaults
	if m.guard != proxy.GuardAll {
		faults = []*fault{matrixCut}
	}
	version := m.ask("SELECT current_setting('server_version_num')::int / 10000")
	for i := range cutScripts {
		sc := &cutScripts[i]
		if sc.before != 0 && fmt.Sprint(sc.before) <= version {
			continue
		}
		if sc.allow == pgwire.CodeSerializationFailure {
			continue // expected knows nothing of units that are not run again; TestCutAnywhere does
		}
		m.fill(newConversation(sc), faults)
	}
}

// awayInTest is in how many conversations a test has changes to another server, which take seconds.
const awayInTest = 3

// away has changes to another server, planned and not, in some of the conversations.
func (m *matrix) away() {
	m.t.Helper()
	drawn := m.rng.Perm(len(survivors))
	if *surviveOut == "" {
		if m.guard != proxy.GuardAll {
			return
		}
		drawn = drawn[:awayInTest]
	}
	r := newRounds(m.randomStage)
	faults := []*fault{r.switchover(), r.failover()}
	for _, i := range drawn {
		m.fill(newConversation(&survivors[i]), faults)
	}
}

// fill fills in the cells of a conversation.
func (m *matrix) fill(c *conversation, faults []*fault) {
	m.t.Helper()
	if *onlyScript != "" && *onlyScript != c.name {
		return
	}
	c.want = m.direct(c.atoms)
	m.struck(c, &strike{fault: matrixLease, at: -1}) // the proxy learns what there is to know of it
	whole := &strike{fault: matrixLease, at: -1}
	got := m.struck(c, whole)
	if at, diff := c.want.compare(&got); at >= 0 {
		m.t.Errorf("%s, no fault: atom %d: %s", c.name, at, diff)
		return
	}
	if m.table[c.name] == nil {
		m.table[c.name] = map[string]*tally{}
	}
	for _, f := range faults {
		cell := &tally{codes: map[string]int{}}
		m.table[c.name][f.name+"/"+m.guard] = cell
		for _, k := range strikesOf(f, whole.seen, whole.took, m.most(f), m.rng) {
			m.try(c, k, cell)
		}
	}
}

// most is how often a fault comes in a conversation, in each direction; 0: at each message, and -1
// not at all. A test has some of the cells that take a second and more.
func (m *matrix) most(f *fault) int {
	isTest := *surviveOut == ""
	switch {
	case f == matrixCut:
		return 3 * *surviveSample
	case !f.restarts:
		return 2 * *surviveSample
	case isTest && f.behind == nil && m.rng.IntN(8) > 0:
		return -1
	}
	return *surviveSample
}

// try has a conversation with a fault and judges it.
func (m *matrix) try(c *conversation, k *strike, cell *tally) {
	m.t.Helper()
	got := m.struck(c, k)
	if !k.isHit {
		return
	}
	m.cells++
	e := endingOf(got)
	cell.add(e)
	p := c.passageOf(k)
	wrong := ""
	if at, diff := c.want.compare(&got); at >= 0 && len(e.told) == 0 && !e.gone {
		wrong = fmt.Sprintf("atom %d: %s", at, diff)
	} else if all := c.expected(p, k.fault, m.guard); !slices.ContainsFunc(all, e.is) {
		wrong = fmt.Sprintf("it ended so: %v; expected: %v", e, all)
	}
	if wrong == "" && (len(e.told) > 0 || e.gone) {
		if diff := m.isTrue(c, got, e); diff != "" {
			wrong = fmt.Sprintf("it was told %v, which is not true: %s", e, diff)
		}
	}
	if wrong != "" {
		m.t.Errorf("%s: guard %s, %v, -survive.seed=%d: %s\npassed %+v\n%s", c.name, m.guard, k,
			*surviveSeed, wrong, p, randomTranscripts(c.atoms, c.want, got))
	}
}

// isTold tells that the session ended, and said that it had what cannot be carried.
func isTold(seen []string) bool {
	return len(seen) > 1 && isGone(seen) && seen[len(seen)-2] == "E 57P01"
}

// surviveTable is the document.
func surviveTable(table map[string]map[string]*tally) string {
	var b strings.Builder
	b.WriteString(surviveIntro)
	var names, faults []string
	for _, sc := range slices.Concat(survivors, cutScripts) {
		if table[sc.name] != nil {
			names = append(names, sc.name)
		}
	}
	for _, f := range matrixFaults {
		faults = append(faults, f.name)
	}
	faults = append(faults, "switchover", "kill -9, standby promoted")
	for _, guard := range guards {
		fmt.Fprintf(&b, "\n## `commit_guard: %s`\n\n| conversation |", guard)
		for _, f := range faults {
			fmt.Fprintf(&b, " %s |", f)
		}
		b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(faults)) + "\n")
		for _, name := range names {
			if table[name][matrixCut.name+"/"+guard] == nil {
				continue // is in the table of another mode
			}
			fmt.Fprintf(&b, "| %s |", name)
			for _, f := range faults {
				fmt.Fprintf(&b, " %s |", table[name][f+"/"+guard])
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

const surviveIntro = `# What survives

Written by "make survives" from what it saw on real servers: each conversation below, with each
fault at some of its messages, drawn at random, in both directions (TestCutAnywhere cuts at every
one).

*kept (n)*: in all n cases the client saw, to the byte, what it sees without a fault, and the
tables are the same. Errors are counted by SQLSTATE, once for a case that has them: 40001 says
that surely nothing was done, 08007 that nobody can know, and 57P01 ends a session with temporary
tables that are committed: those are carried over a planned change only. *-* was not drawn.

Each case has an expectation of its own: which statement is told what, derived from the
[contract](contract.md) and from what had passed on the connection that was lost. A case that
differs fails the test. Where an error was told it is tried on a server of its own: the same
conversation without what was told 40001, and with what was told 08007 done up to one of its
statements; all other answers, and the tables, have to be the same.

The faults: the connection to the server is cut at a message, inside one, or at any moment; the
lease is lost and comes back; the server is killed, or shut down at once, and comes back as a new
epoch; it is restarted with a drain; with a drain, its standby becomes the primary; all of its
processes are killed, and its standby, for which commits wait, becomes the primary. The
conversations are in proxy/scripts_test.go, replay_scripts_test.go and survive_test.go; those of
the second file have only the first fault in the second and third table.
`
