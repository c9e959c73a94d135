package election

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/pgwire"
)

// RequestKind is what an operator asks for.
type RequestKind string

// The requests.
const (
	// RequestSwitchover moves the primary in order to another member.
	RequestSwitchover RequestKind = "switchover"
	// RequestRestart restarts a member's server in order.
	RequestRestart RequestKind = "restart"
	// RequestReinit throws a standby's data away and clones it anew.
	RequestReinit RequestKind = "reinit"
	// RequestFailover promotes a member because the primary is lost.
	RequestFailover RequestKind = "failover"
)

// Request is a wish of an operator that waits for a decision.
type Request struct {
	V int `json:"v"`
	// ID is the leader's own.
	ID   uint64      `json:"-"`
	Kind RequestKind `json:"kind"`
	// Member is the new primary, empty for the best standby (switchover), or whose server is
	// restarted.
	Member string `json:"member,omitempty"`
	// AcceptLoss promotes the member though acknowledged commits may be lost with it (failover).
	AcceptLoss bool `json:"accept_loss,omitempty"`
	// AcceptSlotLoss goes on though logical slots are lost with it (switchover).
	AcceptSlotLoss bool `json:"accept_slot_loss,omitempty"`
	// DryRun asks for the checks only.
	DryRun bool `json:"dry_run,omitempty"`
	// Token names the request in the state, Since is the newest epoch that had begun when it was asked
	// for, and Again tells that another leader may have begun it.
	Token string `json:"token,omitempty"`
	Since uint64 `json:"since,omitempty"`
	Again bool   `json:"again,omitempty"`
}

// Check is a precondition of a request, in words for a DBA.
type Check struct {
	What string `json:"what"`
	// Why tells what is wrong; empty if the precondition holds.
	Why string `json:"why,omitempty"`
	// Note tells, of one that holds, what comes of it all the same.
	Note string `json:"note,omitempty"`
	// waits tells that what is wrong may pass by itself; it is waited for a while.
	waits bool
}

// firstWrong tells why a request cannot be carried out; empty if it can.
func firstWrong(checks []Check) string {
	for _, c := range checks {
		if c.Why != "" {
			return c.Why
		}
	}
	return ""
}

// checker collects the checks of one request.
type checker struct {
	in   Input
	p    Policy
	list []Check
	// losesSlots tells that logical slots may be lost.
	losesSlots bool
}

// onlyWaits tells that something is wrong, and all that is may pass by itself.
func onlyWaits(checks []Check) bool {
	wrong := false
	for _, c := range checks {
		if c.Why != "" && !c.waits {
			return false
		}
		wrong = wrong || c.Why != ""
	}
	return wrong
}

func (c *checker) add(what, why string) { c.list = append(c.list, Check{What: what, Why: why}) }

// CheckRequest lists every precondition of a request and whether it holds. target is the member
// that the request would act on. It is pure, and what Decide refuses requests by.
func CheckRequest(in Input, p Policy, r Request) (target string, checks []Check) {
	c := &checker{in: in, p: p}
	s := in.State
	if s.Lock == nil {
		c.add("there is a primary", "there is no primary yet")
		return "", c.list
	}
	why := ""
	if s.Intent != nil && !mayTakeOver(*s.Intent, r) {
		why = "a change is in progress: " + intentText(*s.Intent)
	}
	c.add("no other change is in progress, or it waits and the request replaces it", why)
	target = r.Member
	switch r.Kind {
	case RequestSwitchover:
		c.losesSlots = r.AcceptSlotLoss
		target = c.switchover(r.Member)
	case RequestRestart:
		c.restart(r.Member)
	case RequestReinit:
		c.reinit(r.Member)
	case RequestFailover:
		c.failover(r)
	default:
		c.add("the request is known", fmt.Sprintf("a request of kind %q is not known", r.Kind))
	}
	return target, c.list
}

// data checks that a member exists and has PostgreSQL; ok is false if nothing more can be said.
func (c *checker) data(name string) (m Member, ok bool) {
	i := slices.IndexFunc(c.in.State.Members, func(m Member) bool { return m.Name == name })
	why := ""
	switch {
	case i < 0:
		why = fmt.Sprintf("there is no member %q", name)
	case c.in.State.Members[i].Postgres == "":
		why = name + " is a witness without PostgreSQL"
	}
	c.add(name+" is a member with PostgreSQL", why)
	if why != "" {
		return Member{}, false
	}
	return c.in.State.Members[i], true
}

// primaryRuns checks the old primary.
func (c *checker) primaryRuns() (Observation, bool) {
	holder := c.in.State.Lock.Holder
	o, ok := freshReport(c.in, c.p, holder)
	ok = ok && o.Member.Phase == PhasePrimary
	why := ""
	if !ok {
		why = fmt.Sprintf("the agent of the primary %s does not answer or does not see it running",
			holder)
	}
	c.add("the primary "+holder+" runs, and its agent says so", why)
	return o, ok
}

// switchover checks a switchover to a member, or finds the best one.
func (c *checker) switchover(to string) string {
	holder, ok := c.primaryRuns()
	lock := c.in.State.Lock
	if to != "" {
		c.standby(holder, to)
		return to
	}
	if !ok {
		return ""
	}
	sel := Selection{Lock: *lock}
	var refused []string
	waits := false
	for _, m := range DataMembers(c.in.State.Members) {
		if m.Name == lock.Holder {
			continue
		}
		one := &checker{in: c.in, p: c.p, losesSlots: c.losesSlots}
		one.standby(holder, m.Name)
		if why := firstWrong(one.list); why != "" {
			refused = append(refused, why)
			waits = waits || onlyWaits(one.list)
			continue
		}
		o, _ := freshReport(c.in, c.p, m.Name)
		sel.Recruits = append(sel.Recruits, Recruit{m, o.Member.Timeline, o.Member.LSN})
	}
	sel.SlotsLacking = slotsLacking(c.in.Observations, holder.Member.Logical)
	best := Choose(sel).To
	if best == "" {
		c.list = append(c.list, Check{What: "a standby can take over", waits: waits,
			Why: "no standby can take over: " + strings.Join(refused, "; ")})
		return ""
	}
	c.standby(holder, best)
	return best
}

// standby checks that a member can take over from a running primary.
func (c *checker) standby(holder Observation, name string) {
	lock := c.in.State.Lock
	m, ok := c.data(name)
	if !ok {
		return
	}
	c.when(name == lock.Holder, name+" is not the primary", name+" is the primary already")
	c.when(m.NoFailover, name+" may be the primary", name+" is tagged nofailover")
	o, ok := freshReport(c.in, c.p, name)
	silent := "the agent of " + name + " is silent"
	c.when(!ok, "the agent of "+name+" answers", silent)
	if !ok {
		return
	}
	st := o.Member
	c.when(st.Phase != PhaseStandby, name+" is a running standby",
		fmt.Sprintf("%s is %s", name, phaseText(st.Phase)))
	c.when(st.DiskBad != "", "the data disk of "+name+" takes writes",
		fmt.Sprintf("the data disk of %s takes no writes: %s", name, st.DiskBad))
	c.when(st.Timeline != lock.Timeline, fmt.Sprintf("%s is on timeline %d", name, lock.Timeline),
		fmt.Sprintf("%s is on timeline %d, the lock is on %d", name, st.Timeline, lock.Timeline))
	c.when(!st.Streaming, name+" streams from "+lock.Holder,
		name+" is not streaming from the primary")
	if c.p.LagMaxBytes > 0 {
		lag := holder.Member.LSN - min(st.LSN, holder.Member.LSN)
		bound := byteText(pgwire.LSN(c.p.LagMaxBytes))
		c.when(uint64(lag) > c.p.LagMaxBytes, fmt.Sprintf("%s lags by at most %s", name, bound),
			fmt.Sprintf("%s lags by %s", name, byteText(lag)))
	}
	c.slots(holder, st, name)
}

// slots checks that the primary's logical slots go on with the member (DESIGN.md I73).
func (c *checker) slots(holder Observation, st MemberStatus, name string) {
	var plain []LogicalSlot
	for _, s := range holder.Member.Logical {
		if s.Bad != "" {
			continue
		}
		if !s.Failover {
			plain = append(plain, s)
			continue
		}
		check := Check{What: fmt.Sprintf("the logical slot %s goes on with %s", s.Name, name)}
		why := slotMissing(st.Logical, s.Name)
		switch {
		case why != "" && c.losesSlots:
			check.What = fmt.Sprintf("the logical slot %s may be lost", s.Name)
			check.Note = fmt.Sprintf("it is lost: on %s %s", name, why)
		case why != "":
			check.waits = true
			check.Why = fmt.Sprintf("the logical slot %s would be lost: on %s %s", s.Name, name, why)
		}
		c.list = append(c.list, check)
	}
	if len(plain) > 0 {
		c.list = append(c.list, Check{What: "no other logical slot is promised to go on",
			Note: "these are no failover slots and end with the primary: " + slotNames(plain)})
	}
}

// when adds a check that fails if wrong is true.
func (c *checker) when(wrong bool, what, why string) {
	if !wrong {
		why = ""
	}
	c.add(what, why)
}

// restart checks that a member's server can be restarted in order.
func (c *checker) restart(name string) {
	if _, ok := c.data(name); !ok {
		return
	}
	if name == c.in.State.Lock.Holder {
		c.primaryRuns()
		return
	}
	o, ok := freshReport(c.in, c.p, name)
	c.when(!ok, "the agent of "+name+" answers", "the agent of "+name+" is silent")
	if ok {
		c.when(o.Member.Phase != PhaseStandby && o.Member.Phase != PhaseStopped &&
			o.Member.Phase != PhaseRecovering,
			name+" is a standby", fmt.Sprintf("%s is %s", name, phaseText(o.Member.Phase)))
	}
}

// reinit checks that a member's data can be made anew.
func (c *checker) reinit(name string) {
	if _, ok := c.data(name); !ok {
		return
	}
	lock := c.in.State.Lock
	c.when(name == lock.Holder, name+" is not the primary",
		name+" is the primary: its data is the one to copy")
	c.primaryRuns()
	o, ok := freshReport(c.in, c.p, name)
	c.when(!ok, "the agent of "+name+" answers", "the agent of "+name+" is silent")
	if ok {
		p := o.Member.Phase
		c.when(p == PhaseCloning || p == PhaseRewind, name+" is not being rebuilt already",
			fmt.Sprintf("%s is %s", name, p))
	}
}

// failover checks that a member can be promoted for a primary that is lost.
func (c *checker) failover(r Request) {
	lock := c.in.State.Lock
	v := judgePrimary(c.in, c.p)
	usable := v.isUsable && v.usableAge <= c.p.ReportFresh && !v.isDead
	c.when(usable, lock.Holder+" cannot be used",
		fmt.Sprintf("%s can be used (seen %s ago): ask for a switchover", lock.Holder,
			v.usableAge.Round(time.Millisecond)))
	c.when(r.Member == "", "a member is named", "name the member that becomes primary")
	if r.Member == "" {
		return
	}
	m, ok := c.data(r.Member)
	if !ok {
		return
	}
	c.when(r.Member == lock.Holder, r.Member+" is not the primary",
		r.Member+" is the primary already")
	c.when(m.NoFailover, r.Member+" may be the primary", r.Member+" is tagged nofailover")
	o, ok := freshReport(c.in, c.p, r.Member)
	c.when(!ok, "the agent of "+r.Member+" answers", "the agent of "+r.Member+" is silent")
	if !ok {
		return
	}
	st := o.Member
	c.when(st.Phase != PhaseStandby && st.Phase != PhaseRecovering,
		r.Member+" is a running standby",
		fmt.Sprintf("%s is %s", r.Member, phaseText(st.Phase)))
	c.when(st.DiskBad != "", "the data disk of "+r.Member+" takes writes",
		fmt.Sprintf("the data disk of %s takes no writes: %s", r.Member, st.DiskBad))
	c.when(st.Timeline != lock.Timeline,
		fmt.Sprintf("%s is on timeline %d", r.Member, lock.Timeline),
		fmt.Sprintf("%s is on timeline %d, the lock is on %d", r.Member, st.Timeline,
			lock.Timeline))
	if !r.AcceptLoss {
		c.add("every acknowledged commit is on a member that answers", failoverMissing(c.in, c.p))
		c.furthest(o)
	}
}

// furthest checks that no other standby has more than one that is promoted by name: nobody else
// would be promoted for it.
func (c *checker) furthest(named Observation) {
	lock, best := c.in.State.Lock, named
	for _, m := range DataMembers(c.in.State.Members) {
		o, ok := freshReport(c.in, c.p, m.Name)
		if ok && o.Member.Phase == PhaseStandby && o.Member.Timeline == lock.Timeline &&
			o.Member.LSN > best.Member.LSN {
			best = o
		}
	}
	c.when(best.Node != named.Node, "no other standby has more than "+named.Node,
		fmt.Sprintf("%s lacks %s that %s has", named.Node,
			byteText(best.Member.LSN-named.Member.LSN), best.Node))
}
