package election

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// syncSeen is for how long a standby has been streaming from the primary, or has not been.
type syncSeen struct {
	isThere bool
	age     time.Duration
}

// syncPlan is what the next step of the sync set rests on; it holds no time and no I/O.
type syncPlan struct {
	policy  Policy
	members []Member
	holder  string
	// rules are those of the record; isProved tells that the agent has proved the last one.
	rules    []SyncRule
	isProved bool
	// seen has an entry for each standby.
	seen map[string]syncSeen
	// returnAfter is how long a standby must be there before commits may wait for it.
	returnAfter time.Duration
}

func (sp syncPlan) last() SyncRule { return sp.rules[len(sp.rules)-1] }

func (sp syncPlan) isGone(name string) bool {
	s, ok := sp.seen[name]
	return !ok || !s.isThere && s.age >= sp.policy.SyncDegradeAfter
}

// usable are the standbys that commits may wait for: of those they wait for now, all that have
// not been away for long; of the others, those that have been there for a while.
func (sp syncPlan) usable() []string {
	cur := sp.last()
	return slices.DeleteFunc(otherNames(sp.members, sp.holder), func(name string) bool {
		if slices.Contains(cur.Names, name) {
			return sp.isGone(name)
		}
		return !sp.isBack(name)
	})
}

func (sp syncPlan) isBack(name string) bool {
	s := sp.seen[name]
	return s.isThere && s.age >= sp.returnAfter
}

// without is the plan of these members alone.
func (sp syncPlan) without(members []Member) syncPlan {
	sp.members = members
	return sp
}

// isEnough tells that as many of the plan's standbys can be waited for as the configuration asks
// for: only then are commits no longer waited for on a member that is being removed.
func (sp syncPlan) isEnough() bool {
	return len(sp.usable()) >= FullRule(sp.policy, sp.members, sp.holder).Wait
}

// want is the rule that suits the standbys that are there.
func (sp syncPlan) want() SyncRule {
	full := FullRule(sp.policy, sp.members, sp.holder)
	if full.Wait == 0 {
		return full
	}
	cur, usable := sp.last(), sp.usable()
	switch {
	case sp.policy.SyncMode == SyncStrict && len(usable) < full.Wait:
		// Commits wait. Whoever comes back first is waited for, beside those there were.
		names := append(slices.Clone(usable), cur.Names...)
		slices.Sort(names)
		names = slices.Compact(names)
		if len(names) < full.Wait {
			return full
		}
		return SyncRule{Wait: full.Wait, Names: names}
	case len(usable) == 0:
		return SyncRule{}
	case sp.policy.SyncMode == SyncOn:
		return sp.wantNamed(cur, usable)
	}
	return SyncRule{Wait: min(full.Wait, len(usable)), Names: usable}
}

// wantNamed keeps the one standby that commits wait for, or names the best that is there.
func (sp syncPlan) wantNamed(cur SyncRule, usable []string) SyncRule {
	if cur.Wait == 1 && len(cur.Names) == 1 && slices.Contains(usable, cur.Names[0]) {
		return cur
	}
	var able []Member
	for _, m := range DataMembers(sp.members) {
		if slices.Contains(usable, m.Name) && sp.isBack(m.Name) {
			able = append(able, m)
		}
	}
	if len(able) == 0 {
		return cur
	}
	sort.SliceStable(able, func(i, j int) bool {
		if able[i].NoFailover != able[j].NoFailover {
			return able[j].NoFailover
		}
		return able[i].Priority > able[j].Priority
	})
	return SyncRule{Wait: 1, Names: []string{able[0].Name}}
}

// isStuck tells that too few of a rule's standbys are left for a commit, or a proof.
func (sp syncPlan) isStuck(r SyncRule) bool {
	left := 0
	for _, name := range r.Names {
		if !sp.isGone(name) {
			left++
		}
	}
	return left < r.Wait
}

// next are the rules of the next joint step; ok is false if there is nothing to do.
func (sp syncPlan) next() (rules []SyncRule, ok bool) {
	last, want := sp.last(), sp.want()
	if len(sp.rules) > 1 && sp.isProved {
		return []SyncRule{last}, true
	}
	if len(sp.rules) > 1 {
		// Only what satisfies the mixture may be entered: nobody, or where it came from.
		if want.MayLose && !last.MayLose || want.Wait == 0 && sp.isStuck(last) {
			return enterRule(sp.rules, want), !want.equal(last)
		}
		if !sp.isStuck(last) {
			return nil, false
		}
		for _, r := range sp.rules[:len(sp.rules)-1] {
			if r.Wait > 0 && !sp.isStuck(r) {
				return enterRule(sp.rules, r), true
			}
		}
		return nil, false
	}
	if want.equal(last) {
		return nil, false
	}
	return enterRule(sp.rules, stepToward(last, want)), true
}

// degraded tells why rules promise less than the configuration asks for; empty if they do not.
func (sp syncPlan) degraded(rules []SyncRule) string {
	full := FullRule(sp.policy, sp.members, sp.holder)
	for _, r := range rules {
		if r.MayLose || r.Wait >= full.Wait {
			continue
		}
		var away []string
		usable := sp.usable()
		for _, name := range otherNames(sp.members, sp.holder) {
			if s := sp.seen[name]; !slices.Contains(usable, name) || !s.isThere {
				away = append(away, name)
			}
		}
		text := fmt.Sprintf("commits wait for %s and not for %d standbys; not streaming from %s: %s",
			r, full.Wait, sp.holder, orNone(strings.Join(away, ", ")))
		if r.Wait == 0 {
			text += "; nobody is promoted before a standby is in sync again"
		}
		return text
	}
	return ""
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
