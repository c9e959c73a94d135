package proxy

import (
	"fmt"
	"strings"
	"testing"

	"holdfast/pgwire"
)

func TestFateOf(t *testing.T) {
	bounds := []Boundary{{Epoch: 1}, {Epoch: 2, Lo: 100, Hi: 110}, {Epoch: 3, Lo: 200, Hi: 200}}
	for _, tc := range []struct {
		xid, epoch uint64
		want       fate
	}{
		{99, 1, fateAsk},
		{100, 1, fateUnknown},
		{109, 1, fateUnknown},
		{110, 1, fateAborted},
		{150, 1, fateAborted}, // below the newest boundary, past one in between
		{150, 2, fateAsk},
		{200, 2, fateAborted},
		{250, 3, fateAsk}, // its own epoch: the server knows
	} {
		if got := fateOf(tc.xid, tc.epoch, bounds); got != tc.want {
			t.Errorf("xid %d of epoch %d: %d, want %d", tc.xid, tc.epoch, got, tc.want)
		}
	}
}

func TestJudge(t *testing.T) {
	q := func(c class, change ...func(*batch)) batch {
		b := batch{cls: c, simple: true, synced: true, sent: true, stmts: 1}
		b.ops = []op{{kind: opQuery, cls: c, commits: c.has(clsCommit)}}
		for _, f := range change {
			f(&b)
		}
		return b
	}
	errored := func(b *batch) { b.errored = true }
	done := func(b *batch) { b.finished = 1 }
	now := func(status byte) func(*batch) { return func(b *batch) { b.live = status } }
	extended := func(b *batch) {
		b.simple, b.stmts, b.before, b.cls = false, 0, b.cls, 0
		b.ops = []op{{kind: opSync}}
	}
	open := func(b *batch) { b.simple, b.synced, b.sent = false, false, false }
	for name, tc := range map[string]struct {
		b       batch
		status  byte
		inDoubt bool
		want    verdict
		next    byte
	}{
		"idle insert":          {q(clsMayWrite), 'I', false, verdictUnknown, 'I'},
		"idle harmless":        {q(0), 'I', false, verdictRolledBack, 'I'},
		"idle begin":           {q(clsBegin), 'I', false, verdictRolledBack, 'E'},
		"idle begin done":      {q(clsBegin, done, now('T')), 'I', false, verdictFinish, 'T'},
		"idle insert done":     {q(clsMayWrite, done), 'I', false, verdictFinish, 'I'},
		"idle insert failed":   {q(clsMayWrite, errored), 'I', false, verdictFinish, 'I'},
		"idle multi done once": {q(clsMayWrite|clsMulti, done), 'I', false, verdictUnknown, 'I'},
		"idle multi, one failed": {
			q(clsMayWrite|clsMulti, errored), 'I', false, verdictFinish, 'I',
		},
		"idle set":                 {q(clsState), 'I', false, verdictRolledBack, 'I'},
		"idle call":                {q(clsSelfCommit | clsMayWrite), 'I', false, verdictUnknown, 'I'},
		"extended insert executed": {q(clsMayWrite, done, extended), 'I', false, verdictUnknown, 'I'},
		"extended insert, no sync": {q(clsMayWrite, open), 'I', false, verdictRolledBack, 'I'},
		"extended call, no sync": {
			q(clsMayWrite|clsSelfCommit, open), 'I', false, verdictUnknown, 'I',
		},
		"block insert":            {q(clsMayWrite), 'T', false, verdictRolledBack, 'E'},
		"block insert failed":     {q(clsMayWrite, errored), 'T', false, verdictFinish, 'E'},
		"block rollback":          {q(clsRollback), 'T', false, verdictUndo, 'I'},
		"block commit, xid asked": {q(clsCommit | clsMayWrite), 'T', true, verdictLookup, 'I'},
		"block commit, unguarded": {q(clsCommit | clsMayWrite), 'T', false, verdictUnknown, 'I'},
		"block string with commit": {
			q(clsMulti | clsEnds | clsMayWrite), 'T', false, verdictUnknown, 'E',
		},
		"block opaque":             {q(clsOpaque | clsMayWrite), 'T', false, verdictUnknown, 'E'},
		"failed block insert":      {q(clsMayWrite), 'E', false, verdictRolledBack, 'E'},
		"failed block rollback":    {q(clsRollback), 'E', false, verdictUndo, 'I'},
		"failed block rollback to": {q(clsRollbackTo), 'E', false, verdictRolledBack, 'E'},
		"commit seen as successful": {
			q(clsCommit, done, now('I')), 'T', false, verdictFinish, 'I',
		},
	} {
		v, next := judge(tc.b, tc.status, tc.inDoubt)
		if v != tc.want || next != tc.next {
			t.Errorf("%s: verdict %d status %c, want %d %c", name, v, next, tc.want, tc.next)
		}
	}
}

// feed plays server messages into a flow and returns what the client would be shown.
func feed(t *testing.T, f *flow, msgs string) string {
	t.Helper()
	shown := ""
	for i := 0; i < len(msgs); i++ {
		var body []byte
		if msgs[i] == pgwire.SrvReadyForQuery {
			i++
			body = []byte{msgs[i]}
		}
		typ := msgs[i]
		if body != nil {
			typ = pgwire.SrvReadyForQuery
		}
		a, err := f.serverMessage(typ, body)
		if err != nil {
			t.Fatalf("message %c: %v", typ, err)
		}
		if !a.hide {
			shown += string(typ)
		}
	}
	return shown
}

func TestFlowSafePoint(t *testing.T) {
	f := newFlow('I')
	if !f.isSafePoint() {
		t.Fatal("a fresh flow is no safe point")
	}
	f.push(op{kind: opQuery})
	if f.isSafePoint() {
		t.Fatal("safe while a query is outstanding")
	}
	feed(t, &f, "TDDC")
	if f.isSafePoint() {
		t.Fatal("safe before ReadyForQuery")
	}
	feed(t, &f, "ZI")
	if !f.isSafePoint() {
		t.Fatal("not safe at the end")
	}
	f.push(op{kind: opParse})
	feed(t, &f, "1") // flushed: answered, but the batch is open
	if f.isSafePoint() {
		t.Fatal("safe with an open batch")
	}
	f.push(op{kind: opSync})
	feed(t, &f, "ZI")
	f.push(op{kind: opQuery})
	feed(t, &f, "CZT")
	if f.isSafePoint() {
		t.Fatal("safe in a transaction")
	}
}

func TestFlowErrorSkipsToSync(t *testing.T) {
	f := newFlow('I')
	for _, k := range []opKind{opParse, opBind, opExecute, opSync, opParse, opSync} {
		f.push(op{kind: k})
	}
	feed(t, &f, "1EZI1ZI")
	if !f.isSafePoint() {
		t.Fatal("not at rest after an error in a pipeline")
	}
	f.push(op{kind: opParse})
	feed(t, &f, "E")
	f.push(op{kind: opBind}) // skipped by the server
	if f.idle() {
		t.Fatal("idle while the server skips")
	}
	f.push(op{kind: opSync})
	feed(t, &f, "ZI")
	if !f.isSafePoint() {
		t.Fatal("not at rest after the Sync")
	}
}

func TestFlowCopyInIgnoresSync(t *testing.T) {
	f := newFlow('I')
	for _, k := range []opKind{opParse, opBind, opExecute, opSync} {
		f.push(op{kind: k})
	}
	feed(t, &f, "12G") // the Sync that was sent with Execute is ignored
	f.copyEnd(0)
	f.push(op{kind: opSync})
	feed(t, &f, "CZI")
	if !f.isSafePoint() {
		t.Fatal("not at rest after COPY")
	}
}

func TestFlowHidesInternal(t *testing.T) {
	f := newFlow('T')
	f.push(op{kind: opParse})
	f.push(op{kind: opBind})
	for _, k := range []opKind{opClose, opParse, opBind, opExecute, opClose} {
		f.push(op{kind: k, internal: true})
	}
	if got := feed(t, &f, "12"+"3"+"12DC"+"3"); got != "12" {
		t.Fatalf("shown %q", got)
	}
	f.push(op{kind: opExecute})
	f.push(op{kind: opSync})
	if got := feed(t, &f, "CZI"); got != "CZ" {
		t.Fatalf("shown %q", got)
	}
}

func TestFlowRefusesNonsense(t *testing.T) {
	for _, msg := range []string{"1", "C", "T", "D"} {
		f := newFlow('I')
		if _, err := f.serverMessage(msg[0], nil); err == nil {
			t.Errorf("%q out of nowhere was taken", msg)
		}
	}
	f := newFlow('I')
	f.push(op{kind: opParse})
	if _, err := f.serverMessage(pgwire.SrvReadyForQuery, []byte{'I'}); err == nil {
		t.Error("ReadyForQuery before the answer was taken")
	}
}

func TestTrackerTransactions(t *testing.T) {
	tr := newTracker("app", tracking(100))
	set := effect{kind: pgwire.KindSet, name: "app.x", text: "SET app.x = 1", cls: clsState}
	tr.succeeded(&set)
	tr.batchEnded('T', false)
	tr.batchEnded('I', true)
	if tr.restoreSQL("") != nil {
		t.Error("a rolled-back SET sticks")
	}
	tr.succeeded(&set)
	tr.batchEnded('I', false)
	if len(tr.restoreSQL("")) != 1 || !tr.dirty {
		t.Error("a committed SET is lost")
	}
	tr.applySnapshot([][3]string{{"s", "app.x", "1"}, {"r", "role", "none"}, {"l", "c", ""}},
		false)
	if tr.overlay != nil || tr.dirty || len(tr.told.settings) != 1 || len(tr.told.channels) != 1 {
		t.Error("the snapshot does not stand for what came before")
	}
	tr.prepare("big", &prepared{sql: string(make([]byte, 200))})
	if tr.unmovable != reasonPrepared {
		t.Error("a statement that is not kept does not show")
	}
	tmp := effect{kind: pgwire.KindUtility, cls: clsTemp}
	tr.unmovable = 0
	tr.succeeded(&tmp)
	tr.batchEnded('I', true)
	if tr.unmovable != 0 {
		t.Error("a rolled-back temporary table counts")
	}
}

func TestQuoteLiteral(t *testing.T) {
	for in, want := range map[string]string{
		"a": "'a'", "o'n": "'o''n'", `b\`: ` E'b\\'`, `'\`: ` E'''\\'`,
	} {
		if got := quoteLiteral(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// An error in a batch that has no Sync yet, and the end of a COPY that never began behind it.
func TestErrorBeforeAStrayEndOfCopy(t *testing.T) {
	f := newFlow('I')
	f.push(op{kind: opParse})
	f.copyEnd(0)
	if _, err := f.serverMessage(pgwire.SrvError, nil); err != nil || !f.skipping {
		t.Errorf("%v, skipping %v", err, f.skipping)
	}
	f.push(op{kind: opSync})
	if _, err := f.serverMessage(pgwire.SrvReadyForQuery, []byte{'I'}); err != nil || !f.idle() {
		t.Errorf("%v, idle %v", err, f.idle())
	}
}

// The unnamed statement is the client's: questions of ours that fail leave it as it is, and a new
// one is what it says.
func TestUnnamedStatementThatWasLost(t *testing.T) {
	f := newFlow('I')
	f.push(op{kind: opExecute})
	f.push(op{kind: opParse, internal: true})
	if _, err := f.serverMessage(pgwire.SrvError, nil); err != nil || f.lostParse {
		t.Errorf("%v, our own counts: %v", err, f.lostParse)
	}
	f.push(op{kind: opParse})
	if !f.lostParse {
		t.Error("one that is skipped does not count")
	}
	f.push(op{kind: opSync})
	f.push(op{kind: opParse})
	if f.lostParse {
		t.Error("one that is sent does not count")
	}
}

func TestSnapshotsThatFailForGood(t *testing.T) {
	tr := newTracker("app", tracking(100))
	tr.dirty = true
	for range snapshotsMax {
		if !tr.dirty || tr.unmovable != 0 {
			t.Fatalf("dirty %v, unmovable %v", tr.dirty, tr.unmovable)
		}
		tr.snapshotFailed()
	}
	if tr.dirty || tr.unmovable != reasonSettings {
		t.Errorf("dirty %v, unmovable %v in the end", tr.dirty, tr.unmovable)
	}
	tr = newTracker("app", tracking(100))
	long := effect{kind: pgwire.KindSet, name: "a.b", cls: clsState,
		text: "SET a.b = '" + strings.Repeat("x", overlayBytesMax/2) + "'"}
	for range 3 {
		tr.succeeded(&long)
		tr.batchEnded('I', false)
	}
	if !tr.unknown || len(tr.overlay.done) > 0 {
		t.Errorf("unknown %v, %d commands are kept", tr.unknown, len(tr.overlay.done))
	}
}

// Ends of a COPY that nobody asked for have no answer: as many as come must not fill the flow, of
// which nothing would ever be answered.
func TestStrayEndsOfCopy(t *testing.T) {
	f, outstandingMax := newFlow('I'), DefaultConfig().OutstandingMax
	f.push(op{kind: opParse})
	for range 2 * outstandingMax {
		f.copyEnd(0)
	}
	if f.isFull(outstandingMax) {
		t.Errorf("%d operations are outstanding", len(f.ops))
	}
}

// While a Query takes data the server ignores Sync, sent before it said so or behind that.
func TestSyncInACopyOfAQuery(t *testing.T) {
	query, sync, end := op{kind: opQuery}, op{kind: opSync}, op{kind: opCopyEnd}
	for name, tc := range map[string]struct {
		before, behind []op
		ends           int // ReadyForQuery
	}{
		"behind":         {[]op{query}, []op{sync, end}, 1},
		"before":         {[]op{query, sync, sync}, []op{end}, 1},
		"all before":     {[]op{query, sync, end, sync}, nil, 2},
		"behind the end": {[]op{query, end, sync}, nil, 2},
		"a second end":   {[]op{query, end, sync, end}, nil, 2},
		"after the end":  {[]op{query, sync}, []op{end, sync}, 2},
	} {
		f := newFlow('I')
		send := func(ops []op) {
			for _, o := range ops {
				if o.kind == opCopyEnd {
					f.copyEnd(0)
				} else {
					f.push(o)
				}
			}
		}
		send(tc.before)
		if _, err := f.serverMessage(pgwire.SrvCopyInResponse, nil); err != nil {
			t.Fatal(name, err)
		}
		send(tc.behind)
		ends := 0
		for _, err := f.serverMessage(pgwire.SrvCommandComplete, nil); err == nil; ends++ {
			_, err = f.serverMessage(pgwire.SrvReadyForQuery, []byte{'I'})
		}
		if ends--; ends != tc.ends || !f.idle() {
			t.Errorf("%s: %d ends, idle %v; want %d", name, ends, f.idle(), tc.ends)
		}
	}
}

// What a client makes the proxy remember of statements within a transaction is bounded by what
// there is.
func TestNamesThatComeAndGo(t *testing.T) {
	tr := newTracker("app", tracking(1<<20))
	tr.prepare("was", &prepared{sql: "SELECT 1"})
	tr.renamed = nil
	for i := range 1000 {
		tr.forget(fmt.Sprint("x", i))
		tr.prepare(fmt.Sprint("y", i), &prepared{sql: "SELECT 2"})
		tr.forget(fmt.Sprint("y", i))
	}
	tr.prepare("new", &prepared{sql: "SELECT 3"})
	tr.prepare("new", &prepared{sql: "SELECT 4"})
	tr.prepare("was", &prepared{sql: "SELECT 5"})
	if len(tr.renamed) != 2 {
		t.Errorf("%d names are noted", len(tr.renamed))
	}
	changed := tr.rewindNames()
	if _, ok := changed["new"]; !ok || changed["was"].sql != "SELECT 1" || len(tr.renamed) > 0 ||
		tr.statements["new"] != nil || tr.statements["was"].sql != "SELECT 1" {
		t.Errorf("rewound %v, there are %v", changed, tr.statements)
	}
}

// Strings of very many statements, and EXECUTE of what has very many, may do anything.
func TestStringsOfManyStatements(t *testing.T) {
	var scratch []pgwire.Statement
	if p := classify(&scratch, []byte(strings.Repeat("SET a = 1;", effectsMax+1)), true); p.cls !=
		opaque.cls || p.effects != nil {
		t.Errorf("class %b, %d effects", p.cls, len(p.effects))
	}
	rows := strings.Repeat("INSERT INTO t VALUES (1);", effectsMax+1)
	if p := classify(&scratch, []byte(rows), true); p.cls != clsMulti|clsMayWrite|clsString {
		t.Errorf("class %b of INSERTs", p.cls)
	}
	s, _, _, _ := relayRig(t)
	many := make([]effect, effectsMax/2)
	s.track.prepare("m", &prepared{sql: "SET a = 1", parsed: parsed{effects: many}})
	p := s.classify([]byte("EXECUTE m; EXECUTE m; EXECUTE m"))
	if s.resolveExecute(&p); p.cls != opaque.cls {
		t.Errorf("%d effects of EXECUTE", len(p.effects))
	}
	body := pgwire.AppendParse(nil, "q", strings.Repeat("SET a = 1;", 10), nil)[pgwire.HeaderLen:]
	if err := s.inspectParse(body, true, 0); err != nil {
		t.Fatal(err)
	}
	if o := s.flow.ops[len(s.flow.ops)-1]; len(o.stmt.parsed.effects) > 0 {
		t.Errorf("%d effects of a Parse that the server refuses", len(o.stmt.parsed.effects))
	}
}
