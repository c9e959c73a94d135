package proxy

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// xidAnswer is what a server says to xidQuestion; empty is NULL.
func xidAnswer(value string, status byte) []byte {
	body := []byte("\xff\xff\xff\xff")
	if value != "" {
		body = append([]byte{0, 0, 0, byte(len(value))}, value...)
	}
	return pgwire.AppendReadyForQuery(
		pgwire.AppendMessage(nil, pgwire.SrvFunctionCallResponse, body), status)
}

// opened are the turns that begin a transaction and write in it, by a Query of the client; the
// question goes in the same write.
func (r *steady) opened() []turn {
	begin, update := pgwire.AppendQuery(nil, "BEGIN"), pgwire.AppendQuery(nil, "UPDATE t SET a = 1")
	return []turn{
		{r.client, begin, r.server, begin},
		{r.server, ready("BEGIN", 'T'), r.client, ready("BEGIN", 'T')},
		{r.client, update, r.server, append(bytes.Clone(update), xidQuestion...)},
		{r.server, ready("UPDATE 1", 'T'), r.client, ready("UPDATE 1", 'T')},
	}
}

// guardedAhead is a transaction whose xid is known before its COMMIT, which waits for nothing.
func (r *steady) guardedAhead() []turn {
	update := pgwire.AppendQuery(nil, "DELETE FROM t")
	commit := pgwire.AppendQuery(nil, "COMMIT")
	return append(r.opened(),
		turn{r.server, xidAnswer("42", 'T'), r.client, nil},
		turn{r.client, update, r.server, update}, // known: it is not asked again
		turn{r.server, ready("DELETE 1", 'T'), r.client, ready("DELETE 1", 'T')},
		turn{r.client, commit, r.server, commit},
		turn{r.server, ready("COMMIT", 'I'), r.client, ready("COMMIT", 'I')},
	)
}

// batchOf is a statement in the extended protocol, up to Sync, as libpq sends it.
func batchOf(sql string) []byte {
	out := pgwire.AppendBind(pgwire.AppendParse(nil, "", sql, nil), "", "")
	return pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendDescribe(out, 'P', ""), "", 0))
}

// done is what a server answers to it.
func done(tag string, status byte) []byte {
	out := pgwire.AppendMessage(nil, pgwire.SrvParseComplete, nil)
	out = pgwire.AppendMessage(out, pgwire.SrvBindComplete, nil)
	out = pgwire.AppendMessage(out, pgwire.SrvNoData, nil)
	return append(out, ready(tag, status)...)
}

// guardedAheadExtended is the same in the extended protocol; its COMMIT goes with all its batch.
func (r *steady) guardedAheadExtended() []turn {
	update, commit := batchOf("UPDATE t SET a = 1"), batchOf("COMMIT")
	return []turn{
		{r.client, batchOf("BEGIN"), r.server, batchOf("BEGIN")},
		{r.server, done("BEGIN", 'T'), r.client, done("BEGIN", 'T')},
		{r.client, update, r.server, append(bytes.Clone(update), xidQuestion...)},
		{r.server, done("UPDATE 1", 'T'), r.client, done("UPDATE 1", 'T')},
		{r.server, xidAnswer("42", 'T'), r.client, nil},
		{r.client, commit, r.server, commit},
		{r.server, done("COMMIT", 'I'), r.client, done("COMMIT", 'I')},
	}
}

// guardedNone has no xid behind its first write, nor behind the second one: it is asked for until
// there is one, and last at COMMIT.
func (r *steady) guardedNone() []turn {
	update, commit := pgwire.AppendQuery(nil, "DELETE FROM t"), pgwire.AppendQuery(nil, "COMMIT")
	read := pgwire.AppendQuery(nil, "SELECT 1")
	return append(r.opened(),
		turn{r.server, xidAnswer("", 'T'), r.client, nil},
		turn{r.client, read, r.server, read},
		turn{r.server, ready("SELECT 1", 'T'), r.client, ready("SELECT 1", 'T')},
		turn{r.client, update, r.server, append(bytes.Clone(update), xidQuestion...)},
		turn{r.server, ready("DELETE 0", 'T'), r.client, ready("DELETE 0", 'T')},
		turn{r.server, xidAnswer("", 'T'), r.client, nil},
		turn{r.client, commit, r.server, xidQuestion},
		turn{r.server, xidAnswer("", 'T'), r.server, commit},
		turn{r.server, ready("COMMIT", 'I'), r.client, ready("COMMIT", 'I')},
	)
}

// guardedPipeline has its COMMIT wait for an answer that is under way, and for nothing else.
func (r *steady) guardedPipeline() []turn {
	commit := pgwire.AppendQuery(nil, "COMMIT")
	return append(r.opened(),
		turn{r.client, commit, r.client, nil},
		turn{r.server, xidAnswer("42", 'T'), r.server, commit},
		turn{r.server, ready("COMMIT", 'I'), r.client, ready("COMMIT", 'I')},
	)
}

// Not before its answer came.
func TestCommitAwaitsTheQuestionAhead(t *testing.T) {
	r := newSteady(t, GuardExplicit)
	turns := r.guardedPipeline()
	r.play(turns[:5])
	r.quiet()
	r.play(turns[5:])
}

// quiet checks that the server gets nothing, as far as that can be seen.
func (r *steady) quiet() {
	r.tb.Helper()
	fds := []unix.PollFd{{Fd: int32(r.server), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 50); err == nil && n > 0 {
		buf := make([]byte, 1<<10)
		n, _ := unix.Read(r.server, buf)
		r.tb.Fatalf("the server got %q", buf[:n])
	}
}

// Where nothing is asked ahead.
func TestNothingIsAskedAhead(t *testing.T) {
	begin := turn{sent: pgwire.AppendQuery(nil, "BEGIN"), comes: ready("BEGIN", 'T')}
	update := turn{sent: pgwire.AppendQuery(nil, "UPDATE t SET a = 1"), comes: ready("UPDATE 1", 'T')}
	query := func(sql, tag string, status byte) turn {
		return turn{sent: pgwire.AppendQuery(nil, sql), comes: ready(tag, status)}
	}
	for name, tc := range map[string]struct {
		guard  string
		before func(s *session)
		turns  []turn
	}{
		"no guard":   {GuardOff, nil, []turn{begin, update}},
		"no block":   {GuardExplicit, nil, []turn{query("UPDATE t SET a = 1", "UPDATE 1", 'I')}},
		"only reads": {GuardAll, nil, []turn{begin, query("SELECT 1", "SELECT 1", 'T')}},
		"a function": {GuardAll, nil, []turn{begin, query("SELECT f()", "SELECT 1", 'T')}},
		"utility":    {GuardAll, nil, []turn{begin, query("CREATE TABLE u ()", "CREATE TABLE", 'T')}},
		"a string":   {GuardAll, nil, []turn{begin, query("DELETE FROM t;DELETE FROM t", "", 'T')}},
		"a failed block": {GuardAll, nil, []turn{
			begin, query("SELECT nonsense", "", 'E'), query("UPDATE t SET a = 1", "", 'E'),
		}},
		"a cancel request under way": {
			GuardAll, func(s *session) { s.cancels++ }, []turn{begin, update},
		},
		"a server that refuses": {
			GuardAll, func(s *session) { s.asksLate = true }, []turn{begin, update},
		},
		"a unit that was run again": {
			GuardAll, func(s *session) { s.tries++ }, []turn{begin, update},
		},
		"a session that cannot be carried": {
			GuardAll, func(s *session) { s.track.unmovable |= reasonTemp }, []turn{begin, update},
		},
		"a journal that is full": {
			GuardAll, func(s *session) { s.proxy.cfg.JournalBytesMax = 20 }, []turn{begin, update},
		},
		"a write before the block, and none in it": {GuardExplicit, nil, []turn{
			query("UPDATE t SET a = 1", "UPDATE 1", 'I'), begin, query("SELECT 1", "SELECT 1", 'T'),
		}},
		"a write that was rolled back": {GuardExplicit, nil, []turn{
			begin, query("SAVEPOINT s", "SAVEPOINT", 'T'), query("SELECT nonsense", "", 'E'),
			query("UPDATE t SET a = 1", "", 'E'), query("ROLLBACK TO s", "ROLLBACK", 'T'),
			query("SELECT 1", "SELECT 1", 'T'),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, tc.guard)
			if tc.before != nil {
				r.session.mu.Lock()
				tc.before(r.session)
				r.session.mu.Unlock()
			}
			for _, x := range tc.turns {
				r.play([]turn{
					{r.client, x.sent, r.server, x.sent}, {r.server, x.comes, r.client, x.comes},
				})
			}
			r.quiet()
		})
	}
}

// Several statements before one Sync, several batches in one read: the question goes once, behind
// all of them, and not where a COPY may take it for data or the transaction is over by then.
func TestQuestionBehindPipelines(t *testing.T) {
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	query := func(sql string) []byte { return pgwire.AppendQuery(nil, sql) }
	noSync := func(sql string) []byte {
		b := batchOf(sql)
		return b[:len(b)-len(pgwire.AppendSync(nil))]
	}
	opened := cat(query("BEGIN"), query("DELETE FROM t"))
	for name, tc := range map[string]struct {
		sent  []byte
		asked bool
	}{
		"begin and write in one batch":  {cat(noSync("BEGIN"), batchOf("DELETE FROM t")), true},
		"two batches":                   {cat(batchOf("BEGIN"), batchOf("DELETE FROM t")), true},
		"two queries":                   {opened, true},
		"a read behind the write":       {cat(opened, query("SELECT 1")), true},
		"the batch goes on":             {cat(batchOf("BEGIN"), noSync("DELETE FROM t")), false},
		"a COPY behind the write":       {cat(opened, query("COPY t FROM STDIN")), false},
		"a rollback behind the write":   {cat(opened, query("ROLLBACK")), false},
		"another transaction behind it": {cat(opened, query("ROLLBACK AND CHAIN")), false},
		"a write that is rolled back": {cat(query("BEGIN"), query("SAVEPOINT s"),
			query("DELETE FROM t"), query("ROLLBACK TO s")), false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardExplicit)
			want := tc.sent
			if tc.asked {
				want = cat(tc.sent, xidQuestion)
			}
			r.send(r.client, tc.sent)
			r.expect(r.server, want)
			r.quiet()
		})
	}
}

// What comes behind the question may end the transaction that it tells of.
func TestNumberOfAnotherTransaction(t *testing.T) {
	commit := pgwire.AppendQuery(nil, "COMMIT")
	for name, other := range map[string]string{
		"ROLLBACK": "ROLLBACK AND CHAIN", "string": "ROLLBACK; BEGIN; SELECT 1",
	} {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardExplicit)
			r.play(r.opened())
			next := pgwire.AppendQuery(nil, other)
			r.play([]turn{{r.client, next, r.server, next}})
			r.send(r.server, append(xidAnswer("42", 'T'), ready("ROLLBACK", 'T')...))
			r.expect(r.client, ready("ROLLBACK", 'T'))
			r.play([]turn{
				{r.client, commit, r.server, xidQuestion},
				{r.server, xidAnswer("43", 'T'), r.server, commit},
			})
			if xid := r.xid(); xid != 43 {
				t.Errorf("xid %d", xid)
			}
		})
	}
	t.Run("known before", func(t *testing.T) {
		r := newSteady(t, GuardExplicit)
		r.play(r.guardedAhead()[:5])
		r.awaitXID(42)
		next := pgwire.AppendQuery(nil, "ROLLBACK AND CHAIN")
		r.play([]turn{
			{r.client, next, r.server, next},
			{r.server, ready("ROLLBACK", 'T'), r.client, ready("ROLLBACK", 'T')},
			{r.client, commit, r.server, xidQuestion},
			{r.server, xidAnswer("", 'T'), r.server, commit},
		})
		if xid := r.xid(); xid != 0 {
			t.Errorf("xid %d", xid)
		}
	})
}

// awaitXID waits until the session has taken that answer.
func (r *steady) awaitXID(want uint64) {
	r.tb.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		r.session.mu.Lock()
		xid := r.session.flow.known.xid
		r.session.mu.Unlock()
		if xid == want {
			return
		}
		if time.Now().After(deadline) {
			r.tb.Fatalf("xid %d is known, want %d", xid, want)
		}
		time.Sleep(time.Millisecond)
	}
}

// xid is that of the COMMIT in doubt.
func (r *steady) xid() uint64 {
	r.session.mu.Lock()
	defer r.session.mu.Unlock()
	if !r.session.inDoubt || !r.session.noCancel {
		r.tb.Error("no COMMIT is in doubt")
	}
	return r.session.xid
}

// A COMMIT that goes at once is in doubt, with its transaction id, before it leaves, and no cancel
// request is relayed any more; one of PREPARE TRANSACTION likewise.
func TestCommitThatGoesAtOnceIsInDoubt(t *testing.T) {
	for _, sql := range []string{"COMMIT", "PREPARE TRANSACTION 'x'"} {
		for kind, m := range map[string][]byte{
			"simple": pgwire.AppendQuery(nil, sql), "extended": batchOf(sql),
		} {
			r := newSteady(t, GuardExplicit)
			r.play(r.guardedAhead()[:5])
			r.awaitXID(42)
			r.play([]turn{{r.client, m, r.server, m}})
			if xid := r.xid(); xid != 42 {
				t.Errorf("%s %s: xid %d", kind, sql, xid)
			}
			s := r.session
			s.mu.Lock()
			p := s.judgeAll(s.flow.status)
			s.mu.Unlock()
			if len(p) != 1 || p[0].verdict != verdictLookup || p[0].next != 'I' {
				t.Errorf("%s %s: judged %+v", kind, sql, p)
			}
		}
	}
}

// A COMMIT in one batch with what was not answered is no COMMIT of its own yet: what it is answered
// with, if it is found committed, would not be known.
func TestCommitBehindItsBatchWaits(t *testing.T) {
	commit := batchOf("COMMIT")
	named := commit[:len(commit)-len(pgwire.AppendSync(pgwire.AppendExecute(nil, "", 0)))]
	start := pgwire.AppendBind(pgwire.AppendParse(nil, "", "DELETE FROM t", nil), "", "")
	for name, first := range map[string][]byte{
		"a statement":   pgwire.AppendExecute(bytes.Clone(start), "", 0),
		"a description": pgwire.AppendDescribe(bytes.Clone(start), 'P', ""),
	} {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardExplicit)
			r.play(r.guardedAhead()[:5])
			r.awaitXID(42)
			r.send(r.client, append(bytes.Clone(first), commit...))
			r.expect(r.server, bytes.Join([][]byte{first, named,
				pgwire.AppendFlush(appendInner(nil, xidSQL))}, nil))
		})
	}
}

// The server refuses a question in a failed block: nobody hears of it, and the block is as before.
func TestQuestionInAFailedBlock(t *testing.T) {
	r := newSteady(t, GuardAll)
	failed := pgwire.AppendReadyForQuery(pgwire.AppendError(nil,
		pgwire.NewError("23505", "duplicate")), 'E')
	refused := pgwire.AppendReadyForQuery(pgwire.AppendError(nil,
		pgwire.NewError("25P02", "aborted")), 'E')
	save, back := pgwire.AppendQuery(nil, "SAVEPOINT s"), pgwire.AppendQuery(nil, "ROLLBACK TO s")
	update := pgwire.AppendQuery(nil, "UPDATE t SET a = 1")
	commit := pgwire.AppendQuery(nil, "COMMIT")
	r.play(r.opened()[:2])
	r.play([]turn{
		{r.client, save, r.server, save},
		{r.server, ready("SAVEPOINT", 'T'), r.client, ready("SAVEPOINT", 'T')},
		{r.client, update, r.server, append(bytes.Clone(update), xidQuestion...)},
		{r.server, append(bytes.Clone(failed), refused...), r.client, failed},
		{r.client, back, r.server, back},
		{r.server, ready("ROLLBACK", 'T'), r.client, ready("ROLLBACK", 'T')},
		{r.client, update, r.server, append(bytes.Clone(update), xidQuestion...)},
		{r.server, append(ready("UPDATE 1", 'T'), xidAnswer("42", 'T')...), r.client,
			ready("UPDATE 1", 'T')},
		{r.client, commit, r.server, commit},
	})
}

// A block that was not opened leaves the question to a transaction of its own: what the client
// sends then is a unit of work, and waits for its end.
func TestQuestionOutsideABlock(t *testing.T) {
	r := newSteady(t, GuardExplicit)
	begin, update := pgwire.AppendQuery(nil, "BEGIN"), pgwire.AppendQuery(nil, "UPDATE t SET a = 1")
	read := pgwire.AppendQuery(nil, "SELECT 1")
	sent := append(bytes.Clone(begin), update...)
	failed := pgwire.AppendReadyForQuery(pgwire.AppendError(nil,
		pgwire.NewError(pgwire.CodeQueryCanceled, "canceled")), 'I')
	r.play([]turn{
		{r.client, sent, r.server, append(bytes.Clone(sent), xidQuestion...)},
		{r.server, append(bytes.Clone(failed), ready("UPDATE 1", 'I')...), r.client,
			append(bytes.Clone(failed), ready("UPDATE 1", 'I')...)},
	})
	r.send(r.client, read)
	r.quiet()
	// An error there undoes nothing of the client.
	r.play([]turn{{r.server, failed, r.server, read}})
	r.session.mu.Lock()
	defer r.session.mu.Unlock()
	if s := r.session; s.lost || s.flow.current() == nil || s.flow.current().start != 0 {
		t.Errorf("lost %v, begins at %+v", s.lost, s.flow.current())
	}
}

// The journal has nothing of the question.
func TestQuestionIsNotInTheJournal(t *testing.T) {
	r := newSteady(t, GuardAll)
	turns := r.guardedAhead()
	r.play(turns[:7])
	var want []byte
	for _, x := range turns[:7] {
		if x.from == r.client {
			want = append(want, x.sent...)
		}
	}
	r.session.mu.Lock()
	defer r.session.mu.Unlock()
	if got := r.session.unit.bytes; !bytes.Equal(got, want) {
		t.Errorf("journal %q, want %q", got, want)
	}
}

// Only a question of ours is outstanding: the client waits for nothing that could be canceled.
func TestServedClientHasNothingToCancel(t *testing.T) {
	r := newSteady(t, GuardAll)
	s := r.session
	served := func(want bool) {
		t.Helper()
		s.mu.Lock()
		defer s.mu.Unlock()
		if got := s.flow.isServed(); got != want {
			t.Errorf("served: %v", got)
		}
	}
	turns := r.opened()
	r.play(turns[:3])
	served(false)
	r.play(turns[3:])
	served(true)
	r.session.key, s.proxy.cancelable = make([]byte, 8), nil
	r.play([]turn{{r.server, xidAnswer("42", 'T'), r.client, nil}})
	r.awaitXID(42)
	served(false) // as before: the server would not notice
}

// What could not be sent at all stays in the inbox without the question.
func TestQuestionOfALostBackend(t *testing.T) {
	r := newSteady(t, GuardAll)
	r.play(r.opened()[:2])
	s, update := r.session, r.opened()[2].sent
	r.takeOver(nil)
	s.mu.Lock()
	s.equip()
	s.in.room(1)
	s.in.extend(update)
	_, n, _, before, err := s.inspectInbox()
	if err != nil || n != len(update) || len(s.ahead) != len(xidQuestion) {
		t.Fatal(n, s.ahead, err)
	}
	s.mu.Unlock()
	_ = r.back.conn.Close()
	if err := s.send(r.back, 0, n, before); !errors.Is(err, errBackendLost) {
		t.Fatal(err)
	}
	if got := s.in.bytes(); !bytes.Equal(got, update) || s.flow.head != len(s.flow.ops) {
		t.Errorf("%q waits, %d operations", got, len(s.flow.ops)-s.flow.head)
	}
}

// A COMMIT that fails is no commit, also where its client has sent more behind it: the next answer
// does not acknowledge it.
func TestFailedCommitIsNotAcknowledged(t *testing.T) {
	r := newSteady(t, GuardExplicit)
	r.play(r.guardedAhead()[:5])
	r.awaitXID(42)
	commit, read := batchOf("COMMIT"), batchOf("SELECT 1")
	failed := pgwire.AppendMessage(nil, pgwire.SrvParseComplete, nil)
	failed = pgwire.AppendMessage(failed, pgwire.SrvBindComplete, nil)
	failed = pgwire.AppendMessage(failed, pgwire.SrvNoData, nil)
	failed = pgwire.AppendError(failed, pgwire.NewError("23503", "deferred"))
	failed = pgwire.AppendReadyForQuery(failed, 'I')
	r.play([]turn{
		{r.client, append(bytes.Clone(commit), read...), r.server, append(bytes.Clone(commit), read...)},
		{r.server, failed, r.client, failed},
		{r.server, done("SELECT 1", 'I'), r.client, done("SELECT 1", 'I')},
	})
	r.session.mu.Lock()
	defer r.session.mu.Unlock()
	if s := r.session; s.acked.xid != 0 || s.inDoubt || s.noCancel {
		t.Errorf("acknowledged %v, in doubt %v, no cancel %v", s.acked, s.inDoubt, s.noCancel)
	}
}
