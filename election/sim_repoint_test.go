package election_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/election"
)

// bugSimNoFollow is a mistake that the simulation must find.
const bugSimNoFollow simBug = "a change re-points nobody"

// noteFollow remembers that a member was ordered to follow another one under an epoch. Whether the
// order gets there is the network's matter.
func (w *simWorld) noteFollow(member string, o election.Order) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.Kind != election.OrderFollow || w.bug == bugSimNoFollow {
		return
	}
	if w.followed[o.Epoch] == nil {
		w.followed[o.Epoch] = map[string]string{}
	}
	w.followed[o.Epoch][member] = o.Upstream.Name
}

// checkRepointLocked holds that every other standby was ordered to follow the new holder before the
// lock was entered, which opens it for commits that wait for standbys (DESIGN 10.11b).
func (w *simWorld) checkRepointLocked(before *election.State, l *election.Lock) {
	if before.Lock == nil {
		return // the first primary: nobody has data to follow with
	}
	for _, m := range election.DataMembers(before.Members) {
		if m.Name == l.Holder || m.Name == before.Lock.Holder {
			continue
		}
		if w.followed[l.Epoch][m.Name] != l.Holder {
			w.violate("the lock of %s under epoch %d is entered before %s is ordered to follow",
				l.Holder, l.Epoch, m.Name)
		}
	}
}

// TestPromotionOnALaterTimeline: a standby that followed a promotion which was never entered in a
// lock is promoted itself. Ids that the old primary gave out were given out again there, so that
// its boundary is certain of none (DESIGN 10.12); that of an ordinary promotion is.
func TestPromotionOnALaterTimeline(t *testing.T) {
	for _, unentered := range []uint32{0, 1, 2} {
		simGroup(t, func(r *simRun) {
			old := r.newest().Lock
			r.w.mu.Lock()
			var to *simNode
			for _, name := range r.w.names {
				if name != old.Holder {
					to = r.w.nodes[name]
				}
			}
			holder := r.w.nodes[old.Holder]
			holder.killLocked()
			to.pg.wal = slices.Clone(holder.pg.wal)
			for range unentered {
				to.pg.wal = append(to.pg.wal, r.w.entryLocked(to.pg.timeline()+1))
			}
			leader := r.w.nodes[r.w.leader]
			res, err := leader.applyLocked(election.Command{
				Kind: election.CommandBegin, Begin: &election.BeginIntent{
					Request: "r", Kind: election.IntentFailover, From: old.Holder,
					FromEpoch: old.Epoch, Cause: "decided before",
				},
			})
			if err == nil {
				_, err = leader.applyLocked(election.Command{
					Kind:   election.CommandTarget,
					Target: &election.SetTarget{Epoch: res.Epoch, To: to.name},
				})
			}
			r.w.mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if !r.waitSettled(20*time.Second, r.ackedNow()) {
				t.Error("not settled after the promotion")
			}
			l := r.newest().Lock
			if l.Holder != to.name || l.Timeline != old.Timeline+unentered+1 || l.XidHi == 0 ||
				(l.XidLo == 0) != (unentered > 0) {
				t.Errorf("after %d promotions that were never entered, the lock of timeline %d "+
					"became %+v", unentered, old.Timeline, l)
			}
		})
	}
}

// TestStandbysAreRepointedFirst: with nothing in the way every other standby streams from the new
// primary by the time the lock is entered, after a failover and after a switchover.
func TestStandbysAreRepointedFirst(t *testing.T) {
	simGroup(t, func(r *simRun) {
		for _, isPlanned := range []bool{false, true} {
			old := r.newest().Lock
			var upstreams []string
			r.w.mu.Lock()
			r.w.entered = func(l *election.Lock) {
				for _, name := range r.w.servers {
					if name != l.Holder && name != old.Holder {
						upstreams = append(upstreams, name+" of "+r.w.nodes[name].pg.upstream)
					}
				}
			}
			r.w.mu.Unlock()
			if isPlanned {
				if err := r.request(""); err != nil {
					t.Error(err)
				}
			} else {
				r.kill(old.Holder)
			}
			if !r.waitSettled(20*time.Second, r.ackedNow()) {
				t.Error("not settled")
			}
			r.w.mu.Lock()
			r.w.entered = nil
			r.w.mu.Unlock()
			l := r.newest().Lock
			if len(upstreams) != 1 || !strings.HasSuffix(upstreams[0], " of "+l.Holder) {
				t.Errorf("planned: %t: when the lock of %s was entered, streaming was %v", isPlanned,
					l.Holder, upstreams)
			}
		}
	})
}
