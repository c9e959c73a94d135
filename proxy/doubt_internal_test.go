package proxy

import (
	"fmt"
	"testing"

	"holdfast/pgwire"
)

// tracking is a configuration with that room for prepared statements.
func tracking(preparedBytes int) *Config {
	cfg := DefaultConfig()
	cfg.PreparedBytesMax = preparedBytes
	return &cfg
}

// inspectRig is a session that is only looked at.
func inspectRig(status byte) *session {
	s := &session{
		proxy: &Proxy{cfg: DefaultConfig(), metrics: newMetrics(nil)}, conf: true,
		track:   newTracker("u", tracking(10000)),
		account: newAccount(nil),
		setters: noSetters(),
	}
	s.flow = newFlow(status)
	s.equip()
	return s
}

// ask lets the session look at messages as if they were sent.
func (s *session) ask(t *testing.T, msgs ...[]byte) {
	t.Helper()
	for _, m := range msgs {
		if _, err := s.inspect(m[0], m[pgwire.HeaderLen:], true, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestJudgeInterleaved plays every batch of up to three statements against every point at which
// its backend may be lost, and compares the verdict with what a server may have done (DESIGN.md
// I6): "rolled back" only if no cut of what was sent can have committed a write, "sent again" only
// if no cut of it can have written at all.
func TestJudgeInterleaved(t *testing.T) {
	kinds := map[string]class{
		"select": 0, "insert": clsMayWrite, "begin": clsBegin, "commit": clsCommit | clsMayWrite,
		"rollback": clsRollback, "rollback to": clsRollbackTo,
		"call": clsSelfCommit | clsMayWrite, "copy": clsCopy | clsMayWrite,
	}
	var names []string
	for n := range kinds {
		names = append(names, n)
	}
	count := 0
	var try func(list []string)
	try = func(list []string) {
		if len(list) > 0 {
			for _, status := range []byte("ITE") {
				for _, synced := range []bool{true, false} {
					for answered := range len(list) + 1 {
						count++
						judgeOne(t, list, kinds, status, synced, answered, false)
						if answered < len(list) && list[answered] == "copy" {
							judgeOne(t, list, kinds, status, synced, answered, true)
						}
					}
				}
			}
		}
		if len(list) == 3 {
			return
		}
		for _, n := range names {
			try(append(list[:len(list):len(list)], n))
		}
	}
	try(nil)
	t.Logf("%d situations", count)
}

func judgeOne(t *testing.T, list []string, kinds map[string]class, status byte, synced bool,
	answered int, copying bool,
) {
	t.Helper()
	f := newFlow(status)
	for _, n := range list {
		f.push(op{kind: opExecute, cls: kinds[n]})
	}
	if synced {
		f.push(op{kind: opSync})
	}
	m := model{status: status}
	for _, n := range list[:answered] {
		if m.wouldFail(n) {
			return // it would not have been answered so
		}
		if _, err := f.serverMessage(pgwire.SrvCommandComplete, nil); err != nil {
			t.Fatal(err)
		}
		m.run(n)
	}
	if copying {
		if m.wouldFail("copy") {
			return
		}
		if _, err := f.serverMessage(pgwire.SrvCopyInResponse, nil); err != nil {
			t.Fatal(err)
		}
	}
	batches := f.unansweredBatches()
	if len(batches) != 1 {
		t.Fatalf("%v: %d batches", list, len(batches))
	}
	v, next := judge(batches[0], status, false)
	m.committed, m.wrote = false, false // what was answered is known
	if v == verdictRolledBack && m.partly {
		t.Errorf("%c %v, synced %v, %d answered, copying %v: told rolled back, a part is committed",
			status, list, synced, answered, copying)
	}
	told := m
	for i := answered; i <= len(list); i++ {
		// The server may have come so far.
		mayHave := told.committed || i == len(list) && synced && told.atSync()
		what := fmt.Sprintf("%c %v, synced %v, %d answered, %d done: verdict %d next %c", status,
			list, synced, answered, i, v, next)
		if v == verdictRolledBack && mayHave {
			t.Errorf("%s: told rolled back, may be committed", what)
		}
		if v == verdictUndo && (mayHave || told.wrote) {
			t.Errorf("%s: told ended, may be committed", what)
		}
		if v == verdictFinish && i < len(list) && len(list) > answered {
			t.Errorf("%s: told done", what)
		}
		if i == len(list) || copying || told.wouldFail(list[i]) {
			break // the data of a COPY has no end that was sent
		}
		told.run(list[i])
	}
	if next == pgwire.TxIdle && v != verdictFinish && m.leavesBlock(list[answered:]) {
		t.Errorf("%c %v, synced %v, %d answered: verdict %d lets what follows run on its own",
			status, list, synced, answered, v)
	}
}

// model is a server's transaction as far as it matters: what would be committed at the next end.
type model struct {
	status    byte
	writes    bool // there are writes that an end would commit
	wrote     bool // anything was written since the last answer
	committed bool // something was committed since the last answer
	partly    bool // so was a part of what was done since the last COMMIT or ROLLBACK
}

// wouldFail tells that the server answers with an error: nothing of the batch runs behind it.
func (m *model) wouldFail(n string) bool {
	if m.status == pgwire.TxFailed {
		return n != "commit" && n != "rollback" && n != "rollback to"
	}
	return n == "rollback to" && m.status == pgwire.TxIdle
}

func (m *model) run(n string) {
	switch n {
	case "insert", "copy":
		m.writes, m.wrote = true, true
	case "call":
		m.writes, m.wrote = true, true
		if m.status == pgwire.TxIdle {
			m.committed, m.partly = true, true // it may commit by itself
		}
	case "begin":
		m.status = pgwire.TxInBlock
	case "commit":
		// Writes of before the batch count too, in a block that was not a failed one.
		m.committed = m.committed || m.status == pgwire.TxInBlock || m.writes
		m.wrote = m.wrote || m.status == pgwire.TxInBlock
		m.status, m.writes, m.partly = pgwire.TxIdle, false, false
	case "rollback":
		m.status, m.writes, m.partly = pgwire.TxIdle, false, false
	case "rollback to":
		m.status = pgwire.TxInBlock
	}
}

// atSync tells that the Sync commits something.
func (m *model) atSync() bool { return m.status == pgwire.TxIdle && m.writes }

// leavesBlock tells that what is left leaves a block open that was not.
func (m *model) leavesBlock(rest []string) bool {
	now := *m
	for _, n := range rest {
		if now.wouldFail(n) {
			return now.status != pgwire.TxIdle
		}
		now.run(n)
	}
	return now.status != pgwire.TxIdle
}

func TestJudgeLooksAhead(t *testing.T) {
	s := inspectRig('T')
	s.ask(t, pgwire.AppendQuery(nil, "INSERT INTO t VALUES (1)"),
		pgwire.AppendQuery(nil, "INSERT INTO t VALUES (2); COMMIT"))
	all := s.judgeAll('T')
	if len(all) != 2 || all[0].verdict != verdictUnknown || all[1].verdict != verdictUnknown {
		t.Errorf("%+v", all)
	}
}

func TestSecondCommitIsGuarded(t *testing.T) {
	s := inspectRig('T')
	s.inDoubt = true
	s.flow.push(op{kind: opQuery, cls: clsCommit | clsMayWrite, commits: true})
	s.ask(t, pgwire.AppendQuery(nil, "BEGIN"), pgwire.AppendQuery(nil, "INSERT INTO t VALUES (1)"))
	m := pgwire.AppendQuery(nil, "COMMIT")
	if act, err := s.inspect(m[0], m[pgwire.HeaderLen:], true, 0); act != forwardGuard || err != nil {
		t.Errorf("%v %v", act, err)
	}
}

// The text that a name stands for is the one that the server will find.
func TestNamesUnderWay(t *testing.T) {
	insert := "INSERT INTO t VALUES (1)"
	for name, tc := range map[string]struct {
		known string
		msgs  [][]byte
		want  class
	}{
		"known":           {"SELECT 1", nil, 0},
		"prepared in one": {"", [][]byte{pgwire.AppendParse(nil, "x", insert, nil)}, clsMayWrite},
		"another name":    {"SELECT 1", [][]byte{pgwire.AppendParse(nil, "y", insert, nil)}, 0},
		"prepared twice":  {"SELECT 1", [][]byte{pgwire.AppendParse(nil, "x", insert, nil)}, clsOpaque},
		"closed":          {"SELECT 1", [][]byte{pgwire.AppendClose(nil, 'S', "x")}, clsOpaque},
		"deallocated":     {"SELECT 1", [][]byte{pgwire.AppendQuery(nil, "DEALLOCATE x")}, clsOpaque},
		"all discarded":   {"SELECT 1", [][]byte{pgwire.AppendQuery(nil, "DISCARD ALL")}, clsOpaque},
		"nobody's":        {"", nil, clsOpaque},
		"something large": {"SELECT 1", nil, 0},
		"prepared by words": {"SELECT 1", [][]byte{
			pgwire.AppendQuery(nil, "PREPARE x AS SELECT 2"),
		}, clsOpaque},
	} {
		s := inspectRig('I')
		if tc.known != "" {
			s.track.prepare("x", &prepared{sql: tc.known, parsed: s.classify([]byte(tc.known))})
		}
		s.ask(t, tc.msgs...)
		if p := s.statementNamed("x"); p.cls&(clsOpaque|clsMayWrite) != tc.want &&
			!(tc.want == clsOpaque && p.cls.has(clsOpaque)) {
			t.Errorf("%s: %b", name, p.cls)
		}
	}
}

func TestTextsThatCannotBeRead(t *testing.T) {
	sjis := []byte("SELECT E'\x95\x5c'; INSERT INTO t VALUES (1); --'")
	slash := []byte(`SELECT '\'; INSERT INTO t VALUES (1); --'`)
	s := inspectRig('I')
	s.params.set("client_encoding", "SJIS")
	if p := s.classify(sjis); p.cls.isHarmless() {
		t.Errorf("SJIS: %b", p.cls)
	}
	s = inspectRig('I')
	s.conf = false
	if p := s.classify(slash); !p.cls.isHarmless() {
		t.Errorf("one string: %b", p.cls)
	}
	s.ask(t, pgwire.AppendQuery(nil, "SET standard_conforming_strings = on"))
	if p := s.classify(slash); p.cls.isHarmless() {
		t.Errorf("with the SET under way: %b", p.cls)
	}
}

// What a session keeps in mind does not grow with what it has done.
func TestBoundsOfWhatIsKept(t *testing.T) {
	f := newFlow('I')
	f.push(op{kind: opQuery})
	for range 100000 {
		f.push(op{kind: opQuery})
		feed(t, &f, "CZI")
	}
	if len(f.ops) > 1000 {
		t.Errorf("%d operations", len(f.ops))
	}
	s := inspectRig('T')
	for i := range 50000 {
		n := fmt.Sprint("C_", i)
		s.ask(t, pgwire.AppendBind(nil, n, ""), pgwire.AppendExecute(nil, n, 0))
		if i%2 == 0 {
			s.ask(t, pgwire.AppendClose(nil, 'P', n))
		}
		s.flow = newFlow('T')
	}
	if len(s.portals) > s.proxy.cfg.PortalsMax {
		t.Errorf("%d portals", len(s.portals))
	}
	for range 50000 {
		s.track.succeeded(&effect{kind: pgwire.KindSet, name: "work_mem",
			text: "SET work_mem = '1MB'", cls: clsState})
	}
	if n := len(s.track.laid()); n > 4000 || !s.track.txUnknown {
		t.Errorf("%d commands, unknown %v", n, s.track.txUnknown)
	}
	s = inspectRig('I')
	for i := range 1000 {
		s.ask(t, pgwire.AppendParse(nil, fmt.Sprint("n", i), "bad text", nil), pgwire.AppendSync(nil))
		feed(t, &s.flow, "EZI")
	}
	if len(s.track.statements) > 0 || s.track.unmovable != 0 {
		t.Errorf("%d statements, %v", len(s.track.statements), s.track.unmovable)
	}
	for i := range 500 {
		s.track.succeeded(&effect{kind: pgwire.KindSet, name: fmt.Sprint("app.v", i), cls: clsState})
	}
	if len(s.track.custom) > customMax || s.track.unmovable != reasonSettings {
		t.Errorf("%d custom settings, %v", len(s.track.custom), s.track.unmovable)
	}
}

func TestDiscardAllForgetsAll(t *testing.T) {
	tr := newTracker("app", tracking(1000))
	tr.applySnapshot([][3]string{{"r", "role", "boss"}, {"a", "user", "chief"},
		{"s", "app.tenant", "7"}, {"l", "ch", ""}}, false)
	tr.succeeded(&effect{kind: pgwire.KindDiscard, name: "all", cls: clsState})
	tr.batchEnded('I', false)
	if out := tr.restoreSQL(""); len(out) > 0 || !tr.dirty {
		t.Errorf("restored: %q", out)
	}
}

// A snapshot that fails, by a timeout of the client or its late cancel request, is asked for again;
// until then what was set is known from its statements.
func TestSnapshotThatFails(t *testing.T) {
	s := &session{
		proxy: &Proxy{cfg: DefaultConfig(), metrics: newMetrics(nil)},
		track: newTracker("u", tracking(10000)),
		flow:  newFlow('I'), work: &work{}, loop: newTestLoop(t),
		setters: noSetters(),
	}
	set := effect{kind: pgwire.KindSet, name: "work_mem", text: "SET work_mem = 1", cls: clsState}
	s.track.succeeded(&set)
	s.track.batchEnded('I', false)
	s.endHeld = true
	s.inner = pgwire.NewError("57014", "canceling statement due to statement timeout")
	if hide := s.ended(answer{done: &op{snapshot: true, internal: true}}, true); hide {
		t.Error("the end of the client's unit of work does not come")
	}
	if s.track.unmovable != 0 || !s.track.dirty || len(s.track.restoreSQL("")) != 1 {
		t.Errorf("unmovable %v, dirty %v, restored with %q", s.track.unmovable, s.track.dirty,
			s.track.restoreSQL(""))
	}
}
