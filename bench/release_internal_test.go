package main

import (
	"testing"
	"time"
)

// TestAnswersAround: what counts is the first answer behind the lock, and the pause is that of all
// sessions together.
func TestAnswersAround(t *testing.T) {
	lock := time.Unix(1000, 0)
	at := func(ms int) time.Time { return lock.Add(time.Duration(ms) * time.Millisecond) }
	session := func(spans ...[2]time.Time) *releaseSession { return &releaseSession{spans: spans} }
	got := answersAround([]*releaseSession{
		session([2]time.Time{at(-900), at(-800)}, [2]time.Time{at(-100), at(300)},
			[2]time.Time{at(400), at(900)}),
		session([2]time.Time{at(-500), at(-200)}, [2]time.Time{at(50), at(150)}),
		session([2]time.Time{at(-300), at(-50)}), // it has not asked since
		{asked: at(-10)},                         // it waits still
	}, lock)
	if got.PauseMS != 200 || got.Waiting != 1 || got.Asked.Max != 300 ||
		got.Answered.Min != 150 || got.Answered.Max != 300 {
		t.Errorf("%+v", got)
	}
	none := answersAround([]*releaseSession{session([2]time.Time{at(-9), at(-8)})}, lock)
	if none.PauseMS != 0 || none.Waiting != 0 {
		t.Errorf("nobody was answered: %+v", none)
	}
}
