package election

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// The synchronous replication modes (docs/synchronous.md).
const (
	SyncOff    = "off"    // commits wait for no standby
	SyncOn     = "on"     // commits wait for one named standby, while there is one
	SyncQuorum = "quorum" // commits wait for any Wait standbys, while there are any
	SyncStrict = "strict" // as quorum, but commits wait until there are enough again
)

// SyncModes are the modes, in the order of their promise.
func SyncModes() []string { return []string{SyncOff, SyncOn, SyncQuorum, SyncStrict} }

// syncQuorumMin is the number of data members from which on the quorum mode waits: with two, the
// loss of the one standby would stop all writes for a while.
const syncQuorumMin = 3

// SyncRule says whom a commit waits for: Wait of Names.
type SyncRule struct {
	// Wait is how many of Names must have flushed a commit before it is acknowledged. 0: the
	// primary acknowledges alone.
	Wait int `json:"wait,omitempty"`
	// Names are standbys, sorted.
	Names []string `json:"names,omitempty"`
	// MayLose tells, with Wait 0, that the configuration accepts the loss of what the primary
	// acknowledged alone: any standby may be promoted. Without it none may.
	MayLose bool `json:"may_lose,omitempty"`
}

func (r SyncRule) equal(o SyncRule) bool {
	return r.Wait == o.Wait && r.MayLose == o.MayLose && slices.Equal(r.Names, o.Names)
}

// Setting is the rule as synchronous_standby_names; empty if commits wait for nobody.
func (r SyncRule) Setting() string {
	if r.Wait == 0 {
		return ""
	}
	return "ANY " + strconv.Itoa(r.Wait) + " (" + syncList(r.Names) + ")"
}

// syncPad is a name that no member can have (agentNamePattern).
const syncPad = "holdfast nobody"

// stallSetting is the setting under which no commit of the rule's standbys is acknowledged, and
// each of its walsenders shows a priority above 1, which no Setting gives (DESIGN.md I42).
func (r SyncRule) stallSetting() string {
	return "FIRST " + strconv.Itoa(len(r.Names)+1) + " (" +
		syncList(append([]string{syncPad}, r.Names...)) + ")"
}

func syncList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = `"` + strings.ReplaceAll(n, `"`, `""`) + `"`
	}
	return strings.Join(quoted, ",")
}

// String is the rule for people.
func (r SyncRule) String() string {
	switch {
	case r.MayLose:
		return "nobody"
	case r.Wait == 0:
		return "nobody (degraded)"
	case len(r.Names) == 1:
		return r.Names[0]
	}
	return fmt.Sprintf("any %d of %s", r.Wait, strings.Join(r.Names, ", "))
}

// parseSyncSetting reads what Setting wrote.
func parseSyncSetting(s string) (SyncRule, bool) {
	if s == "" {
		return SyncRule{MayLose: true}, true
	}
	rest, ok := strings.CutPrefix(s, "ANY ")
	wait, list, found := strings.Cut(rest, " (")
	n, err := strconv.Atoi(wait)
	if !ok || !found || err != nil {
		return SyncRule{}, false
	}
	r := SyncRule{Wait: n}
	for name := range strings.SplitSeq(strings.TrimSuffix(list, ")"), ",") {
		r.Names = append(r.Names, strings.ReplaceAll(strings.Trim(name, `"`), `""`, `"`))
	}
	return r, r.Setting() == s
}

// DataMembers returns the members that have a PostgreSQL, sorted by name.
func DataMembers(members []Member) []Member {
	var out []Member
	for _, m := range members {
		if m.Postgres != "" {
			out = append(out, m)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// otherNames are the data members but the primary.
func otherNames(members []Member, primary string) []string {
	var names []string
	for _, m := range DataMembers(members) {
		if m.Name != primary {
			names = append(names, m.Name)
		}
	}
	return names
}

// FullRule is the rule of a new primary, and the one that stands while nothing is wrong: all
// standbys take part. It follows from configuration and members alone.
func FullRule(p Policy, members []Member, primary string) SyncRule {
	others := otherNames(members, primary)
	switch {
	case len(others) == 0:
	case p.SyncMode == SyncOn:
		return SyncRule{Wait: 1, Names: others}
	case p.SyncMode == SyncStrict, p.SyncMode == SyncQuorum && len(others)+1 >= syncQuorumMin:
		return SyncRule{Wait: min(p.syncWait(), len(others)), Names: others}
	}
	return SyncRule{MayLose: true}
}

// syncWait is for how many standbys a commit waits while nothing is wrong.
func (p Policy) syncWait() int {
	if p.SyncMode == SyncOn {
		return 1
	}
	return max(p.SyncWait, 1)
}

// RecruitsNeeded returns how many of the n standbys, of which each commit waited for w, must have
// stopped streaming so that no further commit can be acknowledged and one of them has every
// acknowledged commit (DESIGN 4).
func RecruitsNeeded(n, w int) int {
	return n - w + 1
}

// SyncRules are the rules under which commits of the current lock may have been acknowledged:
// those of the record, or, as long as there is none for this lock, those of the full one.
func SyncRules(s *State, p Policy) []SyncRule {
	p = p.forGroup(s)
	if s.Lock == nil {
		return nil
	}
	if r := s.Sync; r != nil && r.Epoch == s.Lock.Epoch && len(r.Rules) > 0 {
		return r.Rules
	}
	return unrecorded(FullRule(p, s.Members, s.Lock.Holder))
}

// unrecorded are the rules that count while a rule stands of which there is no record: the
// configuration may have changed since commits were acknowledged. Whoever waited for more of the
// names waited for one (DESIGN.md I40a).
func unrecorded(r SyncRule) []SyncRule {
	if r.Wait <= 1 {
		return []SyncRule{r}
	}
	return []SyncRule{{Wait: 1, Names: r.Names}, r}
}

// startRule is the rule that a member has when it becomes the primary of the next lock. A holder
// that is restarted keeps its own: what it acknowledged under it is on those standbys.
func startRule(s *State, p Policy, to string) SyncRule {
	if s.Lock != nil && s.Lock.Holder == to {
		rules := SyncRules(s, p)
		return rules[len(rules)-1]
	}
	return FullRule(p.forGroup(s), s.Members, to)
}
