package election

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// This file decides what becomes of a primary that works, by the word of its own node, and that
// others cannot use: nothing is dead, so nothing is hurried (DESIGN 5).

// cutOff is such a primary; nobody is cut off if why is empty.
type cutOff struct {
	why string
	// isDue tells that it has lasted for Policy.CutAfter.
	isDue bool
	// byNodes and bySidecars tell who is cut off from it.
	byNodes, bySidecars bool
	evidence            []string
}

// BorrowerView is what a node's sidecars tell of the primary, in counts: what a voter hears does
// not grow with the fleet.
type BorrowerView struct {
	// Total are the sidecars that this node lends to, CutOff those that have had no connection to
	// the primary for Config.CutOffAfter though they tried.
	Total  int `json:"total"`
	CutOff int `json:"cut_off,omitempty"`
	// Longest is how long the first of CutOff has had none.
	Longest time.Duration `json:"longest,omitempty"`
	// Reach is how many of CutOff reach the server of a member.
	Reach map[string]int `json:"reach,omitempty"`
}

// isProbeFailing tells that a node's newest probe, under the lock's epoch, did not succeed.
func isProbeFailing(o Observation, lock *Lock) bool {
	return o.Epoch == lock.Epoch && o.Probe != ProbeOK && o.Probe != ProbeNone && o.Probe != ""
}

// judgeCut tells whether a primary that lives is of no use to most proxies. A node counts by its
// own fresh report only: whoever is silent says nothing, and is no proxy that a change would help.
func judgeCut(in Input, p Policy) cutOff {
	lock := in.State.Lock
	var c cutOff
	h, ok := holderReport(in, p)
	st := h.Member
	if !ok || p.CutAfter <= 0 || st.Phase != PhasePrimary || st.Incarnation != lock.Incarnation ||
		st.LSN == 0 || st.DiskBad != "" {
		return c // its own node does not say that it is well
	}
	cut, due, sidecars, lost := 0, 0, 0, 0
	for _, m := range in.State.Members {
		o, ok := freshReport(in, p, m.Name)
		if !ok {
			continue
		}
		if isProbeFailing(o, lock) && (o.ProbeCount >= p.ProbeRepeats || o.BlindFor >= p.CutAfter) {
			cut++
			if o.BlindFor >= p.CutAfter {
				due++
			}
		}
		if b := o.Borrowers; b != nil && b.Total > 0 {
			sidecars, lost = sidecars+b.Total, lost+b.CutOff
			c.evidence = append(c.evidence, borrowersText(m.Name, *b))
		}
	}
	majority := len(in.State.Members)/2 + 1
	c.byNodes = cut >= majority
	// One sidecar with a fault of its own is no majority of anything.
	c.bySidecars = lost >= cutSidecarsMin && 2*lost > sidecars
	c.isDue = due >= majority || c.bySidecars
	var who []string
	if c.byNodes {
		who = append(who, fmt.Sprintf("%d of %d nodes", cut, len(in.State.Members)))
	}
	if c.bySidecars {
		who = append(who, fmt.Sprintf("%d of %d sidecars", lost, sidecars))
	}
	if len(who) > 0 {
		c.why = fmt.Sprintf("%s is cut off: its own node sees it run, but %s cannot use it",
			lock.Holder, strings.Join(who, " and "))
	}
	return c
}

// cutSidecarsMin is how many sidecars at least must be cut off before they count.
const cutSidecarsMin = 2

func borrowersText(node string, b BorrowerView) string {
	text := fmt.Sprintf("%s lends to %d sidecars", node, b.Total)
	if b.CutOff > 0 {
		text += fmt.Sprintf(", %d of which have had no connection to the primary for up to %s",
			b.CutOff, b.Longest.Truncate(time.Second))
	}
	return text
}

// decideCut moves the primary to a member that those who are cut off can reach, if nothing that was
// acknowledged is lost by it. It is never pressing: there is no change after another one.
func decideCut(in Input, p Policy, v verdict) Decision {
	d := Decision{Do: ActHold, Summary: v.why, Evidence: slices.Concat(v.evidence, v.cut.evidence)}
	if !v.cut.isDue {
		return d
	}
	stays := func(why string) Decision {
		d.Summary = v.cut.why + ", and stays the primary: " + why
		return d
	}
	if m := in.State.Maintenance; m != nil {
		return stays(m.text())
	}
	if why := cutTooSoon(in, p); why != "" {
		return stays(why)
	}
	it := Intent{Kind: IntentSwitchover, Auto: true, Cause: v.cut.why}
	to, why := cutSwitchover(in, p, v)
	if it.To = to; to == "" {
		lost := cutFailoverMissing(in, p, v)
		if lost != "" {
			return stays(why + "; a failover: " + lost)
		}
		it = Intent{Kind: IntentFailover, Cause: v.cut.why + ", and no standby streams from it"}
	}
	v.evidence = d.Evidence
	return decideUnplanned(in, p, v, it)
}

// Of changes for a cut at most cutChangesMax are made in cutWindows times Policy.FlapWindow, and
// none within one such window after any change that nobody asked for.
const (
	cutChangesMax = 2
	cutWindows    = 10
)

// cutTooSoon tells that too much has changed of late.
func cutTooSoon(in Input, p Policy) string {
	recent := 0
	for _, age := range in.ChangeAges {
		if age < p.FlapWindow {
			return fmt.Sprintf("the lock has changed within %s", p.FlapWindow)
		}
		if age < cutWindows*p.FlapWindow {
			recent++
		}
	}
	if recent >= cutChangesMax {
		return fmt.Sprintf("%d unplanned changes within %s are the limit for this", cutChangesMax,
			cutWindows*p.FlapWindow)
	}
	return ""
}

// cutSwitchover finds the best standby that streams and that those who are cut off can reach; why
// tells what each lacks if there is none.
func cutSwitchover(in Input, p Policy, v verdict) (to, why string) {
	holder, _ := freshReport(in, p, in.State.Lock.Holder)
	sel := Selection{Lock: *in.State.Lock}
	var refused []string
	for _, m := range DataMembers(in.State.Members) {
		if m.Name == in.State.Lock.Holder {
			continue
		}
		one := &checker{in: in, p: p}
		one.standby(holder, m.Name)
		one.when(true, m.Name+" can be reached", cutUnreached(in, p, v.cut, m.Name))
		if w := firstWrong(one.list); w != "" {
			refused = append(refused, w)
			continue
		}
		o, _ := freshReport(in, p, m.Name)
		sel.Recruits = append(sel.Recruits, Recruit{m, o.Member.Timeline, o.Member.LSN})
	}
	sel.SlotsLacking = slotsLacking(in.Observations, holder.Member.Logical)
	if to = Choose(sel).To; to == "" {
		why = "a switchover: no standby can take over: " + strings.Join(refused, "; ")
	}
	return to, why
}

// isStillDue tells that a switchover for a cut would be begun now, too: its checkpoint has taken
// up to Policy.CheckpointTimeout, in which the primary may have been reached again.
func (c *Controller) isStillDue(it Intent) bool {
	s, _ := c.co.State()
	d := Decide(c.input(s), c.policy)
	return d.Do == ActBegin && d.Intent.Auto && d.Intent.FromEpoch == it.FromEpoch &&
		d.Intent.To == it.To
}

// cutUnreached tells that those who are cut off from the primary cannot use that member either;
// empty if most can.
func cutUnreached(in Input, p Policy, c cutOff, name string) string {
	nodes, lost, reach := 0, 0, 0
	for _, m := range in.State.Members {
		o, ok := freshReport(in, p, m.Name)
		if !ok {
			continue
		}
		if m.Name == name || slices.Contains(o.Reaches, name) {
			nodes++
		}
		if b := o.Borrowers; b != nil {
			lost, reach = lost+b.CutOff, reach+b.Reach[name]
		}
	}
	switch n := len(in.State.Members); {
	case c.byNodes && nodes < n/2+1:
		return fmt.Sprintf("%d of %d nodes reach %s", nodes, n, name)
	case c.bySidecars && 2*reach <= lost:
		return fmt.Sprintf("%d of the %d sidecars reach %s", reach, lost, name)
	}
	return ""
}

// cutFailoverMissing tells why the primary is not given up though no standby streams from it any
// more: unlike a dead one it may have acknowledged what nobody else has, and still does.
func cutFailoverMissing(in Input, p Policy, v verdict) string {
	holder := in.State.Lock.Holder
	if !v.cut.byNodes {
		return "the nodes can use it"
	}
	if len(v.streaming) > 0 {
		return fmt.Sprintf("%s streams from it", strings.Join(v.streaming, ", "))
	}
	for _, r := range SyncRules(in.State, p) {
		if r.MayLose || r.Wait == 0 {
			return fmt.Sprintf("%s acknowledges commits alone, and they would be lost", holder)
		}
	}
	if why := failoverMissing(in, p); why != "" {
		return why
	}
	for _, m := range DataMembers(in.State.Members) {
		o, ok := freshReport(in, p, m.Name)
		if m.Name == holder || m.NoFailover || !ok || o.Member.Phase != PhaseStandby {
			continue
		}
		if why := cutUnreached(in, p, v.cut, m.Name); why != "" {
			return "it might choose " + m.Name + ", and " + why // the furthest is chosen
		}
	}
	return ""
}

// mayCutFailOver tells that a primary without standbys is about to be replaced: commits go on
// waiting for them meanwhile, since one that was acknowledged alone would forbid it. It lasts for
// Policy.CutAfter, and ends at once when something stands against the change.
func mayCutFailOver(in Input, p Policy) bool {
	v := judgePrimary(in, p)
	return !v.isDead && v.cut.why != "" && in.State.Maintenance == nil && cutTooSoon(in, p) == "" &&
		cutFailoverMissing(in, p, v) == ""
}
