package election_test

import (
	"slices"

	"holdfast/election"
)

// simFence is the fence of a schedule; never recruit where proxies ignore their leases anyway, or
// where a mistake is to be found that the fence of recruits makes up for.
func simFence(seed uint64, bug simBug) string {
	if bug != bugNone && bug != bugWaives {
		return election.FenceLease
	}
	return []string{election.FenceLease, election.FenceRecruit, election.FenceLease}[seed%3]
}

// noteWaivedLocked notes the epoch whose promises the voter may waive for these recruits.
func (n *simNode) noteWaivedLocked(recruits []string) {
	if n.w.fence == election.FenceRecruit && election.FenceHolds(n.view, recruits) {
		n.w.waived[n.view.Lock.Epoch] = true
	}
}

// checkLateLocked looks at a commit that is acknowledged while a later epoch may do so: under a
// lease there is none, under the fence of recruits the later primary has it.
func (w *simWorld) checkLateLocked(c simCommit) {
	if c.epoch >= w.ackedEpoch || w.isFenceless {
		return
	}
	if !w.waived[c.epoch] {
		w.violate("epoch %d acknowledges after %d", c.epoch, w.ackedEpoch)
	} else if !slices.Contains(w.nodes[w.state.Lock.Holder].pg.wal, c.entry) {
		w.violate("epoch %d acknowledges a commit that epoch %d does not have", c.epoch,
			w.state.Lock.Epoch)
	}
}
