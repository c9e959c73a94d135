package election

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

func TestJudgeRegain(t *testing.T) {
	three := []string{"a", "b", "c"}
	five := []string{"a", "b", "c", "d", "e"}
	at := func(term, logTerm, index uint64, voters []string) raftPosition {
		return raftPosition{Term: term, LogTerm: logTerm, LogIndex: index, Voters: voters}
	}
	lost := raftPosition{Lost: true}
	first := at(1, 1, 1, three)
	type answers = map[string]raftPosition
	for name, tc := range map[string]struct {
		configured []string
		answers    answers
		want       string // what is missing
		rec        regainRecord
	}{
		"alone":              {[]string{"a"}, nil, "", regainRecord{}},
		"first start of all": {three, answers{"b": lost, "c": lost}, "", regainRecord{}},
		"first start, one is ahead": {three, answers{"b": first, "c": lost}, "",
			regainRecord{Term: 1, LogTerm: 1, LogIndex: 1}},
		"first start, a leader was elected": {three,
			answers{"b": at(2, 2, 3, three), "c": at(2, 2, 2, three)}, "",
			regainRecord{Term: 2, LogTerm: 2, LogIndex: 3}},
		"one is missing": {three, answers{"b": at(4, 4, 90, three)}, "an answer of c", regainRecord{}},
		// The highest term and the last log may be of two nodes: one was a candidate in vain.
		"term and log of two": {three, answers{"b": at(9, 4, 80, three), "c": at(5, 5, 70, three)}, "",
			regainRecord{Term: 9, LogTerm: 5, LogIndex: 70}},
		"another one lost its log": {three, answers{"b": at(4, 4, 90, three), "c": lost},
			"2 of the 3 voters have lost theirs", regainRecord{}},
		"two of five": {five, answers{"b": at(4, 4, 90, five), "c": lost, "d": at(4, 4, 90, five),
			"e": at(4, 4, 90, five)}, "", regainRecord{Term: 4, LogTerm: 4, LogIndex: 90}},
		"a majority of five is not enough": {five, answers{"b": at(4, 4, 90, five),
			"c": at(4, 4, 90, five), "d": at(4, 4, 90, five)}, "an answer of e", regainRecord{}},
		// The voters are those of the last log, not of the list that this node was started with.
		"the list is old": {three, answers{"b": at(4, 4, 90, []string{"a", "b", "d"}),
			"c": at(1, 1, 1, three)}, "an answer of d", regainRecord{}},
		"to be added": {[]string{"a", "b"}, answers{"b": at(4, 4, 90, []string{"b", "c", "d"}),
			"c": at(4, 4, 90, []string{"b", "c", "d"})}, "",
			regainRecord{Term: 4, LogTerm: 4, LogIndex: 90}},
		"to be added, too few say so": {[]string{"a", "b"},
			answers{"b": at(4, 4, 90, []string{"b", "c", "d"})}, "an answer of c, d", regainRecord{}},
		"after a recovery": {three, answers{"b": at(7, 7, 200, []string{"b"})}, "",
			regainRecord{Term: 7, LogTerm: 7, LogIndex: 200}},
	} {
		rec, why := judgeRegain("a", tc.configured, tc.answers)
		if (tc.want == "") != (why == "") || !strings.Contains(why, tc.want) {
			t.Errorf("%s: %q, want %q", name, why, tc.want)
		}
		tc.rec.V, tc.rec.Asked = Version, true
		if why == "" && rec != tc.rec {
			t.Errorf("%s: %+v, want %+v", name, rec, tc.rec)
		}
	}
}

// TestRegainRefusesWhatWasForgotten: the node may have voted in the term of the record, and stored
// the last entry there.
func TestRegainRefusesWhatWasForgotten(t *testing.T) {
	g := &regain{rec: regainRecord{V: Version, Asked: true, Term: 9, LogTerm: 5, LogIndex: 70}}
	tr := &regainTransport{regain: g}
	vote := func(term, logTerm, index uint64) *raft.RequestVoteRequest {
		return &raft.RequestVoteRequest{Term: term, LastLogTerm: logTerm, LastLogIndex: index}
	}
	for name, tc := range map[string]struct {
		command any
		refused bool
	}{
		"vote in that term":    {vote(9, 5, 70), true},
		"vote, log is shorter": {vote(10, 5, 69), true},
		"vote, log is older":   {vote(10, 4, 90), true},
		"vote":                 {vote(10, 5, 70), false},
		"vote, a newer log":    {vote(10, 6, 60), false},
		"pre-vote, log is shorter": {&raft.RequestPreVoteRequest{Term: 10, LastLogTerm: 5,
			LastLogIndex: 69}, true},
		"pre-vote": {&raft.RequestPreVoteRequest{Term: 10, LastLogTerm: 5,
			LastLogIndex: 70}, false},
		"overtaken leader":             {&raft.AppendEntriesRequest{Term: 8}, true},
		"leader of that term":          {&raft.AppendEntriesRequest{Term: 9}, false},
		"snapshot of an old leader":    {&raft.InstallSnapshotRequest{Term: 8}, true},
		"snapshot":                     {&raft.InstallSnapshotRequest{Term: 9}, false},
		"what has no term to speak of": {&raft.TimeoutNowRequest{}, false},
	} {
		answer := make(chan raft.RPCResponse, 1)
		body := bytes.NewReader(make([]byte, 100))
		refused := tr.refuse(raft.RPC{Command: tc.command, RespChan: answer, Reader: body})
		if refused != tc.refused {
			t.Errorf("%s: refused %t", name, refused)
		}
		if !refused {
			continue
		}
		switch a := (<-answer).Response.(type) {
		case *raft.RequestVoteResponse:
			if a.Granted || a.Term != 9 {
				t.Errorf("%s: %+v", name, a)
			}
		case *raft.RequestPreVoteResponse:
			if a.Granted || a.Term != 9 {
				t.Errorf("%s: %+v", name, a)
			}
		case *raft.AppendEntriesResponse:
			if a.Success || a.Term != 9 {
				t.Errorf("%s: %+v", name, a)
			}
		case *raft.InstallSnapshotResponse:
			if left, _ := io.Copy(io.Discard, body); a.Success || a.Term != 9 || left > 0 {
				t.Errorf("%s: %+v, %d bytes not read", name, a, left)
			}
		}
	}
	// It asks nobody for a vote that it would not give.
	if err := tr.RequestVote("b", "", vote(10, 5, 69), nil); err == nil {
		t.Error("it asks for votes with a part of its log")
	}
	if err := tr.RequestPreVote("b", "", &raft.RequestPreVoteRequest{Term: 9}, nil); err == nil {
		t.Error("it asks for pre-votes with a part of its log")
	}
}
