package main

import (
	"sync"
	"time"
)

// commitTimesMax bounds what a CommitClock remembers: more than an hour at 250 a second.
const commitTimesMax = 1 << 20

// CommitClock remembers when commits were acknowledged, to tell how long there were none. It is
// safe for concurrent use.
type CommitClock struct {
	start time.Time

	mu    sync.Mutex
	times []time.Duration // since start, ascending; a ring once it is full
	next  int             // where the ring goes on
	total int64
}

// NewCommitClock starts an empty clock.
func NewCommitClock() *CommitClock { return &CommitClock{start: time.Now()} }

// Record notes an acknowledged commit.
func (c *CommitClock) Record() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recordLocked(time.Since(c.start))
}

func (c *CommitClock) recordLocked(at time.Duration) {
	c.total++
	if len(c.times) < commitTimesMax {
		c.times = append(c.times, at)
		return
	}
	c.times[c.next] = at
	c.next = (c.next + 1) % len(c.times)
}

// Total is how many commits were recorded.
func (c *CommitClock) Total() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// Gap is the longest time without an acknowledged commit that overlaps from..to. The time before
// the first commit does not count; the time since the last one counts up to to.
func (c *CommitClock) Gap(from, to time.Time) time.Duration {
	longest, _ := c.GapAt(from, to)
	return longest
}

// GapAt is Gap, and when it began.
func (c *CommitClock) GapAt(from, to time.Time) (longest time.Duration, began time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	longest, at := c.gapLocked(from.Sub(c.start), to.Sub(c.start))
	return longest, c.start.Add(at)
}

func (c *CommitClock) gapLocked(from, to time.Duration) (longest, began time.Duration) {
	n := len(c.times)
	if n == 0 {
		return 0, 0
	}
	newest := c.times[(c.next+n-1)%n]
	if newest < to {
		longest, began = to-newest, newest
	}
	for i := n - 1; i > 0; i-- {
		at := c.times[(c.next+i)%n]
		before := c.times[(c.next+i-1)%n]
		if at <= from {
			break
		}
		if before < to && at-before > longest {
			longest, began = at-before, before
		}
	}
	return longest, began
}

// Since returns how many commits were acknowledged in each of the n newest slices of time of the
// given length, the newest last.
func (c *CommitClock) Since(now time.Time, slice time.Duration, n int) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := make([]int, n)
	end := now.Sub(c.start)
	for i := len(c.times) - 1; i >= 0; i-- {
		at := c.times[(c.next+i)%len(c.times)]
		if at > end {
			continue
		}
		k := int((end - at) / slice)
		if k >= n {
			break
		}
		counts[n-1-k]++
	}
	return counts
}
