package election

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"holdfast/pgwire"
)

// syncBug is a mistake that the model of the sync set must find.
type syncBug string

const (
	syncRight      syncBug = ""
	syncServer1st  syncBug = "the server is changed before the record: widened in the wrong order"
	syncUnproved   syncBug = "the older rule is left when the server was told to reload"
	syncNoBarrier  syncBug = "what older rules acknowledged is not waited for"
	syncNoStall    syncBug = "walsenders that wait for fewer are not told from others"
	syncNoProbe    syncBug = "the checkpointer is not waited for"
	syncOneStep    syncBug = "one set replaces another in one step"
	syncLastOnly   syncBug = "the fence satisfies the newest rule only"
	syncForgetting syncBug = "a restart in place forgets the older rules"
	syncThird      syncBug = "a third rule is entered before the second was proved"
)

// syncModel is a primary with the parts of it that have a setting of their own, its standbys, and
// the record. WAL positions are numbers.
type syncModel struct {
	rng *rand.Rand
	bug syncBug
	s   *State

	pm       mSetting // the postmaster's
	isWaited bool     // shared memory: commits wait for standbys
	ckptSees mSetting // what the checkpointer has read
	senders  map[string]*mSender
	wal      int
	pending  []int
	acked    int // the newest acknowledged commit

	// The agent's proof of the record of seq; stage counts its steps.
	seq     uint64
	stage   int
	barrier int
	proved  uint64
	want    SyncRule // where the leader is going
}

// mSetting is synchronous_standby_names.
type mSetting struct {
	rule    SyncRule
	isStall bool
}

func (m mSetting) priority(name string) int {
	i := slices.Index(m.rule.Names, name)
	switch {
	case i < 0 || m.rule.Wait == 0:
		return 0
	case m.isStall:
		return i + 2
	}
	return 1
}

// mSender is a walsender and its standby.
type mSender struct {
	has      mSetting
	priority int
	told     int // flush position that the standby told
	flushed  int
}

var mNames = []string{"b", "c", "d", "e"}

func newSyncModel(seed uint64, bug syncBug) *syncModel {
	m := &syncModel{rng: rand.New(rand.NewPCG(seed, 7)), bug: bug, senders: map[string]*mSender{}}
	m.s = &State{V: Version, LastEpoch: 1, Lock: &Lock{Epoch: 1, Holder: "a", Timeline: 1}}
	m.s.Members = []Member{{Name: "a", Postgres: "a:1"}}
	n := 2 + m.rng.IntN(len(mNames)-1)
	for _, name := range mNames[:n] {
		m.s.Members = append(m.s.Members, Member{Name: name, Postgres: name + ":1"})
		m.senders[name] = &mSender{}
	}
	first := m.randomRule()
	m.write(&SetSync{Epoch: 1, Rules: unrecorded(first)})
	m.pm = mSetting{rule: first}
	m.ckptSees, m.isWaited, m.want = m.pm, first.Wait > 0, first
	for name, w := range m.senders {
		w.has, w.priority = m.pm, m.pm.priority(name)
	}
	return m
}

// randomRule waits for some of the standbys, or for none of them.
func (m *syncModel) randomRule() SyncRule {
	var r SyncRule
	for _, mem := range m.s.Members[1:] {
		if m.rng.IntN(3) > 0 {
			r.Names = append(r.Names, mem.Name)
		}
	}
	if len(r.Names) > 0 {
		r.Wait = 1 + m.rng.IntN(min(2, len(r.Names)))
	}
	return r
}

func (m *syncModel) write(c *SetSync) {
	next, res := apply(m.s, Command{V: Version, Kind: CommandSync, Sync: c})
	if res.Refused != "" {
		panic("the model's leader is refused: " + res.Refused)
	}
	m.s = next
}

// enter writes a rule, or does it wrongly.
func (m *syncModel) enter(rule SyncRule) {
	old := m.s.Sync.Rules
	rules := enterRule(old, rule)
	if m.bug == syncServer1st {
		rules = []SyncRule{rule} // nothing joint: the other order of the two steps
		m.reload(mSetting{rule: rule})
	}
	if m.bug == syncServer1st || m.bug == syncThird || m.bug == syncOneStep {
		next := *m.s // the real state would refuse
		next.Sync = &SyncRecord{Seq: m.s.Sync.Seq + 1, Epoch: m.s.Lock.Epoch, Rules: rules}
		m.s = &next
		return
	}
	m.write(&SetSync{Epoch: m.s.Lock.Epoch, Seq: m.s.Sync.Seq, Rules: rules})
}

// lead is a step of the leader; when it does what is arbitrary here and prudent in syncPlan.
func (m *syncModel) lead() {
	rec := m.s.Sync
	last := rec.Rules[len(rec.Rules)-1]
	switch {
	case len(rec.Rules) > 1 && m.proved == rec.Seq:
		m.write(&SetSync{Epoch: m.s.Lock.Epoch, Seq: rec.Seq, Rules: []SyncRule{last}})
	case m.rng.IntN(4) == 0:
		m.want = m.randomRule()
	case len(rec.Rules) == 1 && !m.want.equal(last):
		rule := stepToward(last, m.want)
		if m.bug == syncOneStep {
			rule = m.want
		}
		m.enter(rule)
	case len(rec.Rules) > 1 && m.rng.IntN(8) == 0:
		back := rec.Rules[m.rng.IntN(len(rec.Rules))]
		if m.rng.IntN(2) == 0 {
			back = SyncRule{}
		}
		if m.bug == syncThird {
			back = m.randomRule()
		}
		if !back.equal(last) {
			m.enter(back)
		}
	}
}

func (m *syncModel) reload(to mSetting) { m.pm = to }

// agent is a step of the holder's agent towards the proof of the last rule.
func (m *syncModel) agent() {
	rec := m.s.Sync
	last := rec.Rules[len(rec.Rules)-1]
	if m.seq != rec.Seq {
		m.seq, m.stage = rec.Seq, 0
	}
	needs := needsOf(rec.Rules)
	if m.bug == syncNoStall {
		needs.stall, needs.probe = false, false
	}
	switch m.stage {
	case 0:
		if needs.stall {
			m.reload(mSetting{last, true})
		}
	case 1:
		isWaiting := m.isWaited || !needs.probe || m.bug == syncNoProbe
		if needs.stall && (!m.areSendersRight(true) || !isWaiting) {
			return
		}
	case 2:
		m.reload(mSetting{rule: last})
		if m.bug == syncUnproved {
			m.stage = 3
		}
	case 3:
		if !m.areSendersRight(false) {
			return
		}
		m.barrier = m.wal
	case 4:
		count := 0
		for _, name := range last.Names {
			if m.senders[name].told >= m.barrier {
				count++
			}
		}
		if needs.barrier && count < last.Wait && m.bug != syncNoBarrier {
			return
		}
		m.proved = rec.Seq
	}
	m.stage++
}

// areSendersRight is walsendersBehind.
func (m *syncModel) areSendersRight(isStall bool) bool {
	last := m.s.Sync.Rules[len(m.s.Sync.Rules)-1]
	for name, w := range m.senders {
		isIn := slices.Contains(last.Names, name)
		if !isIn && w.priority > 0 || isIn && isStall && w.priority == 1 ||
			isIn && !isStall && w.priority > 1 {
			return false
		}
	}
	return true
}

// server is a step of one of the server's processes, or of a standby.
func (m *syncModel) server() {
	name := m.s.Members[1+m.rng.IntN(len(m.senders))].Name
	w := m.senders[name]
	switch m.rng.IntN(7) {
	case 0: // a walsender reads the setting
		w.has = m.pm
		w.priority = m.pm.priority(name)
	case 1: // the checkpointer does, seldom
		if m.rng.IntN(3) > 0 {
			return
		}
		m.isWaited = m.pm.rule.Wait > 0
		if !m.isWaited {
			m.ack(m.wal)
		}
	case 6:
		if m.rng.IntN(8) == 0 { // the standby connects anew
			w.has, w.priority, w.told = m.pm, m.pm.priority(name), 0
			return
		}
		w.told = w.flushed
		m.release(w)
	case 2, 3: // a commit
		m.wal++
		m.pending = append(m.pending, m.wal)
		if !m.isWaited {
			m.acked = max(m.acked, m.wal)
		}
	case 4:
		w.flushed += m.rng.IntN(m.wal - w.flushed + 1)
	default:
		w.told = w.flushed
		m.release(w)
	}
}

// release is SyncRepReleaseWaiters: a walsender acknowledges by its own method and number, with
// the priorities that the others show.
func (m *syncModel) release(w *mSender) {
	if w.priority == 0 || w.has.rule.Wait == 0 || w.told == 0 {
		return
	}
	var told []int
	for _, o := range m.senders {
		if o.priority > 0 && o.told > 0 {
			told = append(told, o.told)
		}
	}
	slices.Sort(told)
	slices.Reverse(told)
	number := w.has.rule.Wait
	if w.has.isStall {
		number = len(w.has.rule.Names) + 1 // of the first so many: one is nobody
	}
	if len(told) >= number {
		m.ack(told[number-1])
	}
}

func (m *syncModel) ack(upto int) {
	m.pending = slices.DeleteFunc(m.pending, func(c int) bool {
		if c <= upto {
			m.acked = max(m.acked, c)
		}
		return c <= upto
	})
}

// restart starts the server in place: a new epoch, the same holder, every process anew.
func (m *syncModel) restart() {
	setting := mSetting{rule: startRule(m.s, Policy{}, "a")}
	rules := m.s.Sync.Rules
	s, res := apply(m.s, Command{Kind: CommandBegin, Begin: &BeginIntent{Kind: IntentRestart,
		To: "a", FromEpoch: m.s.Lock.Epoch, Request: fmt.Sprint(m.s.LastEpoch)}})
	rule := startRule(m.s, Policy{}, "a")
	s, res = apply(s, Command{Kind: CommandCommitLock, Commit: &CommitLock{Sync: &rule,
		Lock: Lock{Epoch: res.Epoch, Holder: "a", Timeline: 1}}})
	if res.Refused != "" || len(s.Sync.Rules) != len(rules) {
		panic("restart: " + res.Refused)
	}
	if m.bug == syncForgetting {
		s.Sync.Rules = s.Sync.Rules[len(s.Sync.Rules)-1:]
	}
	m.s, m.pm, m.pending = s, setting, nil
	m.isWaited, m.stage = setting.rule.Wait > 0, 0
	for name, w := range m.senders {
		w.has, w.priority = setting, setting.priority(name)
	}
}

// lose ends the primary and some standbys, and tells what a failover would lose.
func (m *syncModel) lose() string {
	sel := Selection{Lock: *m.s.Lock, Sync: m.s.Sync.Rules, Silent: map[string]string{}}
	if m.bug == syncLastOnly {
		sel.Sync = sel.Sync[len(sel.Sync)-1:]
	}
	for _, mem := range m.s.Members[1:] {
		if m.rng.IntN(3) > 0 {
			sel.Recruits = append(sel.Recruits, Recruit{Member: mem, Timeline: 1,
				LSN: pgwire.LSN(m.senders[mem.Name].flushed)})
		}
	}
	c := Choose(sel)
	if c.To == "" || int(c.ToLSN) >= m.acked {
		return ""
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s is promoted at %d, %d was acknowledged; rules %v; server %v", c.To, c.ToLSN,
		m.acked, m.s.Sync.Rules, m.pm)
	for name, w := range m.senders {
		fmt.Fprintf(&text, "; %s %+v", name, *w)
	}
	return text.String()
}

// runSyncModel runs one schedule; it tells what was lost, and how many rules were left behind.
func runSyncModel(seed uint64, bug syncBug) (lost string, settled int) {
	m := newSyncModel(seed, bug)
	steps := 50 + m.rng.IntN(1500)
	for range steps {
		before := len(m.s.Sync.Rules)
		switch n := m.rng.IntN(100); {
		case n < 12:
			m.lead()
		case n < 30:
			m.agent()
		case n == 30 && m.rng.IntN(4) == 0:
			m.restart()
		default:
			m.server()
		}
		if before > 1 && len(m.s.Sync.Rules) == 1 {
			settled++
		}
	}
	return m.lose(), settled
}

// TestSyncSetModel: whatever the order in which the record, the server's processes and the
// standbys change, no failover loses an acknowledged commit (DESIGN.md I40 to I42).
func TestSyncSetModel(t *testing.T) {
	runs, settled := 30000, 0
	if testing.Short() {
		runs = 5000
	}
	for seed := range uint64(runs) {
		lost, n := runSyncModel(seed, syncRight)
		if lost != "" {
			t.Fatalf("seed %d: %s", seed, lost)
		}
		settled += n
	}
	if t.Logf("%d schedules, %d changes of the sync set", runs, settled); settled < 3*runs {
		t.Error("the schedules hardly change the sync set")
	}
}

// TestSyncSetModelFindsBugs shows that the model bites.
func TestSyncSetModelFindsBugs(t *testing.T) {
	for _, bug := range []syncBug{
		syncServer1st, syncUnproved, syncNoBarrier, syncNoStall, syncNoProbe, syncOneStep,
		syncLastOnly, syncForgetting, syncThird,
	} {
		t.Run(strings.ReplaceAll(string(bug), " ", "_"), func(t *testing.T) {
			for seed := range uint64(300000) {
				if lost, _ := runSyncModel(seed, bug); lost != "" {
					t.Logf("found in schedule %d: %s", seed, lost)
					return
				}
			}
			t.Error("not found")
		})
	}
}
