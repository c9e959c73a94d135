package main

import (
	"bytes"
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
	if n := strings.Count(out.String(), "\n"); n != 6 {
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
	l.failed(nil, true)
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
