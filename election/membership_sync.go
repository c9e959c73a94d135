package election

import (
	"fmt"
	"slices"
)

// policy is the part of the controller's policy that concerns the membership.
func (n *Node) policy() Policy {
	p := DefaultPolicy(n.timing)
	p.SyncMode, p.SyncWait = n.cfg.SyncMode, n.cfg.SyncWait
	return p
}

// syncNeedsMember tells why a data member cannot be removed yet: commits may have been acknowledged
// because it has them, and the fence would no longer ask for it (DESIGN.md I67).
func syncNeedsMember(s *State, p Policy, name string) string {
	if s.Lock == nil {
		return ""
	}
	for _, r := range SyncRules(s, p) {
		if slices.Contains(r.Names, name) {
			return fmt.Sprintf("commits on %s may wait for %s alone (%s)", s.Lock.Holder, name, r)
		}
	}
	return ""
}
