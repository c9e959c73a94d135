package election

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Input is all that a decision rests on. Ages are measured by the caller; nothing here is a time
// of day.
type Input struct {
	State *State
	// Observations hold one entry for each member; one that never reported has no phase, and the
	// age of the leadership as its age.
	Observations []Observation
	Requests     []Request
	// ChangeAges are how long ago the unplanned changes were that this node has seen.
	ChangeAges []time.Duration
}

// ActionKind says what the controller does next.
type ActionKind string

// The actions.
const (
	ActHold     ActionKind = "hold"     // nothing to do, or nothing can be done: see Summary
	ActBegin    ActionKind = "begin"    // begin the intent
	ActContinue ActionKind = "continue" // go on with the intent that stands
)

// RequestRefusal is the answer to a request that is not carried out.
type RequestRefusal struct {
	ID  uint64
	Why string
}

// Decision is what to do and why, in words for a DBA.
type Decision struct {
	Do ActionKind `json:"do"`
	// Intent is what to begin or continue; its epoch is 0 if it is to begin.
	Intent *Intent `json:"intent,omitempty"`
	// RequestID is the request that the new intent carries out; 0: none.
	RequestID uint64           `json:"request_id,omitempty"`
	Summary   string           `json:"summary"`
	Evidence  []string         `json:"evidence,omitempty"`
	Refusals  []RequestRefusal `json:"refusals,omitempty"`
	// IsPrimaryUsable tells that some node uses the primary, or its agent sees it in its place.
	IsPrimaryUsable bool `json:"primary_usable"`
	// WasUsable tells that some node has seen that under this epoch; UsableAge is how long ago.
	WasUsable bool          `json:"-"`
	UsableAge time.Duration `json:"-"`
	// IsCutOff tells that most proxies cannot use it all the same.
	IsCutOff bool `json:"cut_off,omitempty"`
}

// Decide is the rule of the leader: what happens next, from what is known. It is pure.
func Decide(in Input, p Policy) Decision {
	s := in.State
	switch {
	case s.Intent != nil:
		return decideContinue(in)
	case s.Lock == nil:
		return decideBootstrap(in, p)
	}
	v := judgePrimary(in, p)
	d := decideAlone(in, p, v)
	if d.Do == ActHold {
		d = decideRequests(in, p, v, d)
	} else {
		d.Refusals = refuseAll(in.Requests, d.Summary)
	}
	// A word that is too old to speak for a node does not say that the primary can be used now.
	d.IsPrimaryUsable = v.isUsable && v.usableAge <= p.ReportFresh
	d.WasUsable, d.UsableAge = lastUsable(in)
	d.IsCutOff = v.cut.why != ""
	return d
}

// decideAlone is what happens without any request.
func decideAlone(in Input, p Policy, v verdict) Decision {
	switch {
	case v.restarted != "":
		return decideUnplanned(in, p, v, Intent{
			Kind: IntentRestart, To: in.State.Lock.Holder, Cause: v.restarted,
		})
	case v.isDead:
		return decideDead(in, p, v)
	case v.cut.why != "":
		return decideCut(in, p, v)
	}
	return Decision{Do: ActHold, Summary: v.why, Evidence: v.evidence}
}

// decideContinue goes on with the change that stands; requests wait for no second one.
func decideContinue(in Input) Decision {
	it := *in.State.Intent
	d := Decision{Do: ActContinue, Intent: &it, Summary: "continue " + intentText(it)}
	rest := slices.DeleteFunc(slices.Clone(in.Requests), func(r Request) bool {
		return mayTakeOver(it, r) // the transition looks at it
	})
	d.Refusals = refuseAll(rest, "a change is in progress: "+intentText(it))
	return d
}

// decideBootstrap makes the first primary once every data member is known to be empty, or takes
// over one that was adopted.
func decideBootstrap(in Input, p Policy) Decision {
	if d, ok := decideAdopt(in, p); ok {
		return d
	}
	d := Decision{Do: ActHold}
	d.Refusals = refuseAll(in.Requests, "there is no primary yet")
	var wait, wrong []string
	to := ""
	for _, m := range DataMembers(in.State.Members) {
		o, ok := freshReport(in, p, m.Name)
		switch {
		case !ok || o.Member.Phase == "" || o.Member.Phase == PhaseUnknown:
			wait = append(wait, m.Name+" has not reported")
		case o.Member.Phase == PhaseForeign:
			wrong = append(wrong, m.Name+" has data that this cluster did not make")
		case o.Member.Phase != PhaseEmpty:
			wrong = append(wrong, fmt.Sprintf("%s has data already (%s, system id %s)", m.Name,
				o.Member.Phase, orUnknown(o.Member.SystemID)))
		case to == "" && !m.NoFailover:
			to = m.Name
		}
	}
	switch {
	case len(wrong) > 0:
		d.Summary = "no bootstrap: the group has no record of a primary, but not every data" +
			" directory is empty"
		d.Evidence = append(wrong, wait...)
	case len(wait) > 0:
		d.Summary = "bootstrap waits for all members"
		d.Evidence = wait
	case to == "":
		d.Summary = "no bootstrap: no member may be the primary"
	default:
		d.Do = ActBegin
		d.Summary = "all data directories are empty: " + to + " becomes the first primary"
		d.Intent = &Intent{Kind: IntentBootstrap, To: to, Cause: "first start of the cluster"}
	}
	return d
}

// decideDead answers a dead primary: failover if one is possible, else a restart in place.
func decideDead(in Input, p Policy, v verdict) Decision {
	if m := in.State.Maintenance; m != nil {
		return Decision{
			Do: ActHold, Evidence: v.evidence,
			Summary: v.why + ", and nothing is promoted: " + m.text(),
		}
	}
	why := failoverMissing(in, p)
	if why == "" {
		return decideUnplanned(in, p, v, Intent{Kind: IntentFailover, Cause: v.why})
	}
	if holderCanStart(in, p) {
		return decideUnplanned(in, p, v, Intent{
			Kind: IntentRestart, To: in.State.Lock.Holder,
			Cause: v.why + "; restarted in place: " + why,
		})
	}
	return Decision{
		Do: ActHold, Summary: v.why + ", and nothing is promoted: " + why, Evidence: v.evidence,
	}
}

// decideUnplanned begins a change that nobody asked for, unless there were too many.
func decideUnplanned(in Input, p Policy, v verdict, it Intent) Decision {
	lock := in.State.Lock
	it.From, it.FromEpoch = lock.Holder, lock.Epoch
	d := Decision{Do: ActBegin, Intent: &it, Evidence: v.evidence}
	d.Summary = fmt.Sprintf("%s from %s: %s", it.Kind, it.From, it.Cause)
	recent := 0
	for _, age := range in.ChangeAges {
		if age < p.FlapWindow {
			recent++
		}
	}
	if p.MaxChanges > 0 && recent >= p.MaxChanges {
		d.Do, d.Intent = ActHold, nil
		d.Summary = fmt.Sprintf("%s; held back: %d unplanned changes within %s are the limit",
			it.Cause, p.MaxChanges, p.FlapWindow)
	}
	return d
}

// decideRequests carries out the first request that can be; nothing else is to be done.
func decideRequests(in Input, p Policy, v verdict, d Decision) Decision {
	for i, r := range in.Requests {
		if v.isDead && r.Kind != RequestFailover {
			d.Refusals = append(d.Refusals, RequestRefusal{r.ID, d.Summary})
			continue
		}
		to, checks := CheckRequest(in, p, r)
		why := firstWrong(checks)
		if why == "" {
			why = notByLock(*in.State.Lock, r)
		}
		if why != "" {
			d.Refusals = append(d.Refusals, RequestRefusal{r.ID, why})
			continue
		}
		it := requestIntent(*in.State.Lock, r, to)
		d.Do, d.Intent, d.RequestID = ActBegin, &it, r.ID
		d.Summary = intentText(it) + ": " + it.Cause
		rest := refuseAll(in.Requests[i+1:], "a change is in progress: "+intentText(it))
		d.Refusals = append(d.Refusals, rest...)
		break
	}
	return d
}

// notByLock tells why no change of the lock can carry a request out, though it was asked for as
// one: the primary has changed since. An intent to restart another member than the holder would
// stop the holder and never become a lock.
func notByLock(lock Lock, r Request) string {
	switch {
	case r.Kind == RequestRestart && r.Member != lock.Holder:
		return fmt.Sprintf("%s is not the primary any more, %s is: ask again to restart %s as a"+
			" standby", r.Member, lock.Holder, r.Member)
	case r.Kind == RequestReinit:
		return "a standby is cloned anew by an order to it, not by a change of the primary"
	}
	return ""
}

// requestIntent is the change that carries a request out.
func requestIntent(lock Lock, r Request, to string) Intent {
	it := Intent{From: lock.Holder, FromEpoch: lock.Epoch, Cause: "asked for by an operator",
		Request: r.Token}
	switch r.Kind {
	case RequestRestart:
		it.Kind, it.To, it.StopsHolder = IntentRestart, to, true
	case RequestFailover:
		it.Kind, it.Only, it.AcceptLoss = IntentFailover, to, r.AcceptLoss
		if r.AcceptLoss {
			it.Cause += ", who accepts the loss of commits"
		}
	default:
		it.Kind, it.To = IntentSwitchover, to
	}
	return it
}

// failoverMissing tells why a failover would find no candidate; empty if one is likely. It looks
// at reports only; the recruits' own answers decide.
func failoverMissing(in Input, p Policy) string {
	lock := in.State.Lock
	sel := Selection{
		Lock: *lock, Sync: SyncRules(in.State, p), Silent: map[string]string{},
	}
	// Positions are still moving: only whether somebody could be chosen counts.
	sel.Lock.PromotionLSN = 0
	if in.State.Intent != nil {
		sel.Tried = triedBut(in.State.Intent.Tried, lock.Holder)
	}
	for _, m := range DataMembers(in.State.Members) {
		if m.Name == lock.Holder {
			continue
		}
		o, ok := freshReport(in, p, m.Name)
		st := o.Member
		isTried := slices.Contains(sel.Tried, m.Name)
		switch {
		case !ok:
			sel.Silent[m.Name] = "its agent is silent"
		case st.DiskBad != "":
			sel.Silent[m.Name] = "its data disk takes no writes: " + st.DiskBad
		case st.Phase == PhaseStandby, st.Phase == PhaseRecovering,
			st.Phase == PhasePrimary && isTried:
			sel.Recruits = append(sel.Recruits, Recruit{Member: m, Timeline: st.Timeline})
		default:
			sel.Silent[m.Name] = "it is " + phaseText(st.Phase)
		}
	}
	return Choose(sel).Missing
}

// holderCanStart tells that the holder's agent is there and its server is stopped.
func holderCanStart(in Input, p Policy) bool {
	o, ok := freshReport(in, p, in.State.Lock.Holder)
	return ok && o.Member.Phase == PhaseStopped
}

// holderIsBack tells that the holder's server is in its place or can be started there. One that
// somebody has started again has all its commits, too; its incarnation is entered with a new epoch.
func holderIsBack(in Input, p Policy) bool {
	return holderCanStart(in, p) || holderRuns(in, p)
}

// holderRuns tells that the holder's server is in its place.
func holderRuns(in Input, p Policy) bool {
	o, ok := freshReport(in, p, in.State.Lock.Holder)
	return ok && o.Member.Phase == PhasePrimary && o.Member.Timeline == in.State.Lock.Timeline
}

func refuseAll(requests []Request, why string) []RequestRefusal {
	var out []RequestRefusal
	for _, r := range requests {
		out = append(out, RequestRefusal{r.ID, why})
	}
	return out
}

func intentText(it Intent) string {
	var b strings.Builder
	b.WriteString(string(it.Kind))
	if it.From != "" {
		b.WriteString(" from " + it.From)
	}
	if it.To != "" {
		b.WriteString(" to " + it.To)
	}
	if it.Epoch != 0 {
		fmt.Fprintf(&b, " (epoch %d)", it.Epoch)
	}
	return b.String()
}

func phaseText(p MemberPhase) string {
	if p == "" {
		return "unknown"
	}
	return string(p)
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
