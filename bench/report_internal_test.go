package main

import (
	"bytes"
	"io"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestDistribution(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   Distribution
	}{
		{nil, Distribution{}},
		{[]float64{7}, Distribution{7, 7, 7, 7, 7}},
		{[]float64{3, 1, 2}, Distribution{1, 2, 3, 3, 3}},
		{[]float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, Distribution{1, 5, 9, 10, 10}},
	} {
		if got := distribution(tt.values); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.values, got, tt.want)
		}
	}
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	if got := distribution(hundred); got != (Distribution{1, 50, 90, 99, 100}) {
		t.Errorf("1..100: %+v", got)
	}
}

func TestSummarize(t *testing.T) {
	got := summarize([]FailoverRound{
		{Fault: "node", GapMS: 30, Dropped: 1}, {Fault: "freeze", GapMS: 5},
		{Fault: "node", GapMS: 10}, {Fault: "node", GapMS: 20},
	})
	if len(got) != 2 || got[0].Fault != "node" || got[0].Rounds != 3 || got[0].Gap.Median != 20 ||
		got[0].Dropped != 1 || got[1].Rounds != 1 {
		t.Errorf("%+v", got)
	}
	var out bytes.Buffer
	printTable(&out, FailoverReport{Summary: got})
	if n := strings.Count(out.String(), "\n"); n != 8 {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}

func TestMeasure(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	acks := []ack{{at(0), 1}, {at(10), 9}, {at(400), 2}, {at(410), 3}}
	got := measure(acks, 2, at(500))
	want := round{Gap: 390 * time.Millisecond, Stall: 9, Commits: 4, Dropped: 2}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := measure(acks, 0, at(900)).Gap; got != 490*time.Millisecond {
		t.Errorf("the time since the last commit: %v", got)
	}
}

func TestMarkKeepsTheNewestCommit(t *testing.T) {
	l := &load{}
	l.mark()
	l.acked(ack{at: time.Now().Add(-time.Minute), took: 1})
	l.acked(ack{at: time.Now().Add(-time.Second), took: 1})
	l.lost()
	l.mark()
	if got := l.round(); got.Commits != 1 || got.Dropped != 0 || got.Gap < time.Second ||
		got.Gap > 30*time.Second {
		t.Errorf("%+v", got)
	}
}

func TestAway(t *testing.T) {
	nodes := []demoNode{{"a", "pa"}, {"b", "pb"}, {"c", "pc"}}
	if got := away(nodes, "b"); !reflect.DeepEqual(got, []string{"pa", "pc"}) {
		t.Errorf("%v", got)
	}
}

func TestSpans(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	lock := at(300)
	ch := demoChange{FaultAt: begin, LockAt: &lock, PhasesMS: map[string]int64{
		"detect": 120, "intent": 1, "endorse": 40, "recruit": 30, "promote": 38, "repoint": 12,
		"total": 220,
	}}
	want := map[string]float64{"detect": 200, "fence": 50, "promote": 50, "reopen": 25}
	l := &load{acks: []ack{{at(50), 1}, {at(325), 1}, {at(400), 1}, {at(900), 1}}}
	if got := spans(ch, l.firstAfter); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := spans(demoChange{}, l.firstAfter); got != nil {
		t.Errorf("nothing was changed: %v", got)
	}
}

func TestThroughput(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	got := histogram([]ack{{at(-1), 1}, {at(0), 1}, {at(49), 1}, {at(100), 1}, {at(160), 1}},
		begin, at(170))
	if want := []int{2, 0, 1}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	mean := meanThroughput([][]int{{1, 2, 3}, {3, 0}})
	if want := []float64{40, 20}; !reflect.DeepEqual(mean, want) {
		t.Errorf("%v, want %v", mean, want)
	}
	svg := string(chart(FailoverReport{Profile: "lan", Summary: []KindSummary{
		{Fault: "node", Rounds: 2, Throughput: mean}, {Fault: "pause"},
	}}))
	if !strings.HasSuffix(svg, "</svg>\n") || strings.Count(svg, "node (lan)") != 1 {
		t.Errorf("%s", svg)
	}
}

func TestReportIsAddedTo(t *testing.T) {
	f := Failover{Profile: "lan", JSON: filepath.Join(t.TempDir(), "r.json"), Add: true,
		Out: io.Discard}
	if got, err := f.earlier(); err != nil || got != nil {
		t.Fatalf("%v, %v", got, err)
	}
	want := []FailoverRound{{Fault: "node", GapMS: 1, Throughput: []int{1, 2}}, {Fault: "freeze"}}
	if err := f.report(FailoverReport{Profile: "lan", Rounds: want}); err != nil {
		t.Fatal(err)
	}
	if got, err := f.earlier(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	f.Profile = "wan"
	if _, err := f.earlier(); err == nil {
		t.Error("rounds of another profile were taken")
	}
}
