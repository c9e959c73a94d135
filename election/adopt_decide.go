package election

import (
	"fmt"
	"slices"
	"strings"
)

// decideAdopt makes a running server that was adopted the first primary. It answers false where
// nothing was adopted. Unlike the data of a first start, this data is somebody's: the group takes
// it over only when every member has told what it has, all of it is of one system, and one member
// alone is the primary.
func decideAdopt(in Input, p Policy) (Decision, bool) {
	var wait, wrong []string
	var primaries, standbys []MemberStatus
	isAdoption := false
	for _, m := range DataMembers(in.State.Members) {
		o, ok := freshReport(in, p, m.Name)
		st := o.Member
		isAdoption = isAdoption || ok && st.Adopted != ""
		switch {
		case !ok || st.Phase == "" || st.Phase == PhaseUnknown || st.Phase == PhaseStarting ||
			st.Phase == PhaseRecovering:
			wait = append(wait, m.Name+" has not reported")
		case st.Phase == PhaseForeign:
			wait = append(wait, m.Name+" has data that was not adopted: run `holdfast adopt` there")
		case st.Phase == PhaseEmpty:
		case st.Phase == PhasePrimary, st.Phase == PhaseStopped && st.Adopted == adoptedPrimary:
			primaries = append(primaries, st)
		default:
			standbys = append(standbys, st)
		}
	}
	if !isAdoption {
		return Decision{}, false
	}
	wrong = adoptionWrong(primaries, standbys)
	d := Decision{Do: ActHold}
	d.Refusals = refuseAll(in.Requests, "there is no primary yet")
	switch {
	case len(wrong) > 0:
		d.Summary = "no take-over of what was adopted: " + wrong[0]
		d.Evidence = append(wrong, wait...)
	case len(wait) > 0:
		d.Summary = "the take-over of what was adopted waits for all members"
		d.Evidence = wait
	case len(primaries) == 0:
		d.Summary = "no take-over of what was adopted: no member is the primary"
	case strictLacks(in, p, primaries[0].Name) != "":
		d.Summary = "no take-over of what was adopted: " + strictLacks(in, p, primaries[0].Name)
	default:
		to := primaries[0]
		d.Do = ActBegin
		d.Summary = to.Name + " is the primary already: the group takes it over"
		d.Intent = &Intent{Kind: IntentBootstrap, To: to.Name, Cause: "it was adopted as the " +
			"primary of system " + to.SystemID}
	}
	return d, true
}

// adoptRule is the rule that the first lock gives an adopted primary, and whether it asks for less
// than the configuration: members without data are cloned once there is a lock, so it cannot wait
// for them (DESIGN.md I100). A member that is not known to be empty is waited for, and a server
// whose commits wait already does not come to wait for fewer.
func adoptRule(in Input, p Policy, to string) (rule SyncRule, isLess bool) {
	p = p.forGroup(in.State)
	full := FullRule(p, in.State.Members, to)
	names := slices.Clone(full.Names)
	for _, o := range in.Observations {
		switch {
		case o.Node == to && o.Member.Sync.Names != "":
			return full, false
		case o.Member.Phase == PhaseEmpty:
			names = slices.DeleteFunc(names, func(name string) bool { return name == o.Node })
		}
	}
	if len(names) >= full.Wait || p.SyncMode == SyncStrict {
		return full, false
	}
	if len(names) == 0 {
		return SyncRule{}, true
	}
	return SyncRule{Wait: len(names), Names: names}, true
}

// strictLacks tells why the mode strict keeps an adopted primary from its first lock: until enough
// standbys stream, no commit of its clients would end.
func strictLacks(in Input, p Policy, to string) string {
	p = p.forGroup(in.State)
	full := FullRule(p, in.State.Members, to)
	var empty []string
	for _, o := range in.Observations {
		if o.Member.Phase == PhaseEmpty && slices.Contains(full.Names, o.Node) {
			empty = append(empty, o.Node)
		}
	}
	if p.SyncMode != SyncStrict || len(full.Names)-len(empty) >= full.Wait {
		return ""
	}
	return fmt.Sprintf("with synchronous.mode strict commits wait for standbys (%d), and there are "+
		"no data on %s: set the mode quorum or on until they are cloned, or make a standby by hand "+
		"and adopt it", full.Wait, strings.Join(empty, " and "))
}

// adoptionWrong tells what does not fit together; the first is the worst.
func adoptionWrong(primaries, standbys []MemberStatus) []string {
	var wrong []string
	if len(primaries) > 1 {
		var names []string
		for _, st := range primaries {
			names = append(names, fmt.Sprintf("%s (timeline %d)", st.Name, st.Timeline))
		}
		wrong = append(wrong, "there is more than one primary: "+strings.Join(names, " and "))
	}
	for _, st := range primaries {
		if st.Adopted != adoptedPrimary {
			wrong = append(wrong, st.Name+" is a primary but was not adopted as one: run `holdfast "+
				"adopt` there again")
		}
		for _, s := range standbys {
			switch {
			case s.SystemID != st.SystemID:
				wrong = append(wrong, fmt.Sprintf("%s has system id %s, the primary %s has %s", s.Name,
					orUnknown(s.SystemID), st.Name, orUnknown(st.SystemID)))
			case s.Timeline > st.Timeline:
				wrong = append(wrong, fmt.Sprintf("%s is on timeline %d, the primary %s on %d", s.Name,
					s.Timeline, st.Name, st.Timeline))
			}
		}
	}
	return wrong
}

// isAdopted tells that a member said that it was adopted as the primary.
func isAdopted(in Input, member string) bool {
	for _, o := range in.Observations {
		if o.Node == member {
			return o.Member.Adopted == adoptedPrimary
		}
	}
	return false
}
