package proxy_test

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// play has the conversation and returns what the client saw: messages with their contents, errors
// by their SQLSTATE, without what comes asynchronously.
func (w *raw) play(steps []scriptStep) []string {
	w.t.Helper()
	var seen []string
	for _, st := range steps {
		w.send(st.send)
		_ = w.c.SetReadDeadline(time.Now().Add(30 * time.Second))
		for ends := st.ends; ends > 0 || st.typ != 0; {
			typ, body, err := w.r.ReadMessage()
			if err != nil {
				return append(seen, "gone: "+err.Error())
			}
			switch typ {
			case 'N', 'S', 'A':
				continue
			case 'E':
				seen = append(seen, "E "+string(pgwire.ErrorCode(body)))
			default:
				seen = append(seen, fmt.Sprintf("%c %q", typ, body))
			}
			if typ == 'Z' {
				ends--
			}
			if st.typ == typ || st.typ != 0 && typ == 'E' {
				break
			}
		}
	}
	return seen
}

// fault is what happens to a session's backend, or to its server.
type fault struct {
	name    string
	cuts    bool       // the connection is cut at the message
	happens func(*rig) // at the message

	// What TestWhatSurvives knows of one besides.
	first func(*rig) // while the message waits, before the rest of it happens

	inside   bool   // the connection is cut inside the message
	isMoment bool   // it comes at a moment, whatever passes
	async    bool   // other messages may pass before it is felt
	drops    bool   // the epoch is given up at once, with answers that were not read yet
	harmless bool   // nobody is to notice it
	restarts bool   // the server ends
	behind   func() // what is put right when the conversation is over
}

var (
	faultCut   = &fault{name: "connection cut", cuts: true}
	faultCrash = &fault{name: "kill -9", cuts: true, happens: (*rig).change}
	faultStop  = &fault{name: "immediate shutdown", happens: func(r *rig) {
		r.server.Stop("immediate")
		r.proxy.Cut(r.epoch)
		r.server.Start()
		next := r.server.NextXID()
		r.lead(next, next)
	}}
	faultSwitchover = &fault{name: "switchover", happens: switchover(50 * time.Millisecond)}
	// faultPatient gives sessions the time to pack what they have.
	faultPatient = &fault{name: "switchover", happens: switchover(10 * time.Second)}
	faultLease   = &fault{name: "lease lost and regained", happens: func(r *rig) {
		r.lease.Set(-time.Second, -time.Second)
		time.Sleep(30 * time.Millisecond) // the fault itself
		r.lease.Set(time.Hour, time.Hour)
	}}
)

// switchover is one whose drain takes so long at most.
func switchover(drain time.Duration) func(*rig) {
	return func(r *rig) {
		ctx, cancel := context.WithTimeout(context.Background(), drain)
		defer cancel()
		r.proxy.Drain(ctx, r.epoch)
		r.proxy.Cut(r.epoch)
		r.server.Stop("fast")
		r.server.Start()
		next := r.server.NextXID()
		r.lead(next, next)
	}
}

// cutter counts the messages of a conversation and stops at one of them, once.
type cutter struct {
	mu     sync.Mutex
	at     int // -1 never
	seen   int
	toward bool // count those to the server
	cuts   bool
	isHit  bool
	hit    chan struct{} // closed when the fault has come
}

func (c *cutter) watch(toServer bool) func(byte, []byte) bool {
	return func(byte, []byte) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.isHit || toServer != c.toward {
			return true
		}
		c.seen++
		if c.seen-1 != c.at {
			return true
		}
		c.isHit = true
		close(c.hit)
		return !c.cuts
	}
}

var onlyScript = flag.String("script", "", "run only this script")

// stage is a proxy before a server, for one conversation after the other.
type stage struct {
	*rig
	admin *pgconn.PgConn
}

func newStage(t *testing.T, change func(*proxy.Config)) *stage {
	t.Helper()
	s := &stage{rig: newRig(t, func(c *proxy.Config) {
		c.KeepAlive, c.Reuse = time.Hour, false // what is left behind would be counted too
		if change != nil {
			change(c)
		}
	})}
	s.admin = s.connect("")
	exec(t, s.admin, "CREATE TABLE t (a int PRIMARY KEY, b text)")
	s.eventually(func() bool { return proxy.KnowsSetters(s.proxy, "app") }, "functions are known")
	return s
}

// heard is what came of a conversation.
type heard struct {
	seen  []string
	table string
	sent  int  // messages in the direction that was counted
	hit   bool // the fault has come
}

// run has the conversation, with a fault at the message with that number in that direction; -1 is
// none.
func (s *stage) run(sc *script, f *fault, at int, toward bool) heard {
	s.t.Helper()
	s.endPrepared()
	exec(s.t, s.admin, "TRUNCATE t")
	c := &cutter{at: at, toward: toward, cuts: f.cuts, hit: make(chan struct{})}
	w := hijack(s.t, s.connect(""))
	s.line.Watch(c.watch(true), c.watch(false))
	over := make(chan struct{})
	var work sync.WaitGroup
	if f.happens != nil {
		work.Go(func() {
			select {
			case <-c.hit:
				f.happens(s.rig)
			case <-over:
			}
		})
	}
	h := heard{seen: w.play(sc.steps)}
	close(over)
	work.Wait()
	s.line.Watch(nil, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = w.c.Close()
	h.sent, h.hit = c.seen, c.isHit
	h.table = exec(s.t, s.admin, "SELECT string_agg(a || b, ',' ORDER BY a) FROM t")
	return h
}

// endPrepared rolls back what a conversation that was told an error has left prepared.
func (s *stage) endPrepared() {
	s.t.Helper()
	gids := exec(s.t, s.admin, "SELECT coalesce(string_agg(gid, ','), '') FROM pg_prepared_xacts")
	for gid := range strings.SplitSeq(gids, ",") {
		if gid != "" {
			exec(s.t, s.admin, "ROLLBACK PREPARED '"+gid+"'")
		}
	}
}

// TestCutAnywhere cuts the connection to the server at every message of a conversation, in both
// directions. The client must see what it sees without a cut, and the tables must be the same: or
// it is told an error that the script allows (DESIGN.md I17, I18).
func TestCutAnywhere(t *testing.T) {
	s := newStage(t, nil)
	cells, hits := 0, 0
	version, err := strconv.Atoi(exec(t, s.admin, "SHOW server_version_num"))
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Concat(scripts, cutScripts)
	for i := range all {
		sc := &all[i]
		if *onlyScript != "" && *onlyScript != sc.name ||
			sc.before != 0 && version >= 10000*sc.before {
			continue
		}
		for _, toward := range []bool{true, false} {
			want := s.run(sc, faultCut, -1, toward)
			if strings.Contains(strings.Join(want.seen, " "), "gone") {
				t.Fatalf("%s: %s", sc.name, want.seen)
			}
			for at := range want.sent {
				if testing.Short() && at%5 != cells%5 {
					continue
				}
				got := s.run(sc, faultCut, at, toward)
				cells++
				if got.hit {
					hits++
				}
				if diff := sc.judge(want, got); diff != "" {
					t.Errorf("%s: cut at %d of %d, to the server %v: %s", sc.name, at, want.sent,
						toward, diff)
				}
			}
		}
	}
	t.Logf("%d cells, %d cut", cells, hits)
	if hits == 0 || hits < cells*9/10 {
		t.Errorf("only %d of %d were cut", hits, cells)
	}
}

// TestConversationsAsDirectly: without a cut, too, a client sees what a server itself answers.
func TestConversationsAsDirectly(t *testing.T) {
	s := newStage(t, nil)
	all := slices.Concat(scripts, cutScripts)
	for i := range all {
		sc := &all[i]
		s.endPrepared()
		exec(t, s.admin, "TRUNCATE t")
		c := s.directly("")
		pid := c.PID()
		w := hijack(t, c)
		want := w.play(sc.steps)
		_ = w.c.Close()
		s.eventually(func() bool { // with its locks
			return s.server.Exec(fmt.Sprintf("SELECT count(*) FROM pg_stat_activity WHERE pid = %d",
				pid))[0][0] == "0"
		}, "the session before has left")
		got := s.run(sc, faultCut, -1, true)
		if d := difference(want, got.seen); d != "" {
			t.Errorf("%s: %s", sc.name, d)
		}
	}
}

// judge tells what is wrong with what was heard.
func (s *script) judge(want, got heard) string {
	switch diff := difference(want.seen, got.seen); {
	case diff != "" && !s.mayEnd(got.seen):
		return diff
	case diff == "" && want.table != got.table:
		return fmt.Sprintf("table %q, want %q", got.table, want.table)
	}
	return ""
}

func (s *script) mayEnd(got []string) bool {
	if s.allow == "" || isGone(got) {
		return false
	}
	for _, m := range got {
		if m == "E "+s.allow {
			return true
		}
	}
	return false
}

// isGone tells that the conversation ended with its connection.
func isGone(seen []string) bool {
	return len(seen) > 0 && strings.HasPrefix(seen[len(seen)-1], "gone")
}

func difference(want, got []string) string {
	for i := range max(len(want), len(got)) {
		w, g := "nothing", "nothing"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			return fmt.Sprintf("message %d is %.100s, want %.100s", i, g, w)
		}
	}
	return ""
}
