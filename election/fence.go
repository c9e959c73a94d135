package election

import (
	"fmt"
	"slices"
	"strings"
)

// What a failover waits for before somebody is promoted (docs/synchronous.md, "The fence").
const (
	// FenceLease waits for the old primary's standbys and for every promise of the old epoch.
	FenceLease = "lease"
	// FenceRecruit waits for the standbys alone, where commits wait for standbys.
	FenceRecruit = "recruit"
)

// Fences are the values of Config.Fence.
func Fences() []string { return []string{FenceLease, FenceRecruit} }

// validateFence says everything that is wrong with the fence's configuration.
func (c Config) validateFence() []error {
	if !slices.Contains(Fences(), c.Fence) {
		return []error{fmt.Errorf("group.fence: %q is not one of %s", c.Fence,
			strings.Join(Fences(), ", "))}
	}
	members := DataMembers(c.Nodes)
	if c.Fence != FenceRecruit || len(members) == 0 {
		return nil
	}
	full := FullRule(Policy{SyncMode: c.SyncMode, SyncWait: c.SyncWait}, members, members[0].Name)
	if !full.MayLose {
		return nil
	}
	return []error{fmt.Errorf("group.fence: recruit needs commits that wait for a standby, and"+
		" with synchronous.mode %s and %d members they wait for nobody: choose lease, or the"+
		" mode strict (from two members on), on (from two) or quorum (from three)", c.SyncMode,
		len(members))}
}

// fenceHolds tells that the recruits alone keep the holder of the lock that the intent replaces
// from acknowledging anything, by the rules in the replicated state: enough standbys of each rule
// are pledged. Without a record for that lock nobody but the coordinator knows the rules, and one
// that waits for nobody cannot be fenced.
func fenceHolds(s *State, recruits []string) bool {
	it, rec := s.Intent, s.Sync
	if it == nil || it.Kind != IntentFailover || it.AcceptLoss || s.Lock == nil ||
		rec == nil || rec.Epoch != s.Lock.Epoch || it.FromEpoch != s.Lock.Epoch {
		return false
	}
	for _, r := range rec.Rules {
		have := 0
		for _, name := range r.Names {
			if slices.Contains(recruits, name) {
				have++
			}
		}
		if r.Wait == 0 || have < RecruitsNeeded(len(r.Names), r.Wait) {
			return false
		}
	}
	return len(rec.Rules) > 0
}

// waived is the epoch whose promises need not be waited for under the fence of these recruits; 0
// if there is none. Only those of the lock that is replaced are, since its holder is what the
// recruits have left (DESIGN.md I70).
func (v *voter) waived(s *State, recruits []string) uint64 {
	if v.fence != FenceRecruit || !fenceHolds(s, recruits) {
		return 0
	}
	return s.Lock.Epoch
}

// fencedNames are the recruits that the claim of a fence names.
func (sel Selection) fencedNames() []string {
	var names []string
	for _, r := range sel.Recruits {
		if recruitIncomparable(sel, r) == "" {
			names = append(names, r.Member.Name)
		}
	}
	return names
}
