package proxy

import (
	"testing"
	"time"
)

func TestLossWindow(t *testing.T) {
	const now, ended = int64(100 * time.Second), int64(90 * time.Second)
	row := func(cols ...string) [][][]byte {
		var out [][]byte
		for _, c := range cols {
			out = append(out, []byte(c))
		}
		return [][][]byte{out}
	}
	for name, c := range map[string]struct {
		rows    [][][]byte
		isKnown bool
		window  time.Duration
	}{
		"told":                 {row("0/3", "2026", "13.5"), true, 3500*time.Millisecond + lossSkew},
		"a commit of after":    {row("0/3", "2026", "0.2"), true, lossSkew},
		"a clock that is late": {row("0/3", "2026", "-5"), true, lossSkew},
		"long ago":             {row("0/3", "2026", "100010"), true, 100000*time.Second + lossSkew},
		"no standby of any":    {[][][]byte{{nil, nil, nil}}, false, lossAssumed},
		"no answer":            {nil, false, lossAssumed},
		"nonsense":             {row("", "", "Infinity"), false, lossAssumed},
		"another question":     {row("1"), false, lossAssumed},
	} {
		r := parseReplayed(c.rows, now)
		if got := time.Duration(ended - r.since(ended)); r.isKnown != c.isKnown || got != c.window {
			t.Errorf("%s: %s, known %v; want %s", name, got, r.isKnown, c.window)
		}
	}
	pr := &Primary{Boundaries: []Boundary{{Epoch: 2, MayLose: true}, {Epoch: 3},
		{Epoch: 5, MayLose: true}, {Epoch: 6}}}
	for before, want := range map[uint64]uint64{1: 2, 2: 5, 4: 5, 5: 0, 6: 0} {
		if b, ok := lossOf(before, pr); ok != (want != 0) || b.Epoch != want {
			t.Errorf("behind epoch %d: %+v, want %d", before, b, want)
		}
	}
}
