package proxy

import "testing"

// The end of a session without locks wakes nobody who waits for those with locks.
func TestLockBookWakesForHoldersOnly(t *testing.T) {
	book := newLockBook()
	holder, other := &session{}, &session{}
	book.put(holder, 1)
	_, changed := book.behind(2)
	book.drop(other)
	select {
	case <-changed:
		t.Error("woken by a session that holds none")
	default:
	}
	book.drop(holder)
	select {
	case <-changed:
	default:
		t.Error("not woken by one that held some")
	}
}
