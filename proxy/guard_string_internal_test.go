package proxy

import (
	"bytes"
	"testing"

	"holdfast/pgwire"
)

// stringSQL is a string of several statements that writes.
const stringSQL = "UPDATE t SET a = 1; DELETE FROM t;"

// inOurBlock is what a server gets for a string, in one write.
func inOurBlock(sql string) []byte {
	return append(pgwire.AppendQuery(appendInner(nil, "BEGIN"), sql), xidQuestion...)
}

// begun is the answer to our BEGIN.
func begun() []byte {
	return bytes.Join([][]byte{
		pgwire.AppendMessage(nil, pgwire.SrvParseComplete, nil),
		pgwire.AppendMessage(nil, pgwire.SrvBindComplete, nil),
		pgwire.AppendCommandComplete(nil, "BEGIN"),
		pgwire.AppendMessage(nil, pgwire.SrvCloseComplete, nil),
		pgwire.AppendMessage(nil, pgwire.SrvCloseComplete, nil),
	}, nil)
}

func tagged(tag string) []byte { return pgwire.AppendCommandComplete(nil, tag) }

func idle() []byte { return pgwire.AppendReadyForQuery(nil, 'I') }

func failed(code string) []byte { return pgwire.AppendError(nil, pgwire.NewError(code, "failed")) }

// sentString are the turns up to the string's first statement, which the client has the answer to.
func (r *steady) sentString() []turn {
	return []turn{
		{r.client, pgwire.AppendQuery(nil, stringSQL), r.server, inOurBlock(stringSQL)},
		{r.server, append(begun(), tagged("UPDATE 1")...), r.client, tagged("UPDATE 1")},
	}
}

// guardedString keeps the last CommandComplete, and ReadyForQuery, until it is committed.
func (r *steady) guardedString() []turn {
	return append(r.sentString(),
		turn{r.server, ready("DELETE 2", 'T'), r.client, nil},
		turn{r.server, xidAnswer("42", 'T'), r.server, pgwire.AppendQuery(nil, "COMMIT")},
		turn{r.server, tagged("COMMIT"), r.client, tagged("DELETE 2")},
		turn{r.server, idle(), r.client, idle()},
	)
}

// failedString is rolled back by us; that the server asks nothing in a failed block is not shown.
func (r *steady) failedString() []turn {
	broken := pgwire.AppendReadyForQuery(nil, 'E')
	return append(r.sentString(),
		turn{r.server, failed("23505"), r.client, failed("23505")},
		turn{r.server, append(append(bytes.Clone(broken), failed("25P02")...), broken...), r.server,
			pgwire.AppendQuery(nil, "ROLLBACK")},
		turn{r.server, ready("ROLLBACK", 'I'), r.client, idle()},
	)
}

// endedStrings are the ways in which the block of ours comes to its end, from the first statement
// of its string on.
func endedStrings(r *steady) map[string][]turn {
	commit, rollback := pgwire.AppendQuery(nil, "COMMIT"), pgwire.AppendQuery(nil, "ROLLBACK")
	broken := pgwire.AppendReadyForQuery(nil, 'E')
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	begin := r.sentString()
	kept := append(r.sentString(), turn{r.server, ready("DELETE 2", 'T'), r.client, nil})
	sent := append(bytesOf(kept), turn{r.server, xidAnswer("42", 'T'), r.server, commit})
	return map[string][]turn{
		"a BEGIN that fails": {
			begin[0], {r.server, failed("42P05"), r.client, failed("42P05")},
			{r.server, nil, r.server, pgwire.AppendSync(nil)}, {r.server, idle(), r.client, idle()},
		},
		"a BEGIN that is executed and fails": {
			begin[0],
			{r.server, append(begun()[:len(begun())-10], failed("57014")...), r.client, failed("57014")},
			{r.server, nil, r.server, pgwire.AppendSync(nil)},
			{r.server, broken, r.server, rollback},
			{r.server, ready("ROLLBACK", 'I'), r.client, idle()},
		},
		"a question that fails": append(bytesOf(kept),
			turn{r.server, failed("57014"), r.client, failed("57014")},
			turn{r.server, broken, r.server, rollback},
			turn{r.server, ready("ROLLBACK", 'I'), r.client, idle()}),
		"a COMMIT that fails": append(bytesOf(sent),
			turn{r.server, failed("23505"), r.client, failed("23505")},
			turn{r.server, idle(), r.client, idle()}),
		"a COMMIT that fails and leaves the block": append(bytesOf(sent),
			turn{r.server, failed("57014"), r.client, failed("57014")},
			turn{r.server, broken, r.server, rollback},
			turn{r.server, ready("ROLLBACK", 'I'), r.client, idle()}),
		"no id": append(bytesOf(kept), turn{r.server, xidAnswer("", 'T'), r.server, commit},
			turn{r.server, ready("COMMIT", 'I'), r.client, cat(tagged("DELETE 2"), idle())}),
		"a string that ends the block": append(bytesOf(begin),
			turn{r.server, ready("DELETE 2", 'I'), r.client, ready("DELETE 2", 'I')},
			turn{r.server, xidAnswer("", 'I'), r.client, nil}),
		"what is told at COMMIT": append(bytesOf(sent),
			turn{r.server, pgwire.AppendMessage(nil, 'N', []byte("n\x00\x00")), r.client,
				pgwire.AppendMessage(nil, 'N', []byte("n\x00\x00"))},
			turn{r.server, cat(tagged("COMMIT"), pgwire.AppendMessage(nil, 'A',
				[]byte("\x00\x00\x00\x00n\x00\x00"))), r.client, cat(tagged("DELETE 2"),
				pgwire.AppendMessage(nil, 'A', []byte("\x00\x00\x00\x00n\x00\x00")))},
			turn{r.server, idle(), r.client, idle()}),
	}
}

func bytesOf(turns []turn) []turn { return append([]turn(nil), turns...) }

// TestEndOfString: however the block of ours ends, its client is told what a string of its own
// would have told it, and nothing that it has sent meanwhile goes into that block.
func TestEndOfString(t *testing.T) {
	read := pgwire.AppendQuery(nil, "SELECT 1")
	for name := range endedStrings(&steady{}) {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardAll)
			turns := endedStrings(r)[name]
			r.play(turns[:1])
			r.send(r.client, read)
			r.play(turns[1 : len(turns)-1])
			r.quiet()
			last := turns[len(turns)-1]
			r.send(last.from, last.sent)
			r.expect(last.to, last.comes)
			r.expect(r.server, read)
			r.play([]turn{{r.server, ready("SELECT 1", 'I'), r.client, ready("SELECT 1", 'I')}})
			r.session.mu.Lock()
			defer r.session.mu.Unlock()
			if got := r.session.acked.xid == 42; got != (name == "what is told at COMMIT") {
				t.Errorf("its commit counts as acknowledged: %v", got)
			}
			if s := r.session; s.inDoubt || s.noCancel || s.flow.wrapped || s.isAsking() {
				t.Errorf("left behind: in doubt %v, no cancel %v, wrapped %v", s.inDoubt, s.noCancel,
					s.flow.wrapped)
			}
		})
	}
}

// answeredFlow is the flow of a string in a block of ours that was answered with these messages.
func answeredFlow(t *testing.T, msgs []byte, end *op) flow {
	t.Helper()
	f := newFlow('I')
	for _, k := range []opKind{opParse, opBind, opExecute, opClose, opClose} {
		f.push(op{kind: k, internal: true})
	}
	f.push(op{kind: opQuery, cls: clsMulti | clsMayWrite | clsString, stmts: 2})
	f.push(op{kind: opFunctionCall, internal: true, showErr: true})
	f.wrapped = true
	for len(msgs) > 0 {
		typ, n, err := pgwire.Header(msgs)
		if err != nil {
			t.Fatal(err)
		}
		n += pgwire.HeaderLen
		if f.current() == nil && end != nil {
			f.push(*end)
			end = nil
		}
		if _, err := f.serverMessage(typ, msgs[pgwire.HeaderLen:n]); err != nil {
			t.Fatal(err)
		}
		msgs = msgs[n:]
	}
	if f.current() == nil && end != nil && f.status != 'I' {
		f.push(*end)
	}
	return f
}

// TestJudgeString cuts behind every message: nothing is committed before our COMMIT is sent, and
// behind that it is looked up, until it is answered. The client is never in a block.
func TestJudgeString(t *testing.T) {
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	broken := pgwire.AppendReadyForQuery(nil, 'E')
	commit := &op{kind: opQuery, internal: true, showEnd: true, showErr: true, commits: true,
		cls: clsCommit | clsMayWrite}
	rollback := &op{kind: opQuery, internal: true, showEnd: true}
	done := cat(begun(), tagged("UPDATE 1"), ready("DELETE 2", 'T'), xidAnswer("42", 'T'))
	r, f, l := verdictRolledBack, verdictFinish, verdictLookup
	for name, tc := range map[string]struct {
		msgs []byte
		end  *op
		want []verdict // behind each message
	}{
		"good": {cat(done, tagged("COMMIT")), commit,
			[]verdict{r, r, r, r, r, r, r, r, r, r, l, f}},
		"not ended": {done, nil, []verdict{r, r, r, r, r, r, r, r, r, r, r}},
		"a failed COMMIT": {cat(done, failed("23505")), commit,
			[]verdict{r, r, r, r, r, r, r, r, r, r, l, f}},
		"a COMMIT that leaves the block": {cat(done, failed("57014"), broken), commit,
			[]verdict{r, r, r, r, r, r, r, r, r, r, l, f, f}},
		"a failed string": {cat(begun(), tagged("UPDATE 1"), failed("23505"), broken, failed("25P02"),
			broken, tagged("ROLLBACK")), rollback,
			[]verdict{r, r, r, r, r, r, r, f, f, f, f, f}},
		"a failed question": {cat(begun(), tagged("UPDATE 1"), ready("DELETE 2", 'T'),
			failed("57014"), broken), nil, []verdict{r, r, r, r, r, r, r, r, r, f, f}},
		"a failed BEGIN": {failed("42P05"), nil, []verdict{r, f}},
	} {
		for i, at := 0, 0; ; i++ {
			flow := answeredFlow(t, tc.msgs[:at], tc.end)
			all := flow.unansweredBatches()
			if len(all) != 1 {
				t.Fatalf("%s: %d batches behind %d messages", name, len(all), i)
			}
			got, next := judge(all[0], flow.believed(), flow.isCommitting())
			if i >= len(tc.want) || got != tc.want[i] || next != 'I' || !all[0].synced {
				t.Errorf("%s, behind %d messages: verdict %d, status %c", name, i, got, next)
			}
			if at == len(tc.msgs) {
				break
			}
			_, n, _ := pgwire.Header(tc.msgs[at:])
			at += pgwire.HeaderLen + n
		}
	}
}

// TestClassOfStrings: which strings are sent in a block of ours.
func TestClassOfStrings(t *testing.T) {
	s, _, _, _ := relayRig(t)
	s.proxy.cfg.CommitGuard = GuardAll
	for sql, want := range map[string]bool{
		"INSERT INTO t VALUES (1); UPDATE t SET a = 2":       true,
		"SELECT 1; ; DELETE FROM t;":                         true,
		"UPDATE t SET a = 1; NOTIFY x":                       true,
		"WITH w AS (SELECT 1) SELECT 1; MERGE INTO t":        true,
		"SELECT f(); INSERT INTO t VALUES (';')":             true,
		"INSERT INTO t VALUES (1);":                          false, // one
		"SELECT 1; SELECT 2":                                 false,
		"SELECT f(); SELECT g()":                             false,
		"INSERT INTO t VALUES (1); COMMIT":                   false,
		"BEGIN; INSERT INTO t VALUES (1)":                    false,
		"SAVEPOINT s; INSERT INTO t VALUES (1)":              false,
		"SET work_mem = '5MB'; INSERT INTO t VALUES (1)":     false,
		"SET LOCAL x.y = '1'; INSERT INTO t VALUES (1)":      false,
		"SELECT set_config('a.b', '1', true); DELETE FROM t": false,
		"INSERT INTO t VALUES (1); CREATE TABLE u ()":        false,
		"INSERT INTO t VALUES (1); VACUUM t":                 false,
		"INSERT INTO t VALUES (1); CALL p()":                 false,
		"INSERT INTO t VALUES (1); DO 'BEGIN END'":           false,
		"INSERT INTO t VALUES (1); COPY t FROM STDIN":        false,
		"INSERT INTO t VALUES (1); LOCK TABLE t":             false,
		"DECLARE c CURSOR FOR SELECT 1; DELETE FROM t":       false,
		"SELECT 1 INTO TEMP u; DELETE FROM t":                false,
		"SELECT pg_advisory_lock(1); DELETE FROM t":          false,
		"LISTEN x; DELETE FROM t":                            false,
		"PREPARE p AS SELECT 1; DELETE FROM t":               false,
		"EXECUTE nowhere; DELETE FROM t":                     false, // it may be anything
	} {
		s.mu.Lock()
		p := s.classify([]byte(sql))
		s.resolveExecute(&p)
		if got := s.wantsStringGuard(p.cls); got != want {
			t.Errorf("%s: %v", sql, got)
		}
		s.mu.Unlock()
	}
}
