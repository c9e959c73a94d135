package election

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// voter is this node's part in leases: it promises, and endorses once its promises allow it. It
// is independent of who leads Raft, and of whether anybody does.
type voter struct {
	file   endorsementFile
	source StateSource
	now    func() int64

	mu       sync.Mutex
	promises *Promises
	changed  chan struct{} // closed at the next release
}

// newVoter reads what the disk remembers.
func newVoter(path string, t Timing, source StateSource, now func() int64) (*voter, error) {
	v := &voter{
		file: endorsementFile{path: path}, source: source, now: now,
		changed: make(chan struct{}),
	}
	epoch, first, err := v.file.load()
	if err != nil {
		return nil, err
	}
	if first {
		// From here on a restart is known as one, and keeps silent.
		if err := v.file.save(0); err != nil {
			return nil, err
		}
	}
	v.promises = NewPromises(t, now(), epoch, first)
	return v, nil
}

// renew answers a renewal.
func (v *voter) renew(r Renewal) RenewalAnswer {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.promises.Renew(v.now(), r)
}

// release answers a release and wakes an endorsement that waits for it.
func (v *voter) release(r Renewal) RenewalAnswer {
	v.mu.Lock()
	defer v.mu.Unlock()
	a := v.promises.Release(v.now(), r)
	close(v.changed)
	v.changed = make(chan struct{})
	return a
}

// endorsePoll is how often an endorsement that waits looks again.
const endorsePoll = 50 * time.Millisecond

// endorse waits until no promise stands in the way and endorses the epoch, durably. It is
// refused if the intent is not the one in this voter's FSM (DESIGN.md I2): one that was overtaken
// can no longer be endorsed.
func (v *voter) endorse(ctx context.Context, epoch uint64) error {
	for {
		wait, released, err := v.tryEndorse(epoch)
		if err != nil || wait == 0 {
			return err
		}
		_, newer := v.source.State()
		t := time.NewTimer(min(wait, endorsePoll))
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("endorse epoch %d: %w", epoch, ctx.Err())
		case <-released:
		case <-newer:
		case <-t.C:
		}
		t.Stop()
	}
}

// tryEndorse endorses if it may now; else it tells how long to wait at most.
func (v *voter) tryEndorse(epoch uint64) (time.Duration, <-chan struct{}, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.promises.Endorsed() > epoch {
		return 0, nil, fmt.Errorf("endorse epoch %d: epoch %d is endorsed already", epoch,
			v.promises.Endorsed())
	}
	s, _ := v.source.State()
	if have := intentEpoch(s); have != epoch {
		if have > epoch || lockEpoch(s) >= epoch {
			return 0, nil, fmt.Errorf("endorse epoch %d: its intent is no longer current", epoch)
		}
		return endorsePoll, v.changed, nil // this voter's log is behind
	}
	if wait := v.promises.MayEndorse(v.now(), epoch); wait > 0 {
		return wait, v.changed, nil
	}
	if v.promises.Endorsed() < epoch {
		if err := v.file.save(epoch); err != nil {
			return 0, nil, err
		}
		v.promises.Endorse(epoch)
	}
	return 0, nil, nil
}
