package proxy

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"holdfast/pgwire"
)

// TestBlindnessCounts: what is a failure to reach the primary, and for how long it counts.
func TestBlindnessCounts(t *testing.T) {
	const fresh = 10 * time.Second
	sec := int64(time.Second)
	full := &pgwire.Error{Severity: "FATAL", Code: pgwire.CodeTooManyConnections}
	type try struct {
		epoch uint64
		err   error
		at    int64
	}
	for name, c := range map[string]struct {
		tries []try
		now   int64
		want  time.Duration
	}{
		"nobody tried":        {nil, 5, 0},
		"since the first":     {[]try{{1, io.EOF, 1}, {1, io.EOF, 4}}, 6, 5 * time.Second},
		"until a success":     {[]try{{1, io.EOF, 1}, {1, nil, 4}}, 6, 0},
		"from then on":        {[]try{{1, io.EOF, 1}, {1, nil, 4}, {1, io.EOF, 5}}, 6, time.Second},
		"an answer reaches":   {[]try{{1, io.EOF, 1}, {1, fmt.Errorf("log in: %w", full), 4}}, 6, 0},
		"the client went":     {[]try{{1, context.Canceled, 1}}, 6, 0},
		"a time-out counts":   {[]try{{1, context.DeadlineExceeded, 1}}, 6, 5 * time.Second},
		"a new epoch":         {[]try{{1, io.EOF, 1}, {2, io.EOF, 5}}, 6, time.Second},
		"late of an old one":  {[]try{{2, io.EOF, 1}, {1, nil, 5}}, 6, 5 * time.Second},
		"nobody tries longer": {[]try{{1, io.EOF, 1}}, 12, 0},
	} {
		var b blindness
		newest := uint64(0)
		for _, x := range c.tries {
			newest = max(newest, x.epoch)
			b.note(x.epoch, x.err, x.at*sec)
		}
		epoch, got := b.lasts(c.now*sec, fresh)
		if got != c.want || got > 0 && epoch != newest {
			t.Errorf("%s: %s under epoch %d, want %s under %d", name, got, epoch, c.want, newest)
		}
	}
}
