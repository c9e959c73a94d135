package election

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"holdfast/pgwire"
)

// Recruit is a member that pledged itself to the intent, with the position that it answered.
type Recruit struct {
	Member   Member
	Timeline uint32
	LSN      pgwire.LSN
}

// Selection is what a candidate is chosen from. It holds no time and no I/O.
type Selection struct {
	// Lock is the lock that is replaced.
	Lock Lock
	// Recruits are the members that answered; Silent says why each of the others did not.
	Recruits []Recruit
	Silent   map[string]string
	// Sync are the rules by which the old primary's commits may have been acknowledged.
	Sync []SyncRule
	// Tried are members that were ordered to promote under intents that were replaced.
	Tried []string
	// Only is the one member that may be chosen; empty if any may.
	Only string
	// ShutdownLSN is the shutdown checkpoint of an old primary that was stopped in order; 0
	// if it was not.
	ShutdownLSN pgwire.LSN
	// KnownLSN is the newest position that the old primary reported, on the lock's timeline.
	KnownLSN pgwire.LSN
	// AcceptLoss lets Only be promoted though acknowledged commits may be lost.
	AcceptLoss bool
	// SlotsLacking counts the logical slots that would be lost with a member's promotion.
	SlotsLacking map[string]int
	// LagMaxBytes bounds what may be lost when commits waited for nobody; 0: no bound.
	LagMaxBytes uint64
}

// isSynchronous tells that some commits were waited for, or none that may be lost is known of.
func (sel Selection) isSynchronous() bool {
	return slices.ContainsFunc(sel.Sync, func(r SyncRule) bool { return !r.MayLose })
}

// isInSync tells that commits may have waited for the member.
func (sel Selection) isInSync(name string) bool {
	return slices.ContainsFunc(sel.Sync, func(r SyncRule) bool {
		return slices.Contains(r.Names, name)
	})
}

// Refusal says why a member is not promoted, in words for a DBA.
type Refusal struct {
	Member string
	Why    string
}

// Choice is the outcome of Choose.
type Choice struct {
	// To is the member to promote; empty if nobody is.
	To      string
	ToLSN   pgwire.LSN
	Refused []Refusal
	// Missing says why nobody is promoted; empty if somebody is.
	Missing string
}

// Choose picks the member to promote: the furthest timeline, then the furthest position, then sync
// set, logical slots, priority and name. In synchronous mode it picks only a member that surely has
// every acknowledged commit (DESIGN.md I20 to I22).
func Choose(sel Selection) Choice {
	var c Choice
	var eligible, known []Recruit
	for _, r := range sel.Recruits {
		if why := recruitIncomparable(sel, r); why != "" {
			c.Refused = append(c.Refused, Refusal{r.Member.Name, why})
			continue
		}
		known = append(known, r)
		if why := recruitIneligible(sel, r); why != "" {
			c.Refused = append(c.Refused, Refusal{r.Member.Name, why})
			continue
		}
		eligible = append(eligible, r)
	}
	if why := fenceIncomplete(sel, known); why != "" {
		c.Missing = why
		return c
	}
	sortRecruits(sel, eligible)
	sortRecruits(sel, known)
	for _, r := range eligible {
		if why := recruitBehind(sel, known[0], r); why != "" {
			c.Refused = append(c.Refused, Refusal{r.Member.Name, why})
			continue
		}
		c.To, c.ToLSN = r.Member.Name, r.LSN
		return c
	}
	c.Missing = "no member is eligible"
	if len(c.Refused) > 0 {
		c.Missing += ": " + refusalText(c.Refused)
	} else if len(sel.Silent) > 0 {
		c.Missing += ": " + silentText(sel.Silent, nil)
	}
	return c
}

// recruitIncomparable tells why a position cannot be compared with those of the lock's timeline:
// then it neither fences nor competes.
func recruitIncomparable(sel Selection, r Recruit) string {
	if r.Timeline > sel.Lock.Timeline && len(sel.Tried) == 0 {
		return fmt.Sprintf("%s is on timeline %d, past the lock's %d: it was promoted by somebody"+
			" else", r.Member.Name, r.Timeline, sel.Lock.Timeline)
	}
	return ""
}

// recruitIneligible tells why a recruit, whatever its position among the others, is not promoted.
func recruitIneligible(sel Selection, r Recruit) string {
	name := r.Member.Name
	switch {
	case sel.Only != "" && sel.Only != name:
		return fmt.Sprintf("the change is to %s", sel.Only)
	case r.Timeline < sel.Lock.Timeline:
		return fmt.Sprintf("%s is on timeline %d, the lock is on %d", name, r.Timeline,
			sel.Lock.Timeline)
	case r.Timeline == sel.Lock.Timeline && r.LSN < sel.Lock.PromotionLSN:
		return fmt.Sprintf("%s is at %s, before the lock's timeline begins at %s", name, r.LSN,
			sel.Lock.PromotionLSN)
	case r.Member.NoFailover:
		return fmt.Sprintf("%s is tagged nofailover", name)
	}
	return ""
}

// fenceIncomplete tells what is missing for the certainty that the old primary acknowledges
// nothing more and that one of the recruits has all that it acknowledged.
func fenceIncomplete(sel Selection, known []Recruit) string {
	if sel.ShutdownLSN != 0 {
		for _, r := range known {
			if r.Member.Name == sel.Only && hasShutdown(sel, r) {
				return ""
			}
		}
		return fmt.Sprintf("%s does not have the shutdown checkpoint at %s of %s", sel.Only,
			sel.ShutdownLSN, sel.Lock.Holder)
	}
	for _, rule := range sel.Sync {
		if why := ruleIncomplete(sel, known, rule); why != "" {
			return why
		}
	}
	return ""
}

// ruleIncomplete tells what the fence lacks as far as one rule goes: with N-W+1 recruits of its
// standbys nothing more is acknowledged by it, and one of them has all that was.
func ruleIncomplete(sel Selection, known []Recruit, rule SyncRule) string {
	if rule.MayLose || sel.AcceptLoss {
		return ""
	}
	if rule.Wait == 0 {
		return fmt.Sprintf("synchronous replication is degraded: %s acknowledges commits alone,"+
			" and no other member is sure to have them", sel.Lock.Holder)
	}
	have := map[string]bool{}
	for _, r := range known {
		if slices.Contains(rule.Names, r.Member.Name) {
			have[r.Member.Name] = true
		}
	}
	need := RecruitsNeeded(len(rule.Names), rule.Wait)
	if len(have) >= need {
		return ""
	}
	text := fmt.Sprintf("synchronous mode needs %d of %s to be sure of every acknowledged commit,"+
		" and has %d", need, strings.Join(rule.Names, ", "), len(have))
	var why []string
	for _, r := range sel.Recruits {
		if w := recruitIncomparable(sel, r); w != "" {
			why = append(why, w)
		}
	}
	if s := silentText(sel.Silent, rule.Names); s != "" {
		why = append(why, s)
	}
	if len(why) > 0 {
		text += ": " + strings.Join(why, "; ")
	}
	return text
}

// hasShutdown tells that r has all WAL of an old primary that was shut down in order. A member on
// a later timeline was promoted under an intent that this one replaced, and had it then.
func hasShutdown(sel Selection, r Recruit) bool {
	return r.Timeline > sel.Lock.Timeline ||
		r.Timeline == sel.Lock.Timeline && r.LSN >= sel.ShutdownLSN
}

// recruitBehind tells what r lacks that would be lost with its promotion; best is the furthest.
func recruitBehind(sel Selection, best, r Recruit) string {
	if sel.ShutdownLSN != 0 || sel.AcceptLoss {
		return ""
	}
	name := r.Member.Name
	if best.Timeline > r.Timeline {
		return fmt.Sprintf("%s is on timeline %d, %s on %d", name, r.Timeline, best.Member.Name,
			best.Timeline)
	}
	if sel.isSynchronous() {
		if r.LSN < best.LSN {
			return fmt.Sprintf("%s lacks %s that %s has", name, byteText(best.LSN-r.LSN),
				best.Member.Name)
		}
		return ""
	}
	from := best.LSN
	what := best.Member.Name
	if r.Timeline == sel.Lock.Timeline && sel.KnownLSN > from {
		from, what = sel.KnownLSN, sel.Lock.Holder
	}
	if sel.LagMaxBytes > 0 && from > r.LSN && uint64(from-r.LSN) > sel.LagMaxBytes {
		return fmt.Sprintf("%s lacks %s that %s had; the limit is %s", name, byteText(from-r.LSN),
			what, byteText(pgwire.LSN(sel.LagMaxBytes)))
	}
	return ""
}

// sortRecruits puts the best candidate first.
func sortRecruits(sel Selection, rs []Recruit) {
	rank := func(r Recruit) (promoted, untried, inSync bool) {
		tried := slices.Contains(sel.Tried, r.Member.Name)
		return tried && r.Timeline > sel.Lock.Timeline, !tried,
			sel.isInSync(r.Member.Name)
	}
	sort.SliceStable(rs, func(i, j int) bool {
		a, b := rs[i], rs[j]
		promotedA, untriedA, syncA := rank(a)
		promotedB, untriedB, syncB := rank(b)
		switch {
		case promotedA != promotedB:
			return promotedA
		case a.Timeline != b.Timeline:
			return a.Timeline > b.Timeline
		case a.LSN != b.LSN:
			return a.LSN > b.LSN
		case untriedA != untriedB:
			// Of two equals take the one whose promotion has not failed yet.
			return untriedA
		case syncA != syncB:
			return syncA
		case sel.SlotsLacking[a.Member.Name] != sel.SlotsLacking[b.Member.Name]:
			return sel.SlotsLacking[a.Member.Name] < sel.SlotsLacking[b.Member.Name]
		case a.Member.Priority != b.Member.Priority:
			return a.Member.Priority > b.Member.Priority
		}
		return a.Member.Name < b.Member.Name
	})
}

func refusalText(rs []Refusal) string {
	out := make([]string, len(rs))
	for i, r := range rs {
		out[i] = r.Why
	}
	return strings.Join(out, "; ")
}

// silentText lists the reasons of the silent members, of only if it is not nil.
func silentText(silent map[string]string, only []string) string {
	var out []string
	for name, why := range silent {
		if only == nil || slices.Contains(only, name) {
			out = append(out, name+": "+why)
		}
	}
	sort.Strings(out)
	return strings.Join(out, "; ")
}

// byteText prints a distance in WAL for people.
func byteText(n pgwire.LSN) string {
	units := []string{"kB", "MB", "GB", "TB"}
	if n < 1024 {
		return strconv.FormatUint(uint64(n), 10) + " bytes"
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + " " + units[u]
}
