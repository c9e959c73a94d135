package election

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// votes tells whether this voter is in the set that its own log has. One that has not applied its
// own admission yet is not (DESIGN.md I64).
func (v *voter) votes(s *State) bool {
	return v.name == "" || len(s.Members) == 0 && s.Voters == nil ||
		slices.Contains(voterNames(s), v.name)
}

// isReady tells whether the voter would answer if it were in the set: it knows what the others
// know, and has kept silent for T_P.
func (v *voter) isReady(s *State) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, isMember := memberOf(s.Members, v.name)
	return isMember && !v.blank && v.now() >= v.promises.silent &&
		(!isJoining(s, v.name) || v.admitted == s.MemberChange.Request)
}

// needsAdmission tells whether the voter must ask the others for what it may not know, and for
// which change it joins.
func (v *voter) needsAdmission(s *State) (request string, needs bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if isJoining(s, v.name) {
		request = s.MemberChange.Request
	}
	return request, v.blank || request != "" && v.admitted != request
}

// runSets takes each new voter set until ctx ends.
func (v *voter) runSets(ctx context.Context) {
	for ctx.Err() == nil {
		_, newer := v.source.State()
		v.mu.Lock()
		admitted := v.changed
		v.mu.Unlock()
		if v.takeSet(ctx) != nil {
			pauseFor(ctx, endorsePoll)
			continue
		}
		select {
		case <-ctx.Done():
		case <-newer:
		case <-admitted:
		}
	}
}

// takeSet takes the voter set that this node's log has, first in memory and then on disk. A blank
// voter writes nothing: with a file it would pass for one with a memory (admitFor).
func (v *voter) takeSet(ctx context.Context) error {
	s, _ := v.source.State()
	set := setVersion(s)
	v.mu.Lock()
	v.promises.Take(v.now(), set)
	isNew := set > v.taken && !v.blank
	v.mu.Unlock()
	if !isNew {
		return nil
	}
	if err := v.persist(ctx, endorsement{Set: set, Recovered: s.Recovered}); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.taken = max(v.taken, set)
	v.wakeLocked()
	return nil
}

// wakeLocked wakes whoever waits for this voter.
func (v *voter) wakeLocked() {
	close(v.changed)
	v.changed = make(chan struct{})
}

// awaitSet returns once the version is on disk and what was promised under older ones has ended.
func (v *voter) awaitSet(ctx context.Context, set uint64) error {
	for {
		wait, changed := v.setLeft(set)
		if wait == 0 {
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("take voter set %d: %w", set, ctx.Err())
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// setLeft tells after how long to look again whether the version is on disk and what was promised
// under older ones has ended; 0 if that is so.
func (v *voter) setLeft(set uint64) (time.Duration, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.taken < set || v.blank {
		return endorsePoll, v.changed
	}
	return v.promises.OldSetsEnd(v.now()), v.changed
}

// admission tells what a voter that joins, or has lost its memory, takes over: the highest epoch
// that was begun and the newest voter set that was taken, as far as its own log and the answers of
// the others know. It is not ok as long as too few answer or this log is behind theirs.
func admission(s *State, self string, answers map[string]helloAnswer) (epoch, set uint64, ok bool) {
	names := voterNames(s)
	voters := len(names)
	if !slices.Contains(names, self) {
		voters++ // it asks for a majority of the others
	}
	others := make(map[string]helloAnswer)
	for name, a := range answers {
		if name == self || !slices.Contains(names, name) {
			continue
		}
		others[name] = a
		set = max(set, a.Set)
		if max(a.SetVersion, a.Set) > setVersion(s) {
			return 0, 0, false
		}
	}
	epoch, ok = mayAdmit(voters, others)
	return max(epoch, s.LastEpoch), set, ok
}

// recovered is how many recoveries of the group this node's disk knows of.
func (v *voter) recovered() uint64 {
	v.saving <- struct{}{}
	defer func() { <-v.saving }()
	return v.disk.Recovered
}

// takenSet is the version of the voter set that is on disk.
func (v *voter) takenSet() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.taken
}
