package election

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// SyncRecord is the sync set in the replicated state (DESIGN 10.6).
type SyncRecord struct {
	// V is the SyncVersion that wrote it.
	V int `json:"v"`
	// Seq counts the changes; it never goes back.
	Seq uint64 `json:"seq"`
	// Epoch is that of the lock for whose holder the rules stand.
	Epoch uint64 `json:"epoch"`
	// Rules are all rules under which a commit may be acknowledged, or may have been on fewer
	// standbys than the last one asks for. The holder's agent brings the server to the last one;
	// the others go once it has proved that they no longer count.
	Rules []SyncRule `json:"rules,omitempty"`
	// Degraded tells that commits wait for fewer standbys than the configuration asks for.
	Degraded *SyncDegraded `json:"degraded,omitempty"`
	// Mode is the group's; nil until a majority has told it.
	Mode *SyncMode `json:"mode,omitempty"`
}

// SyncDegraded says since when and why.
type SyncDegraded struct {
	// Since is the leader's wall clock, for people only; no decision reads it.
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
}

// SetSync changes the sync set. It names the record that its sender saw.
type SetSync struct {
	V        int           `json:"v"`
	Epoch    uint64        `json:"epoch"`
	Seq      uint64        `json:"seq,omitempty"`
	Rules    []SyncRule    `json:"rules"`
	Degraded *SyncDegraded `json:"degraded,omitempty"`
	Mode     *SyncMode     `json:"mode,omitempty"`
}

// MemberSync is what an agent tells of its server's sync set.
type MemberSync struct {
	// Names is synchronous_standby_names, and Under the epoch of the order that made the server a
	// primary with it.
	Names string `json:"names,omitempty"`
	Under uint64 `json:"under,omitempty"`
	// Epoch and Seq name the newest record of which the agent has proved the last rule.
	Epoch uint64 `json:"epoch,omitempty"`
	Seq   uint64 `json:"seq,omitempty"`
}

// SyncVersion is the version of the sync set that a node's report carries. A leader writes the
// first record only when every node can read it.
const SyncVersion = 1

// applySync changes the record by one joint step.
func applySync(s *State, c *SetSync) (*State, Result) {
	if c.V > SyncVersion {
		return s, refuse("a sync set of version %d is newer than %d; upgrade this node", c.V,
			SyncVersion)
	}
	if have := lockEpoch(s); have == 0 || have != c.Epoch {
		return s, refuse("the lock is of epoch %d, not %d", have, c.Epoch)
	}
	seq := syncSeq(s)
	if r := s.Sync; r != nil && r.Epoch == c.Epoch && r.Seq == c.Seq+1 &&
		slices.EqualFunc(r.Rules, c.Rules, SyncRule.equal) {
		return s, Result{V: Version, Epoch: c.Epoch}
	}
	if seq != c.Seq {
		return s, refuse("the sync set is of change %d, not %d", seq, c.Seq)
	}
	// Under an intent the fence counts on the rules that it found (DESIGN.md I40).
	if s.Intent != nil {
		return s, refuse("%s is under way", intentText(*s.Intent))
	}
	var old []SyncRule
	if s.Sync != nil && s.Sync.Epoch == c.Epoch {
		old = s.Sync.Rules
	}
	if why := syncStepWrong(old, c.Rules); why != "" {
		return s, refuse("sync set: %s", why)
	}
	// The others stand already. On its way out a member that was removed may be named still.
	known := otherNames(s.Members, s.Lock.Holder)
	for _, r := range old {
		known = append(known, r.Names...)
	}
	if why := syncRuleWrong(known, c.Rules[len(c.Rules)-1]); why != "" {
		return s, refuse("sync set: %s", why)
	}
	if c.Degraded != nil && len(c.Degraded.Why) > textBytesMax {
		return s, refuse("a text is longer than %d bytes", textBytesMax)
	}
	next := *s
	next.Sync = &SyncRecord{V: SyncVersion, Seq: seq + 1, Epoch: c.Epoch, Rules: slices.Clone(c.Rules),
		Degraded: c.Degraded, Mode: cmp.Or(c.Mode, syncModeOf(s))}
	return &next, Result{V: Version, Epoch: c.Epoch}
}

// syncAfterCommit is the record under a new lock: that of a new holder begins with rule, on which
// it was promoted; a holder that is restarted keeps all rules, since what it acknowledged under
// them is where they say.
func syncAfterCommit(s *State, l Lock, rule *SyncRule) *SyncRecord {
	if s.Sync == nil && rule == nil {
		return nil
	}
	next := &SyncRecord{V: SyncVersion, Seq: syncSeq(s) + 1, Epoch: l.Epoch, Mode: syncModeOf(s)}
	switch {
	case s.Lock != nil && s.Lock.Holder == l.Holder:
		if s.Sync == nil || s.Sync.Epoch != s.Lock.Epoch {
			next.Epoch = 0 // there was none for the old lock
			break
		}
		next.Rules, next.Degraded = s.Sync.Rules, s.Sync.Degraded
	case rule != nil:
		next.Rules = []SyncRule{*rule}
	default:
		next.Epoch = 0 // an older release committed: the rules follow from the configuration
	}
	return next
}

func syncSeq(s *State) uint64 {
	if s.Sync == nil {
		return 0
	}
	return s.Sync.Seq
}

// syncRuleWrong tells why a rule cannot be one for these standbys.
func syncRuleWrong(standbys []string, r SyncRule) string {
	if r.Wait < 0 || r.Wait > len(r.Names) || r.Wait == 0 && len(r.Names) > 0 ||
		r.MayLose && r.Wait > 0 {
		return fmt.Sprintf("wait for %d of %d standbys", r.Wait, len(r.Names))
	}
	for i, name := range r.Names {
		if !slices.Contains(standbys, name) || slices.Contains(r.Names[:i], name) {
			return fmt.Sprintf("%q is no standby, or there twice", name)
		}
	}
	return ""
}

// syncStepWrong tells why the rules may not go from old to next in one step: the first of a lock
// are those of unrecorded, one is added (or comes last again), or the last is left alone.
func syncStepWrong(old, next []SyncRule) string {
	if len(next) == 0 {
		return "no rule"
	}
	last := next[len(next)-1]
	if len(old) == 0 && slices.EqualFunc(next, unrecorded(last), SyncRule.equal) {
		return ""
	}
	if len(old) == 0 || len(next) == 1 {
		if len(old) > 0 && len(next) == 1 && last.equal(old[len(old)-1]) {
			return ""
		}
		return "only the rule that was entered last may be left alone"
	}
	if !slices.EqualFunc(next, enterRule(old, last), SyncRule.equal) {
		return "the rules that were there must stay until the new one is proved"
	}
	if !mayEnter(old, last) {
		return fmt.Sprintf("%s cannot follow %s in one step", last, old[len(old)-1])
	}
	return ""
}

// enterRule puts a rule at the end.
func enterRule(old []SyncRule, rule SyncRule) []SyncRule {
	next := slices.DeleteFunc(slices.Clone(old), rule.equal)
	return append(next, rule)
}

// mayEnter tells that the server may go to a rule while it is between those of old. Walsenders
// change one after the other, so for a while it acknowledges by a mixture. If nobody is waited
// for, or there is no third rule, each mixture must satisfy one of the rules (DESIGN.md I41).
func mayEnter(old []SyncRule, rule SyncRule) bool {
	return rule.Wait == 0 || slices.ContainsFunc(old, rule.equal) ||
		len(old) == 1 && rule.equal(stepToward(old[0], rule))
}

// stepToward is the next rule on the way from one to another: first a smaller Wait, then more
// names, then fewer names, then a greater Wait. A mixture of two neighbours waits for Wait of
// the greater set at least, or for the smaller Wait of the same set: for what one of them asks.
func stepToward(cur, want SyncRule) SyncRule {
	if cur.Wait == 0 || want.Wait == 0 {
		return want
	}
	if want.Wait < cur.Wait {
		return SyncRule{Wait: want.Wait, Names: cur.Names}
	}
	union := append(slices.Clone(cur.Names), want.Names...)
	slices.Sort(union)
	union = slices.Compact(union)
	if len(union) > len(cur.Names) {
		return SyncRule{Wait: cur.Wait, Names: union}
	}
	if len(union) > len(want.Names) {
		return SyncRule{Wait: cur.Wait, Names: want.Names}
	}
	return want
}

// syncNeeds is what the holder's agent must do to prove the last of some rules.
type syncNeeds struct {
	// stall: commits may still be acknowledged by a rule that waits for fewer, and no view of
	// the server tells whether its processes know the new one; so all are stopped for a moment
	// by a setting that they can be seen to know.
	stall bool
	// probe: commits were not waited for at all; that they are now must be seen.
	probe bool
	// barrier: what was acknowledged under an older rule must be on Wait standbys of this one.
	barrier bool
}

// needsOf tells what the proof of the last rule needs (DESIGN.md I42).
func needsOf(rules []SyncRule) syncNeeds {
	last := rules[len(rules)-1]
	var n syncNeeds
	for _, r := range rules[:len(rules)-1] {
		if last.Wait == 0 {
			continue
		}
		n.barrier = true
		n.stall = n.stall || r.Wait < last.Wait
		n.probe = n.probe || r.Wait == 0
	}
	return n
}
