package proxy

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// expect reads exactly want at one of the descriptors.
func (r *steady) expect(fd int, want []byte) {
	r.tb.Helper()
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		m, err := unix.Read(fd, got[n:])
		if err != nil || m == 0 {
			r.tb.Fatalf("%q came, then %d, %v; want %q", got[:n], m, err, want)
		}
		n += m
	}
	if !bytes.Equal(got, want) {
		r.tb.Fatalf("%q came, want %q", got, want)
	}
}

// send writes to one of the descriptors.
func (r *steady) send(fd int, p []byte) {
	r.tb.Helper()
	if _, err := unix.Write(fd, p); err != nil {
		r.tb.Fatal(err)
	}
}

// turn is what is sent at one of the descriptors, and what comes at one of them thereby.
type turn struct {
	from  int
	sent  []byte
	to    int
	comes []byte
}

// play takes the turns one after the other; the session is on the loop behind each.
func (r *steady) play(turns []turn) {
	r.tb.Helper()
	for i := range turns {
		r.send(turns[i].from, turns[i].sent)
		r.expect(turns[i].to, turns[i].comes)
		if !r.session.onLoop.Load() {
			r.tb.Fatalf("a goroutine has the session behind turn %d, %q", i, turns[i].sent)
		}
	}
}

func ready(tag string, status byte) []byte {
	return pgwire.AppendReadyForQuery(pgwire.AppendCommandComplete(nil, tag), status)
}

// guardedCommit is a transaction whose COMMIT waits for its xid: it may have written by a function.
func (r *steady) guardedCommit() []turn {
	begin, commit := pgwire.AppendQuery(nil, "BEGIN"), pgwire.AppendQuery(nil, "COMMIT")
	update := pgwire.AppendQuery(nil, "SELECT f()")
	xid := pgwire.AppendMessage(nil, pgwire.SrvFunctionCallResponse, []byte("\x00\x00\x00\x0242"))
	return []turn{
		{r.client, begin, r.server, begin},
		{r.server, ready("BEGIN", 'T'), r.client, ready("BEGIN", 'T')},
		{r.client, update, r.server, update},
		{r.server, ready("UPDATE 1", 'T'), r.client, ready("UPDATE 1", 'T')},
		{r.client, commit, r.server, pgwire.AppendFunctionCall(nil, xidOID)},
		{r.server, pgwire.AppendReadyForQuery(xid, 'T'), r.server, commit},
		{r.server, ready("COMMIT", 'I'), r.client, ready("COMMIT", 'I')},
	}
}

// guardedExtended is the same in the extended protocol.
func (r *steady) guardedExtended() []turn {
	begin := pgwire.AppendQuery(nil, "BEGIN")
	named := pgwire.AppendBind(pgwire.AppendParse(nil, "", "COMMIT", nil), "", "")
	commit := pgwire.AppendSync(pgwire.AppendExecute(nil, "", 0))
	question := pgwire.AppendFlush(appendInner(nil, xidSQL))
	bound := append(pgwire.AppendMessage(nil, pgwire.SrvParseComplete, nil),
		pgwire.AppendMessage(nil, pgwire.SrvBindComplete, nil)...)
	return []turn{
		{r.client, begin, r.server, begin},
		{r.server, ready("BEGIN", 'T'), r.client, ready("BEGIN", 'T')},
		{r.client, append(bytes.Clone(named), commit...), r.server,
			append(bytes.Clone(named), question...)},
		{r.server, bound, r.client, bound},
		{r.server, innerAnswer("42"), r.server, commit},
		{r.server, ready("COMMIT", 'I'), r.client, ready("COMMIT", 'I')},
	}
}

// guardedWrites are statements outside of a block, as a Query and with a Sync.
func (r *steady) guardedWrites() []turn {
	const sql = "UPDATE t SET a = 1"
	message := func(typ byte) []byte { return pgwire.AppendMessage(nil, typ, nil) }
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	batch := pgwire.AppendExecute(pgwire.AppendBind(pgwire.AppendParse(nil, "", sql, nil), "", ""),
		"", 0)
	done := cat(message(pgwire.SrvParseComplete), message(pgwire.SrvBindComplete),
		pgwire.AppendCommandComplete(nil, "UPDATE 1"))
	idle := pgwire.AppendReadyForQuery(nil, 'I')
	question := pgwire.AppendFlush(appendInner(nil, xidSQL))
	asQuery := pgwire.AppendBind(pgwire.AppendParse(nil, "", sql, nil), "", "")
	asQuery = pgwire.AppendExecute(pgwire.AppendDescribe(asQuery, 'P', ""), "", 0)
	asQuery = pgwire.AppendClose(asQuery, 'S', "")
	return []turn{
		{r.client, pgwire.AppendSync(bytes.Clone(batch)), r.server, cat(batch, question)},
		{r.server, done, r.client, done},
		{r.server, innerAnswer("42"), r.server, pgwire.AppendSync(nil)},
		{r.server, idle, r.client, idle},
		{r.client, pgwire.AppendQuery(nil, sql), r.server, cat(asQuery, question)},
		{r.server, cat(message(pgwire.SrvParseComplete), message(pgwire.SrvBindComplete),
			message(pgwire.SrvNoData), pgwire.AppendCommandComplete(nil, "UPDATE 1"),
			message(pgwire.SrvCloseComplete), innerAnswer("43")), r.server, pgwire.AppendSync(nil)},
		{r.server, idle, r.client, ready("UPDATE 1", 'I')},
	}
}

// innerAnswer is that to appendInner.
func innerAnswer(value string) []byte {
	return bytes.Join([][]byte{
		pgwire.AppendMessage(nil, pgwire.SrvParseComplete, nil),
		pgwire.AppendMessage(nil, pgwire.SrvBindComplete, nil),
		pgwire.AppendDataRow(nil, []byte(value)),
		pgwire.AppendCommandComplete(nil, "SELECT 1"),
		pgwire.AppendMessage(nil, pgwire.SrvCloseComplete, nil),
		pgwire.AppendMessage(nil, pgwire.SrvCloseComplete, nil),
	}, nil)
}

// guardedShapes are conversations in which something waits for its xid.
var guardedShapes = map[string]func(r *steady) []turn{
	"commit":          (*steady).guardedCommit,
	"ahead":           (*steady).guardedAhead,
	"extended ahead":  (*steady).guardedAheadExtended,
	"none ahead":      (*steady).guardedNone,
	"pipelined":       (*steady).guardedPipeline,
	"extended commit": (*steady).guardedExtended,
	"writes":          (*steady).guardedWrites,
	"string":          (*steady).guardedString,
	"failed string":   (*steady).failedString,
}

// A question for the xid is asked, awaited and followed by what it was for on the loop: to hand a
// session over to a goroutine and back costs more than the question.
func TestGuardStaysOnTheLoop(t *testing.T) {
	for name, turns := range guardedShapes {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardAll)
			for range 3 {
				r.play(turns(r))
			}
		})
	}
}

// A question that failed half-way has left its statement behind: the next one closes it first, else
// it would fail for that, and the client's transaction with it.
func TestQuestionBehindOneThatFailed(t *testing.T) {
	message := func(typ byte) []byte { return pgwire.AppendMessage(nil, typ, nil) }
	batch := pgwire.AppendExecute(pgwire.AppendBind(pgwire.AppendParse(nil, "",
		"UPDATE t SET a = 1", nil), "", ""), "", 0)
	done := bytes.Join([][]byte{message(pgwire.SrvParseComplete), message(pgwire.SrvBindComplete),
		pgwire.AppendCommandComplete(nil, "UPDATE 1")}, nil)
	question := pgwire.AppendFlush(appendInner(nil, xidSQL))
	canceled := pgwire.AppendError(nil, pgwire.NewError(pgwire.CodeQueryCanceled, "canceled"))
	sync, idle := pgwire.AppendSync(nil), pgwire.AppendReadyForQuery(nil, 'I')
	r := newSteady(t, GuardAll)
	r.send(r.client, append(bytes.Clone(batch), sync...))
	r.expect(r.server, append(bytes.Clone(batch), question...))
	r.send(r.server, append(append(bytes.Clone(done), message(pgwire.SrvParseComplete)...),
		canceled...))
	r.expect(r.client, append(bytes.Clone(done), canceled...))
	r.expect(r.server, sync)
	r.send(r.server, idle)
	r.expect(r.client, idle)
	r.send(r.client, append(bytes.Clone(batch), sync...))
	closed := pgwire.AppendClose(bytes.Clone(batch), 'S', innerName)
	r.expect(r.server, append(closed, question...))
}

func TestGuardedCommitAllocatesNothing(t *testing.T) {
	if isRace {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	for _, name := range []string{"commit", "ahead", "extended ahead", "none ahead", "string"} {
		t.Run(name, func(t *testing.T) { checkGuardAllocates(t, guardedShapes[name]) })
	}
}

func checkGuardAllocates(t *testing.T, shape func(*steady) []turn) {
	r := newSteady(t, GuardAll)
	turns := shape(r)
	buf := make([]byte, 1<<10)
	once := func() {
		for i := range turns {
			r.send(turns[i].from, turns[i].sent)
			for n := 0; n < len(turns[i].comes); {
				m, err := unix.Read(turns[i].to, buf)
				if err != nil || m == 0 {
					t.Fatalf("turn %d: %v", i, err)
				}
				n += m
			}
		}
	}
	for range 50 {
		once()
	}
	if n := testing.AllocsPerRun(500, once); n > 0 {
		t.Errorf("%.2f allocations per transaction", n)
	}
}

// Where the server has no room for a question, the rest of it goes when there is, before anything
// else.
func TestQuestionWaitsForRoom(t *testing.T) {
	for name, turns := range guardedShapes {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardAll)
			all := turns(r)
			asks := 0 // the first turn that makes the proxy ask
			for len(all[asks].comes) == len(all[asks].sent) {
				asks++
			}
			r.play(all[:asks])
			junk, filled := make([]byte, 64<<10), 0
			for {
				n, err := r.back.conn.tryWrite(junk)
				filled += n
				if errors.Is(err, errAgain) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			r.send(r.client, all[asks].sent)
			r.expect(r.server, make([]byte, filled))
			r.expect(all[asks].to, all[asks].comes)
			r.play(all[asks+1:])
		})
	}
}

// What guarded work costs: how often something is sent to the server that could not go before its
// answer to what was sent last.
func TestRoundTripsOfGuardedWork(t *testing.T) {
	for name, tc := range map[string]struct {
		turns func(r *steady) []turn
		want  int
	}{
		"a transaction":                {(*steady).guardedPipeline, 3},
		"a transaction, extended":      {(*steady).guardedAheadExtended, 3},
		"a transaction by a function":  {(*steady).guardedCommit, 4},
		"two writes, Sync and Query":   {(*steady).guardedWrites, 4},
		"a transaction without an xid": {(*steady).guardedNone, 6},
		"a string":                     {(*steady).guardedString, 2},
	} {
		r := newSteady(t, GuardAll)
		turns, n := tc.turns(r), 0
		for _, x := range turns {
			if x.to == r.server && len(x.comes) > 0 {
				n++
			}
		}
		r.play(turns)
		if n != tc.want {
			t.Errorf("%s: %d round trips, want %d", name, n, tc.want)
		}
	}
}
