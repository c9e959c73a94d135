package proxy

import (
	"slices"
	"strings"
	"testing"

	"holdfast/pgwire"
)

// pipeline is what a server that was sent these batches may do: each is a Query ("q begin"), or
// statements in the extended protocol up to their Sync ("x insert rollback").
type pipeline struct {
	batches []string
	status  byte // where it begins: of a block that has written, if it is one
}

// serverRun is a run of a pipeline by a server.
type serverRun struct {
	status    byte
	members   int  // batches of the transaction that is open, as bits
	wrote     bool // it has
	committed int  // batches of transactions that wrote and are committed
	touched   int  // as members, with those that only failed in it
	ended     int  // batches of all that are committed, with those that only failed in them
}

func (s *serverRun) open() {
	s.members, s.touched, s.wrote, s.status = 0, 0, false, pgwire.TxIdle
}

func (s *serverRun) commit() {
	if s.wrote {
		s.committed |= s.members
	}
	s.ended |= s.members | s.touched
	s.open()
}

// execute runs the words of a batch up to the one that fails; -1: none does.
func (s *serverRun) execute(at int, batch string, fails int) {
	words := strings.Fields(batch)
	if s.status != pgwire.TxIdle {
		s.touched |= 1 << at
	}
	for i, word := range words[1:] {
		if i == fails || !s.statement(at, word) {
			if s.status == pgwire.TxIdle {
				s.open() // the implicit transaction is rolled back
				return
			}
			s.status = pgwire.TxFailed
			return
		}
		if word != "commit" && word != "rollback" && word != "insert;commit" {
			s.members |= 1 << at
		}
	}
	if s.status == pgwire.TxIdle {
		s.commit()
	}
}

// statement runs one; false tells that it fails.
func (s *serverRun) statement(at int, word string) bool {
	if s.status == pgwire.TxFailed {
		switch word {
		case "commit", "rollback":
			s.open()
			return true
		case "to":
			s.status = pgwire.TxInBlock
			return true
		}
		return false
	}
	switch word {
	case "begin":
		s.status = pgwire.TxInBlock
	case "insert":
		s.wrote = true
	case "commit", "insert;commit":
		s.members |= 1 << at
		s.wrote = s.wrote || word != "commit"
		s.commit()
	case "rollback":
		s.open()
	case "to":
		return s.status == pgwire.TxInBlock // there may be a savepoint
	}
	return true
}

// outcomes are the batches that some server commits that got so far, and whose statements fail
// anywhere.
func (p *pipeline) outcomes() (committed, ended int) {
	var try func(s serverRun, at int)
	try = func(s serverRun, at int) {
		committed, ended = committed|s.committed, ended|s.ended
		if at == len(p.batches) {
			return
		}
		words := strings.Fields(p.batches[at])
		for fails := -1; fails < len(words)-1; fails++ {
			if fails >= 0 && !mayFail(words[0] == "q", words[1+fails]) {
				continue
			}
			next := s
			next.execute(at, p.batches[at], fails)
			try(next, at+1)
		}
	}
	inBlock := p.status != pgwire.TxIdle
	try(serverRun{status: p.status, wrote: inBlock}, 0)
	return committed, ended
}

// mayFail tells that a statement may: of an end, the Bind. BEGIN is taken to succeed.
func mayFail(isQuery bool, word string) bool {
	isEnd := word == "commit" || word == "rollback"
	return word != "begin" && !(isQuery && isEnd)
}

// lost is a session that has sent it and lost its server.
func (p *pipeline) lost() *session {
	classes := map[string]class{
		"select": 0, "insert": clsMayWrite | clsDML, "begin": clsBegin,
		"commit": clsCommit | clsMayWrite, "rollback": clsRollback, "to": clsRollbackTo,
		"insert;commit": clsMulti | clsEnds | clsMayWrite,
	}
	s := inspectRig(p.status)
	for _, batch := range p.batches {
		words := strings.Fields(batch)
		for _, word := range words[1:] {
			if words[0] == "q" {
				s.flow.push(op{kind: opQuery, cls: classes[word]})
				continue
			}
			s.flow.push(op{kind: opParse})
			s.flow.push(op{kind: opBind})
			s.flow.push(op{kind: opExecute, cls: classes[word]})
		}
		if words[0] == "x" {
			s.flow.push(op{kind: opSync})
		}
	}
	return s
}

// TestBlockIsToldWhatItsCommitIs plays every pipeline of up to three batches, or four behind a
// BEGIN, against every server that may have had it (DESIGN.md I34): what is told as rolled back is
// in no transaction that any of them commits, and what is in doubt is in one.
func TestBlockIsToldWhatItsCommitIs(t *testing.T) {
	kinds := []string{
		"q begin", "q select", "q insert", "q commit", "q rollback", "q to", "q insert;commit",
		"x select", "x rollback", "x insert rollback", "x to commit", "x commit",
		"x rollback begin",
	}
	count, doubted := 0, 0
	var try func(p pipeline, most int)
	try = func(p pipeline, most int) {
		if len(p.batches) > 0 {
			count++
			doubted += p.judge(t)
		}
		if len(p.batches) == most || t.Failed() {
			return
		}
		for _, k := range kinds {
			next := p
			next.batches = append(slices.Clone(p.batches), k)
			try(next, most)
		}
	}
	for _, status := range []byte("ITE") {
		try(pipeline{status: status}, 3)
	}
	try(pipeline{batches: []string{"q begin"}, status: 'I'}, 4)
	t.Logf("%d pipelines, %d batches without a COMMIT in doubt", count, doubted)
}

// judge returns how many of the batches without a COMMIT are in doubt.
func (p *pipeline) judge(t *testing.T) (doubted int) {
	t.Helper()
	committed, ended := p.outcomes()
	s := p.lost()
	for i, pend := range s.judgeAll(p.status) {
		switch {
		case pend.verdict == verdictRolledBack && committed>>i&1 == 1:
			t.Errorf("%c %q: %d is told 40001, may be committed", p.status, p.batches, i)
		case pend.verdict == verdictUndo && committed>>i&1 == 1:
			t.Errorf("%c %q: %d is told that it is rolled back, may be committed", p.status,
				p.batches, i)
		case pend.verdict != verdictUnknown || strings.Contains(p.batches[i], "commit") ||
			strings.Contains(p.batches[i], " rollback"): // outside of a block it counts as a write
		case ended>>i&1 == 0 && !slices.Contains(p.batches, "q insert;commit"): // may do anything
			t.Errorf("%c %q: %d is told 08007, is surely rolled back", p.status, p.batches, i)
		default:
			doubted++
		}
	}
	return doubted
}
