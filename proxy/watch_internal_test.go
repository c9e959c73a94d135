package proxy

import (
	"testing"
	"time"
)

func TestSilenceIsTheHostsNotTheProcesss(t *testing.T) {
	const bound = 30 * time.Second
	type look struct {
		at   time.Duration
		st   sendState
		over bool
	}
	asking := func(age time.Duration) sendState {
		return sendState{queued: 1, asking: true, ackAge: age}
	}
	for name, looks := range map[string][]look{
		"nothing under way": {{0, sendState{}, false}, {time.Hour, sendState{}, false}},
		"zero window, probes are answered": {
			{0, sendState{queued: 9}, false}, {time.Hour, sendState{queued: 9}, false},
		},
		"a probe is under way at each look": {
			{0, asking(time.Second), false},
			{bound, asking(time.Second), false}, // answered in between
			{2 * bound, asking(bound - time.Second), false},
		},
		"host is gone": {
			{0, asking(time.Hour), false},
			{bound / 2, asking(time.Hour + bound/2), false},
			{bound, asking(time.Hour + bound), true},
		},
		"answers again": {
			{0, asking(time.Second), false}, {bound / 2, sendState{}, false},
			{bound, asking(time.Second), false},
		},
	} {
		start := bootNow()
		var q silence
		for i, l := range looks {
			if got := q.isOver(l.st, start+int64(l.at), bound); got != l.over {
				t.Errorf("%s: look %d: %v", name, i, got)
			}
		}
	}
}
