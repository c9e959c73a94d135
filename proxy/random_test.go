package proxy_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

var (
	randomSeed = flag.Uint64("random.seed", 1, "seed of the first script of TestRandomScripts")
	randomRuns = flag.Int("random.runs", 12, "how many scripts TestRandomScripts has")
	randomCuts = flag.Int("random.cuts", 4, "at how many messages each script is cut")
)

// randomHeard is what came of a script: for each atom its answers, and what is there afterwards.
type randomHeard struct {
	atoms  [][]string
	params map[string]string // as the client was told
	tables string
}

// randomStage is a rig for one script after the other.
type randomStage struct {
	*rig
	admin  *pgconn.PgConn // of the server itself; nil: it was lost
	counts map[string]int
	ref    randomHeard // what a server does with the script of now

	reset  func()       // the tables, before each script
	tables string       // asks what they have
	whole  atomic.Int32 // atoms of the script that were sent to their end
}

func newRandomStage(t *testing.T, change func(*proxy.Config)) *randomStage {
	t.Helper()
	s := &randomStage{counts: map[string]int{}, rig: newRig(t, func(c *proxy.Config) {
		c.KeepAlive, c.Reuse = time.Hour, false // what is left behind would be counted too
		if change != nil {
			change(c)
		}
	})}
	s.ask("CREATE TABLE led (id int); CREATE TABLE cnt (a int PRIMARY KEY, n int);" +
		"GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk, app")
	s.reset = func() { s.ask("TRUNCATE led, cnt; INSERT INTO cnt VALUES (1, 1), (2, 2), (3, 3)") }
	s.tables = "SELECT coalesce(string_agg(id::text, ',' ORDER BY id), '') || ' and ' || " +
		"(SELECT string_agg(a || ':' || n, ',' ORDER BY a) FROM cnt) FROM led"
	return s
}

// ask asks the server itself, as its superuser.
func (s *randomStage) ask(sql string) string {
	s.t.Helper()
	if s.admin == nil || s.admin.IsClosed() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		c, err := dial(ctx, s.dsn(fmt.Sprintf("port=%d user=postgres", s.server.Port)))
		if err != nil {
			s.t.Fatal(err)
		}
		s.admin = c
		s.t.Cleanup(func() { _ = c.Close(context.Background()) })
	}
	return exec(s.t, s.admin, sql)
}

// open is a session with the tables as they are at the beginning of each script, once nobody else
// is there: locks are the server's, not the session's.
func (s *randomStage) open(direct bool) (*raw, map[string]string) {
	s.t.Helper()
	s.eventually(func() bool {
		return s.ask("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'") == "0"
	}, "the session before has left")
	s.reset()
	options := ""
	if direct {
		options = fmt.Sprintf("port=%d", s.server.Port)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := dial(ctx, s.dsn(options))
	if err != nil {
		s.t.Fatal(err)
	}
	params := map[string]string{}
	for _, name := range []string{"TimeZone", "application_name", "is_superuser", "search_path"} {
		params[name] = c.ParameterStatus(name)
	}
	return hijack(s.t, c), params
}

// hear reads to so many ReadyForQuery, or to a message of a type or what comes in its place.
func (w *raw) hear(st scriptStep, params map[string]string) []string {
	var seen []string
	w.send(st.send)
	_ = w.c.SetReadDeadline(time.Now().Add(30 * time.Second))
	for ends := st.ends; ends > 0 || st.typ != 0; {
		typ, body, err := w.r.ReadMessage()
		if err != nil {
			return append(seen, "gone: "+err.Error())
		}
		switch typ {
		case 'S':
			name, value, _ := strings.Cut(string(body), "\x00")
			if _, ok := params[name]; ok {
				params[name] = strings.TrimRight(value, "\x00")
			}
			continue
		case 'N', 'A':
			continue
		case 'E':
			seen = append(seen, "E "+string(pgwire.ErrorCode(body)))
		default:
			seen = append(seen, fmt.Sprintf("%c %q", typ, body))
		}
		if typ == 'Z' {
			ends--
		}
		if st.typ != 0 && (st.typ == typ || typ == 'E' || typ == 'C') {
			break
		}
	}
	return seen
}

// play has atoms, those that are joined in one write, and returns the answers of each.
func (s *randomStage) play(w *raw, atoms []randomAtom, params map[string]string) [][]string {
	s.t.Helper()
	var out [][]string
	s.whole.Store(0)
	for i := 0; i < len(atoms); {
		parts := slices.Clone(atoms[i].parts)
		for i++; i < len(atoms) && atoms[i].joined; i++ {
			parts[0].send = join(parts[0].send, atoms[i].parts[0].send)
			parts[0].ends++
		}
		var seen []string
		for n, st := range parts {
			if n == len(parts)-1 {
				s.whole.Store(int32(i))
			}
			if n := len(seen); st.ends == 0 && n > 0 && seen[n-1][0] == 'E' {
				st.typ = 0 // is skipped, up to the Sync
			}
			seen = append(seen, w.hear(st, params)...)
			if isGone(seen) {
				break
			}
		}
		isOver := isGone(seen)
		for len(seen) > 0 {
			end := slices.IndexFunc(seen, func(m string) bool { return m[0] == 'Z' || m[0] == 'g' })
			out, seen = append(out, seen[:end+1]), seen[end+1:]
		}
		if isOver {
			break
		}
	}
	return out
}

// done ends a session and says what is in the tables.
func (s *randomStage) done(w *raw) string {
	s.t.Helper()
	_, _ = w.c.Write(pgwire.AppendTerminate(nil))
	_ = w.c.Close()
	return s.ask(s.tables)
}

// direct is what a server itself does with the script.
func (s *randomStage) direct(atoms []randomAtom) randomHeard {
	s.t.Helper()
	w, params := s.open(true)
	h := randomHeard{atoms: s.play(w, atoms, params), params: params}
	h.tables = s.done(w)
	return h
}

// randomCut is where a script is cut; at < 0 is nowhere.
type randomCut struct {
	at     int
	toward bool // a message to the server, before it is there
	inside int  // so many bytes of an answer arrive; 0: none
	change bool // the server dies, and a new epoch begins

	mu   sync.Mutex
	seen [2]int // to the client, to the server
	hit  string // the message
	gone chan struct{}
}

func (c *randomCut) String() string {
	way := "the client"
	if c.toward {
		way = "the server"
	}
	return fmt.Sprintf("cut at message %d to %s (%s), inside %d, change %v", c.at, way, c.hit,
		c.inside, c.change)
}

// watch looks at the messages in a direction.
func (c *randomCut) watch(s *randomStage, toward bool) func(byte, []byte) bool {
	return func(typ byte, body []byte) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		dir := 0
		if toward {
			dir = 1
		}
		n := c.seen[dir]
		c.seen[dir]++
		if c.hit != "" || toward != c.toward || n != c.at {
			return true
		}
		c.hit = fmt.Sprintf("%c %.60q", typ, body)
		close(c.gone)
		if c.inside > 0 {
			s.line.CutInside(typ, 1+c.inside%(pgwire.HeaderLen+len(body)-1))
			return true
		}
		return false
	}
}

// proxied is what a client of the proxy sees, with that cut.
func (s *randomStage) proxied(atoms []randomAtom, c *randomCut) randomHeard {
	s.t.Helper()
	w, params := s.open(false)
	c.gone = make(chan struct{})
	s.line.Watch(c.watch(s, true), c.watch(s, false))
	over := make(chan struct{})
	var work sync.WaitGroup
	if c.change {
		work.Go(func() {
			select {
			case <-c.gone:
				s.change()
				_ = s.admin.Close(context.Background())
			case <-over:
			}
		})
	}
	h := randomHeard{atoms: s.play(w, atoms, params), params: params}
	close(over)
	work.Wait()
	s.line.Watch(nil, nil)
	h.tables = s.done(w)
	return h
}

// compare names the first difference: the atom, or the number of them where it is behind all.
func (want *randomHeard) compare(got *randomHeard) (int, string) {
	for i := range want.atoms {
		if i >= len(got.atoms) {
			return i, "it is not answered"
		}
		if d := difference(want.atoms[i], got.atoms[i]); d != "" {
			return i, d
		}
	}
	switch {
	case want.tables != got.tables:
		return len(want.atoms), "tables " + got.tables + ", want " + want.tables
	case !maps.Equal(want.params, got.params):
		return len(want.atoms), fmt.Sprintf("told %v, want %v", got.params, want.params)
	}
	return -1, ""
}

// TestRandomScripts has random scripts over all that a session may do, and loses the server at
// messages of each. The client must see, and leave behind, what it does on a server without a
// proxy, or be told an error that is true (random_judge_test.go).
func TestRandomScripts(t *testing.T) {
	s := newRandomStage(t, nil)
	for i := range uint64(*randomRuns) {
		seed := *randomSeed + i
		atoms := randomScript(seed)
		want := s.direct(atoms)
		rnd := rand.New(rand.NewPCG(seed, 6))
		whole := &randomCut{at: -1}
		got := s.proxied(atoms, whole)
		if at, diff := want.compare(&got); at >= 0 {
			t.Errorf("seed %d, no cut: atom %d: %s\n%s", seed, at, diff,
				randomTranscripts(atoms, want, got))
			continue
		}
		for range *randomCuts {
			c := &randomCut{toward: rnd.IntN(2) == 0, change: rnd.IntN(8) == 0}
			dir := 0
			if c.toward {
				dir = 1
			} else if rnd.IntN(4) == 0 {
				c.inside = 1 + rnd.IntN(1<<20)
			}
			c.at = rnd.IntN(whole.seen[dir])
			got := s.proxied(atoms, c)
			s.counts["cut"]++
			if c.hit != "" {
				s.counts["hit"]++
			}
			s.judge(seed, atoms, want, got, c)
		}
	}
	t.Log(s.counts)
	if s.counts["hit"] < s.counts["cut"]*8/10 || s.counts["kept"] < s.counts["cut"]/2 {
		t.Error("too few were cut, or too many were told an error")
	}
}

// randomTranscripts has both, and where they are the same the errors only.
func randomTranscripts(atoms []randomAtom, want, got randomHeard) string {
	var b strings.Builder
	for i, a := range atoms {
		mark := ""
		if a.joined {
			mark = "+"
		}
		if i >= len(want.atoms) || i >= len(got.atoms) {
			fmt.Fprintf(&b, "%d%s %s: not reached\n", i, mark, a.label)
			continue
		}
		w, g := strings.Join(want.atoms[i], "  "), strings.Join(got.atoms[i], "  ")
		if w == g {
			fmt.Fprintf(&b, "%d%s %s:  %.80s\n", i, mark, a.label, w[max(0, len(w)-40):])
			continue
		}
		fmt.Fprintf(&b, "%d%s %s\n\twant %.600s\n\tgot  %.600s\n", i, mark, a.label, w, g)
	}
	return b.String()
}
