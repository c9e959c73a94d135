package proxy

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
)

// stateQuestion is the question for a session's state, with what it asks for.
func stateQuestion(facts bool, custom ...string) []byte {
	t := newTracker("app", tracking(1000))
	for _, name := range custom {
		t.learn(name)
	}
	if facts {
		t.suspect = reasonsAsked
	}
	return pgwire.AppendSync(appendInner(nil, t.snapshotSQL()))
}

// stateAnswer is what a server says to it.
func stateAnswer(settings ...string) []byte {
	out := pgwire.AppendMessage(nil, pgwire.SrvParseComplete, nil)
	out = pgwire.AppendMessage(out, pgwire.SrvBindComplete, nil)
	for row := range slices.Chunk(settings, 2) {
		out = pgwire.AppendDataRow(out, []byte("s"), []byte(row[0]), []byte(row[1]))
	}
	out = pgwire.AppendCommandComplete(out, "SELECT 1")
	out = pgwire.AppendMessage(out, pgwire.SrvCloseComplete, nil)
	out = pgwire.AppendMessage(out, pgwire.SrvCloseComplete, nil)
	return pgwire.AppendReadyForQuery(out, 'I')
}

// with is both, one behind the other.
func with(a, b []byte) []byte { return append(bytes.Clone(a), b...) }

// closedFirst is a question behind one that failed, which may have left its statement; closed is
// the first answer to it.
func closedFirst(question []byte) []byte {
	return with(pgwire.AppendClose(nil, 'S', innerName), question)
}

var closed = pgwire.AppendMessage(nil, pgwire.SrvCloseComplete, nil)

// settings are what the session is known to have set.
func (r *steady) settings() []setting {
	r.session.mu.Lock()
	defer r.session.mu.Unlock()
	if r.session.track.told == nil {
		return nil
	}
	return r.session.track.told.settings
}

// awaitAnswers waits until the session has taken the answers to all that it has sent.
func (r *steady) awaitAnswers() {
	r.tb.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		r.session.mu.Lock()
		isDone := r.session.flow.current() == nil
		r.session.mu.Unlock()
		switch {
		case isDone:
			return
		case time.Now().After(end):
			r.tb.Fatal("not all is answered")
		}
	}
}

// TestStateIsAskedWithTheStatement (DESIGN.md I31): the question goes out in the write of what may
// set something; the client's ReadyForQuery comes with the answer, and no goroutine is needed.
func TestStateIsAskedWithTheStatement(t *testing.T) {
	query := func(sql string) []byte { return pgwire.AppendQuery(nil, sql) }
	end := pgwire.AppendReadyForQuery(nil, 'I')
	bound := done("DO", 'I')
	begin := turn{sent: query("BEGIN"), comes: ready("BEGIN", 'T')}
	inBlock := turn{sent: query("SET work_mem = '7MB'"), comes: ready("SET", 'T')}
	for name, tc := range map[string]struct {
		before   []turn
		sent     []byte
		question []byte
		answer   []byte
	}{
		"set":      {nil, query("SET work_mem = '7MB'"), stateQuestion(false), ready("SET", 'I')},
		"custom":   {nil, query("SET app.x = '1'"), stateQuestion(false, "app.x"), ready("SET", 'I')},
		"do":       {nil, query("DO 'BEGIN END'"), stateQuestion(true), ready("DO", 'I')},
		"extended": {nil, batchOf("DO 'BEGIN END'"), stateQuestion(true), bound},
		"call":     {nil, query("CALL p()"), stateQuestion(true), ready("CALL", 'I')},
		"a string": {nil, query("SELECT 1; SET work_mem = '7MB'"), stateQuestion(false),
			with(pgwire.AppendCommandComplete(nil, "SELECT 1"), ready("SET", 'I'))},
		"pipelined": {nil, with(query("DO 'BEGIN END'"), query("SELECT 1")), stateQuestion(true),
			with(ready("DO", 'I'), ready("SELECT 1", 'I'))},
		"commit": {[]turn{begin, inBlock}, query("COMMIT"), stateQuestion(false), ready("COMMIT", 'I')},
		"rollback": {[]turn{begin, inBlock}, query("ROLLBACK"), stateQuestion(false),
			ready("ROLLBACK", 'I')},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardOff)
			for i := range tc.before {
				b := &tc.before[i]
				r.play([]turn{{r.client, b.sent, r.server, b.sent},
					{r.server, b.comes, r.client, b.comes}})
			}
			r.play([]turn{
				{r.client, tc.sent, r.server, with(tc.sent, tc.question)},
				{r.server, tc.answer, r.client, tc.answer[:len(tc.answer)-len(end)]},
				{r.server, stateAnswer("work_mem", "7MB"), r.client, end},
			})
			if got := r.settings(); !slices.Equal(got, []setting{{"work_mem", "7MB"}}) {
				t.Errorf("known to be set: %v", got)
			}
			read := query("SELECT 1")
			r.play([]turn{{r.client, read, r.server, read}}) // the next unit of work begins
		})
	}
}

// A guarded write whose trigger sets something: the question goes with the Sync that commits it.
func TestStateIsAskedWithTheSync(t *testing.T) {
	const sql = "UPDATE t SET a = 1"
	asExtended := pgwire.AppendFlush(appendInner(pgwire.AppendClose(
		noEnd(batchOf(sql)), 'S', ""), xidSQL))
	question, end := stateQuestion(false), pgwire.AppendReadyForQuery(nil, 'I')
	committed := pgwire.AppendCommandComplete(nil, "UPDATE 1")
	for name, tc := range map[string]struct {
		sent, out, answer, shown []byte
		sync                     []byte // that the client gets to see
	}{
		"simple": {pgwire.AppendQuery(nil, sql), asExtended,
			with(noReady(done("UPDATE 1", 'I')), closed), nil, committed},
		"extended": {batchOf(sql),
			pgwire.AppendFlush(appendInner(noEnd(batchOf(sql)), xidSQL)),
			noReady(done("UPDATE 1", 'I')), noReady(done("UPDATE 1", 'I')), nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardAll)
			known := newSetters()
			known.add([]byte("t"), 0, reachSets)
			r.session.setters.now.Store(known)
			r.play([]turn{
				{r.client, tc.sent, r.server, tc.out},
				{r.server, tc.answer, r.client, tc.shown},
				{r.server, innerAnswer("42"), r.server, with(pgwire.AppendSync(nil), question)},
				{r.server, end, r.client, tc.sync},
				{r.server, stateAnswer("work_mem", "7MB"), r.client, end},
			})
			if got := r.settings(); !slices.Equal(got, []setting{{"work_mem", "7MB"}}) {
				t.Errorf("known to be set: %v", got)
			}
		})
	}
}

func noEnd(batch []byte) []byte { return batch[:len(batch)-len(pgwire.AppendSync(nil))] }

func noReady(answer []byte) []byte {
	return answer[:len(answer)-len(pgwire.AppendReadyForQuery(nil, 'I'))]
}

// TestStateIsNotAskedAhead: where a transaction may be open behind what is sent, where nothing is
// set, and where it would be of no use, the write is the client's alone.
func TestStateIsNotAskedAhead(t *testing.T) {
	query := func(sql string) []byte { return pgwire.AppendQuery(nil, sql) }
	for name, tc := range map[string]struct {
		before func(s *session)
		sent   []byte
	}{
		"only reads":           {nil, query("SELECT 1")},
		"local":                {nil, query("SET LOCAL work_mem = '7MB'")},
		"opens a block":        {nil, query("BEGIN; SET work_mem = '7MB'")},
		"may open one":         {nil, query("SET work_mem = '7MB'; COMMIT AND CHAIN")},
		"in one, pipelined":    {nil, with(query("BEGIN"), query("SET work_mem = '7MB'"))},
		"a batch without Sync": {nil, noEnd(batchOf("SET work_mem = '7MB'"))},
		"a batch without Sync in front": {nil, with(noEnd(batchOf("INSERT INTO t VALUES (1)")),
			query("SET work_mem = '7MB'"))},
		"takes data": {nil, query("SET work_mem = '7MB'; COPY t FROM STDIN")},
		"a cancel request under way": {func(s *session) { s.cancels++ },
			query("SET work_mem = '7MB'")},
		"a question that has failed": {func(s *session) { s.track.failed++ },
			query("SET work_mem = '7MB'")},
		"no room": {nil, query("SET search_path = '" + strings.Repeat("x", relayBufferBytes-200) + "'")},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardOff)
			if tc.before != nil {
				r.session.mu.Lock()
				tc.before(r.session)
				r.session.mu.Unlock()
			}
			r.play([]turn{{r.client, tc.sent, r.server, tc.sent}})
			r.quiet()
		})
	}
}

// A batch of a block that fails before its COMMIT leaves the block: there the server refuses the
// question, and the client waits for nothing of it.
func TestStateQuestionIsRefused(t *testing.T) {
	r := newSteady(t, GuardOff)
	begin, set := pgwire.AppendQuery(nil, "BEGIN"), pgwire.AppendQuery(nil, "SET work_mem = '7MB'")
	batch := with(noEnd(batchOf("SELECT 1/0")), batchOf("COMMIT"))
	failed := pgwire.AppendReadyForQuery(pgwire.AppendError(nil,
		pgwire.NewError("22012", "division by zero")), 'E')
	refused := pgwire.AppendReadyForQuery(pgwire.AppendError(nil,
		pgwire.NewError("25P02", "current transaction is aborted")), 'E')
	rollback := pgwire.AppendQuery(nil, "ROLLBACK")
	end := pgwire.AppendReadyForQuery(nil, 'I')
	r.play([]turn{
		{r.client, begin, r.server, begin},
		{r.server, ready("BEGIN", 'T'), r.client, ready("BEGIN", 'T')},
		{r.client, set, r.server, set}, {r.server, ready("SET", 'T'), r.client, ready("SET", 'T')},
		{r.client, batch, r.server, with(batch, stateQuestion(false))},
		{r.server, failed, r.client, failed},
	})
	r.send(r.server, refused)
	r.awaitAnswers()
	r.play([]turn{
		{r.client, rollback, r.server, with(rollback, closedFirst(stateQuestion(false)))},
		{r.server, ready("ROLLBACK", 'I'), r.client, noReady(ready("ROLLBACK", 'I'))},
		{r.server, with(closed, stateAnswer()), r.client, end},
	})
	if got := r.settings(); got != nil {
		t.Errorf("known to be set: %v", got)
	}
}

// What is sent behind the question goes out at once, and its answer comes behind ReadyForQuery of
// what was asked about, in the order of the server.
func TestStateQuestionBetweenBatches(t *testing.T) {
	r := newSteady(t, GuardOff)
	set, read := pgwire.AppendQuery(nil, "SET work_mem = '7MB'"), pgwire.AppendQuery(nil, "SELECT 1")
	more := pgwire.AppendQuery(nil, "SET work_mem = '8MB'")
	end := pgwire.AppendReadyForQuery(nil, 'I')
	r.play([]turn{
		{r.client, set, r.server, with(set, stateQuestion(false))},
		{r.client, read, r.server, read},
		{r.client, more, r.server, more}, // one question at a time
		{r.server, ready("SET", 'I'), r.client, noReady(ready("SET", 'I'))},
		{r.server, with(stateAnswer("work_mem", "7MB"), ready("SELECT 1", 'I')), r.client,
			with(end, ready("SELECT 1", 'I'))},
	})
	if got := r.settings(); !slices.Equal(got, []setting{{"work_mem", "7MB"}}) {
		t.Errorf("known to be set: %v", got)
	}
	r.send(r.server, ready("SET", 'I'))
	r.expect(r.client, noReady(ready("SET", 'I')))
	r.expect(r.server, stateQuestion(false)) // behind the last of what was pipelined
}

// A question that went ahead and failed, or that did not ask for what turned out to be needed, is
// asked once more, and the client's ReadyForQuery waits for that.
func TestStateIsAskedOnceMore(t *testing.T) {
	set := pgwire.AppendQuery(nil, "SET work_mem = '7MB'")
	end := pgwire.AppendReadyForQuery(nil, 'I')
	canceled := pgwire.AppendReadyForQuery(pgwire.AppendError(nil,
		pgwire.NewError(pgwire.CodeQueryCanceled, "canceled")), 'I')
	for name, tc := range map[string]struct {
		first         []byte
		meanwhile     func(tr *tracker)
		second, after []byte
	}{
		"failed": {canceled, nil, closedFirst(stateQuestion(false)),
			with(closed, stateAnswer("work_mem", "7MB"))},
		"a name": {stateAnswer("work_mem", "7MB"), func(tr *tracker) { tr.learn("app.x") },
			stateQuestion(false, "app.x"), stateAnswer("work_mem", "7MB")},
		"a fact": {stateAnswer("work_mem", "7MB"), func(tr *tracker) { tr.suspect |= reasonTemp },
			stateQuestion(true), stateAnswer("work_mem", "7MB")},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardOff)
			r.play([]turn{
				{r.client, set, r.server, with(set, stateQuestion(false))},
				{r.server, ready("SET", 'I'), r.client, noReady(ready("SET", 'I'))},
			})
			if tc.meanwhile != nil {
				r.session.mu.Lock()
				tc.meanwhile(&r.session.track)
				r.session.mu.Unlock()
			}
			r.send(r.server, tc.first)
			r.expect(r.server, tc.second)
			r.send(r.server, tc.after)
			r.expect(r.client, end)
			if got := r.settings(); !slices.Equal(got, []setting{{"work_mem", "7MB"}}) {
				t.Errorf("known to be set: %v", got)
			}
		})
	}
}

// Foreseeing changes nothing of what is known.
func TestForeseeingChangesNothing(t *testing.T) {
	tr := newTracker("app", tracking(1000))
	tr.learn("app.a")
	tr.dirty = false
	custom := maps.Clone(tr.custom)
	next := tr.foresee([]op{{effects: []effect{
		{kind: pgwire.KindSet, name: "app.b", cls: clsState}, {kind: pgwire.KindDiscard, name: "all"},
		{kind: pgwire.KindLoad, text: "LOAD 'x'"}, {kind: pgwire.KindDo, cls: clsState},
	}}})
	if !next.dirty || next.suspect != reasonsAsked {
		t.Errorf("foreseen: %v, %v", next.dirty, next.suspect)
	}
	if tr.dirty || tr.suspect != 0 || len(tr.loads) > 0 || !maps.Equal(tr.custom, custom) ||
		tr.overlay != nil || tr.txUnknown {
		t.Errorf("it became %+v", tr)
	}
}
