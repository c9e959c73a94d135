package proxy

import (
	"bytes"
	"slices"
	"testing"

	"holdfast/pgwire"
)

// answering looks, at each write to the client, whether the session has noted the commit of which
// these bytes tell. That is the moment from which on a loss may come, and the client knows.
type answering struct {
	link
	s    *session
	says []byte
	told []acknowledged
}

func (a *answering) tryWrite(p []byte) (int, error) {
	if bytes.Contains(p, a.says) {
		a.s.mu.Lock()
		a.told = append(a.told, a.s.acked)
		a.s.mu.Unlock()
	}
	return a.link.tryWrite(p)
}

// A commit is noted before its answer is written: else a loss between the two would leave a session
// that goes on although a commit which its client knows of is lost (DESIGN 10.18).
func TestCommitIsNotedBeforeItsAnswer(t *testing.T) {
	commit := pgwire.AppendCommandComplete(nil, "COMMIT")
	idle := pgwire.AppendReadyForQuery(nil, 'I')
	for name, c := range map[string]struct {
		turns func(*steady) []turn
		says  []byte
		want  []uint64
	}{
		"COMMIT":                 {(*steady).guardedCommit, commit, []uint64{42}},
		"COMMIT, asked ahead":    {(*steady).guardedAhead, commit, []uint64{42}},
		"extended":               {(*steady).guardedExtended, commit, []uint64{42}},
		"pipelined":              {(*steady).guardedPipeline, commit, []uint64{42}},
		"a batch, and one Query": {(*steady).guardedWrites, idle, []uint64{42, 43}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSteady(t, GuardAll)
			a := &answering{link: r.session.client, s: r.session, says: c.says}
			set := make(chan struct{})
			r.session.loop.post(onceOnLoop(func() { r.session.client = a; close(set) }))
			<-set
			r.play(c.turns(r))
			done := make(chan struct{})
			var told []acknowledged
			r.session.loop.post(onceOnLoop(func() {
				told, r.session.client = a.told, a.link
				close(done)
			}))
			<-done
			var got []uint64
			for _, a := range told {
				got = append(got, a.xid)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("when the client is told, %v is noted, want %v", got, c.want)
			}
		})
	}
}
