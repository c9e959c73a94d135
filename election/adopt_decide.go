package election

import (
	"fmt"
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
	default:
		to := primaries[0]
		d.Do = ActBegin
		d.Summary = to.Name + " is the primary already: the group takes it over"
		d.Intent = &Intent{Kind: IntentBootstrap, To: to.Name, Cause: "it was adopted as the " +
			"primary of system " + to.SystemID}
	}
	return d, true
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
