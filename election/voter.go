package election

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// voter is this node's part in leases: it promises, and endorses once its promises allow it. It
// is independent of who leads Raft, and of whether anybody does. No lock is held while the disk
// is written to, so that promises go on while it hangs.
type voter struct {
	name   string // of its node; empty takes part whatever the voter set
	source StateSource
	now    func() int64
	timing Timing
	save   func(endorsement) error

	saving chan struct{} // holds one token while the file is written
	disk   endorsement   // what the file has; guarded by the token

	mu       sync.Mutex
	promises *Promises
	// blank is a voter without a memory: it is new, or has lost its disk and may have endorsed
	// anything. It neither promises nor endorses until admit (DESIGN.md I8).
	blank bool
	// changed is closed at the next release, admission or set that was taken.
	changed chan struct{}
	// drain is how long a planned change lets units of work finish; fence is Config.Fence.
	drain time.Duration
	fence string
	// closing is the epoch of the newest intent that this voter was asked to endorse; from
	// closeAt on it promises nothing below.
	closing uint64
	closeAt int64
	// admitted is the request of the change that added this voter, once it knows what the others
	// know; taken is the version of the voter set that is on disk.
	admitted string
	taken    uint64
}

// newVoter reads what the disk remembers.
func newVoter(path string, t Timing, source StateSource, now func() int64) (*voter, error) {
	file := endorsementFile{path: path}
	e, blank, err := file.load()
	if err != nil {
		return nil, err
	}
	return makeVoter(e, blank, file.save, t, source, now), nil
}

// makeVoter starts a voter with what its disk remembers.
func makeVoter(e endorsement, blank bool, save func(endorsement) error, t Timing,
	source StateSource, now func() int64,
) *voter {
	v := &voter{
		source: source, now: now, timing: t, save: save, saving: make(chan struct{}, 1),
		disk: e, promises: NewPromises(t, now(), e.Endorsed, false), blank: blank,
		changed: make(chan struct{}), taken: e.Set,
	}
	v.promises.Forbid(e.Floor)
	v.promises.Take(now(), e.Set)
	return v
}

// memory is the highest epoch that this voter has endorsed or may not fall behind any more, and
// whether it may have forgotten one.
func (v *voter) memory() (epoch uint64, blank bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return max(v.promises.Endorsed(), v.promises.floor), v.blank
}

// admit gives a blank voter what the others remember: the highest epoch that was begun. Whatever
// this voter endorsed before it lost its memory, it was not above that, so it promises nothing
// below. If no epoch was ever begun nobody was promised anything, so that the silence after a
// start has no purpose (DESIGN.md I3). set is the newest version of the voter set that the others
// have taken, which this voter may have taken too and forgotten. One that joins (request is that of
// its change, else empty) keeps silent for T_P from now, whatever it did before (DESIGN.md I64).
func (v *voter) admit(ctx context.Context, floor, set uint64, request string) error {
	s, _ := v.source.State()
	e := endorsement{Floor: floor, Set: set, Recovered: s.Recovered}
	if err := v.persist(ctx, e); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.blank && request == "" {
		return nil
	}
	now := v.now()
	switch {
	case request != "":
		old := v.promises
		v.promises = NewPromises(v.timing, now, old.Endorsed(), false)
		v.promises.Forbid(old.floor)
		v.promises.Take(now, old.Set())
	case floor == 0:
		v.promises = NewPromises(v.timing, now, 0, true)
	}
	v.blank, v.admitted = false, request
	v.promises.Forbid(floor)
	v.promises.Take(now, set)
	v.taken = max(v.taken, set)
	v.wakeLocked()
	return nil
}

// mayAdmit tells whether the answers of the other voters suffice for a blank one, and the highest
// epoch that they know of. As long as no majority has lost its disk, a majority that endorsed an
// epoch has a member among these answers.
func mayAdmit(voters int, answers map[string]helloAnswer) (epoch uint64, ok bool) {
	remember := 0
	for _, a := range answers {
		epoch = max(epoch, a.Epoch)
		if !a.Blank {
			remember++
		}
	}
	majority := voters/2 + 1
	return epoch, len(answers) == voters-1 || remember > voters-majority
}

// renew answers a renewal.
func (v *voter) renew(r Renewal) RenewalAnswer {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.blank {
		return RenewalAnswer{V: Version, Seq: r.Seq, Reason: "voter has no memory yet"}
	}
	if s, _ := v.source.State(); !v.votes(s) {
		return RenewalAnswer{V: Version, Seq: r.Seq, Endorsed: v.promises.Endorsed(),
			Reason: "not in the voter set"}
	}
	if now := v.now(); r.Epoch < v.closing && now >= v.closeAt {
		return RenewalAnswer{V: Version, Seq: r.Seq, Endorsed: v.promises.Endorsed(),
			Reason: "its end was decided"}
	}
	return v.promises.Renew(v.now(), r)
}

// closeBelow lets promises of epochs below that of the intent run out: a lessee that does not see
// the intent, since it is cut off from the log, would renew for ever. Those that drain are given
// the time for it.
func (v *voter) closeBelow(it *Intent) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if it == nil || it.Epoch <= v.closing {
		return
	}
	v.closing, v.closeAt = it.Epoch, v.now()
	if it.drains() {
		v.closeAt += int64(it.drainTime(v.drain) + v.timing.Interval)
	}
}

// release answers a release and wakes an endorsement that waits for it.
func (v *voter) release(r Renewal) RenewalAnswer {
	v.mu.Lock()
	defer v.mu.Unlock()
	a := v.promises.Release(v.now(), r)
	v.wakeLocked()
	return a
}

// endorsePoll is how often an endorsement that waits looks again.
const endorsePoll = 50 * time.Millisecond

// endorse waits until no promise stands in the way and endorses the epoch, durably. It is
// refused if the intent is not the one in this voter's FSM (DESIGN.md I2): one that was overtaken
// can no longer be endorsed. recruits are whom the coordinator claims to have recruited (I70).
func (v *voter) endorse(ctx context.Context, epoch uint64, recruits ...string) error {
	for {
		wait, released, err := v.tryEndorse(epoch, recruits...)
		if err != nil {
			return err
		}
		if s, _ := v.source.State(); intentEpoch(s) == epoch {
			v.closeBelow(s.Intent)
		}
		if wait == 0 {
			return v.persist(ctx, endorsement{Endorsed: epoch})
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

// tryEndorse endorses in memory if it may now, which ends all promises of older epochs; else it
// tells how long to wait at most. The endorsement counts once it is durable.
func (v *voter) tryEndorse(epoch uint64, recruits ...string) (time.Duration, <-chan struct{},
	error,
) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.promises.Endorsed() > epoch {
		return 0, nil, fmt.Errorf("endorse epoch %d: epoch %d is endorsed already", epoch,
			v.promises.Endorsed())
	}
	if v.promises.floor > epoch {
		// One that was endorsed before this voter lost its disk, for all it knows.
		return 0, nil, fmt.Errorf("endorse epoch %d: epoch %d was begun already", epoch,
			v.promises.floor)
	}
	s, _ := v.source.State()
	if have := intentEpoch(s); have != epoch {
		if have > epoch || lockEpoch(s) >= epoch {
			return 0, nil, fmt.Errorf("endorse epoch %d: its intent is no longer current", epoch)
		}
		return endorsePoll, v.changed, nil // this voter's log is behind
	}
	if !v.votes(s) {
		return 0, nil, fmt.Errorf("endorse epoch %d: this node is not in the voter set", epoch)
	}
	if v.blank || !isSettled(s) {
		return endorsePoll, v.changed, nil
	}
	if wait := v.promises.mayEndorse(v.now(), epoch, v.waived(s, recruits)); wait > 0 {
		return wait, v.changed, nil
	}
	v.promises.Endorse(epoch)
	return 0, nil, nil
}

// persist returns once what is given is durable. If ctx ends first the write goes on, and the
// next one waits for it.
func (v *voter) persist(ctx context.Context, e endorsement) error {
	select {
	case v.saving <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("write endorsement: %w", ctx.Err())
	}
	done := make(chan error, 1)
	go v.runSave(e, done)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("write endorsement: %w", ctx.Err())
	}
}

// runSave writes with the token that persist took, and gives it back; close waits for it.
func (v *voter) runSave(e endorsement, done chan<- error) {
	e.V = Version
	e.Endorsed = max(e.Endorsed, v.disk.Endorsed)
	e.Floor = max(e.Floor, v.disk.Floor)
	e.Set = max(e.Set, v.disk.Set)
	e.Recovered = max(e.Recovered, v.disk.Recovered)
	var err error
	if e != v.disk {
		if err = v.save(e); err == nil {
			v.disk = e
		}
	}
	<-v.saving
	done <- err
}

// close waits for a write that is under way.
func (v *voter) close() error {
	v.saving <- struct{}{}
	return nil
}
