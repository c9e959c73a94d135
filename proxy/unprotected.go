package proxy

import (
	"slices"
	"strings"

	"holdfast/pgwire"
)

// Where commits wait for standbys a client can still ask for less by synchronous_commit. Nobody is
// kept from that; what it commits so is marked, so that nobody takes it for protected (DESIGN
// 10.9).

// syncCommitName is the setting; protectedValues are those with which a commit waits for a flush of
// the standbys.
const syncCommitName = "synchronous_commit"

var protectedValues = []string{"on", "remote_apply", "true", "yes", "1", "default"}

// commitMark is what a session's open transaction asks for of its commit. Empty is what the session
// asks for.
type commitMark struct {
	open  string // of the open transaction
	ended string // of the one whose commit is being answered
}

// otherValue stands for a value that the text does not tell.
const otherValue = "?"

// noteSyncCommit takes a statement that may set synchronous_commit for the open transaction; the
// values of earlier ones come from the server.
func (t *tracker) noteSyncCommit(e *effect) {
	switch {
	case e.kind == pgwire.KindSet && e.name == syncCommitName:
		t.mark.open = lastWord(e.text)
	case slices.Contains(e.names, syncCommitName):
		t.mark.open = otherValue // of set_config: it may be computed
	}
}

// lastWord is the value of SET name = value.
func lastWord(text string) string {
	words := strings.FieldsFunc(text, func(r rune) bool {
		return strings.ContainsRune(" \t\r\n='\";", r)
	})
	if len(words) == 0 {
		return otherValue
	}
	return strings.ToLower(words[len(words)-1])
}

// markEnded takes the end of a transaction, before what it set is forgotten.
func (t *tracker) markEnded() { t.mark = commitMark{ended: t.mark.open} }

// syncCommit is what the next commit of the session asks for; empty if nobody knows.
func (t *tracker) syncCommit(login string) string {
	for _, v := range []string{t.mark.open, t.mark.ended} {
		if v != "" {
			return v
		}
	}
	if t.told != nil {
		for _, s := range t.told.settings {
			if s.name == syncCommitName {
				return s.value
			}
		}
	}
	return login
}

// unprotected is the value of synchronous_commit with which the session's commits do not wait for
// standbys where the group's do; empty if they wait. The caller holds s.mu.
func (s *session) unprotected() string {
	b := s.backend
	if b == nil || b.primary.SyncQuorum == 0 {
		return ""
	}
	v := s.track.syncCommit(b.syncCommit)
	if v == "" || slices.Contains(protectedValues, v) {
		return ""
	}
	return v
}

// countUnprotected counts a commit whose client is told of it; the caller holds s.mu.
func (s *session) countUnprotected() {
	if s.unprotected() != "" {
		s.proxy.metrics.unprotected.Inc()
	}
}
