package election

import (
	"fmt"
	"strings"
	"time"
)

// verdict is what the reports say about the primary that the lock names.
type verdict struct {
	isDead bool
	// restarted is not empty if the holder's server runs, but was started by somebody else.
	restarted string
	why       string
	evidence  []string
	isUsable  bool
	usableAge time.Duration
	// cut tells that it lives and is cut off; streaming are the standbys that stream from it.
	cut       cutOff
	streaming []string
}

// survey counts what the nodes see of the primary.
type survey struct {
	ok, refused, blind, silent int
	// failing counts the nodes that cannot use the primary either, and not yet for as long as it
	// takes to be blind.
	failing int
	// okNow counts the nodes whose word that the primary works is newer than a refusal could be.
	okNow     int
	streaming []string
	// isHolderGone tells that the holder's node is silent, or cannot use its own server.
	isHolderGone bool
	evidence     []string
}

// judgePrimary applies DESIGN 5: proof counts at once, timeouts need repetition and that no
// standby streams; a stale report never speaks for the primary.
func judgePrimary(in Input, p Policy) verdict {
	lock := in.State.Lock
	var v verdict
	v.isUsable, v.usableAge = primaryUsable(in)
	sv := surveyNodes(in, p)
	v.evidence, v.streaming, v.cut = sv.evidence, sv.streaming, judgeCut(in, p)
	if why := proofByAgent(in, p); why != "" {
		v.isDead, v.why = true, why
		return v
	}
	if v.restarted = restartedBySomebody(in, p); v.restarted != "" {
		v.why = v.restarted
		return v
	}
	majority := len(in.State.Members)/2 + 1
	// Who is silent cannot use it either. A node that may still find that it can is waited for: on
	// a network that loses much, one is blind and one silent by chance.
	isBlind := sv.blind >= majority || sv.blind > 0 && sv.ok == 0 && sv.failing == 0 &&
		sv.blind+sv.silent >= majority
	isRefused := sv.refused >= majority && sv.okNow == 0
	switch {
	case (isBlind || isRefused) && len(sv.streaming) > 0:
		v.why = fmt.Sprintf("nodes cannot use %s, but %s streams from it: a fault between the"+
			" nodes, no failover", lock.Holder, strings.Join(sv.streaming, ", "))
	case isRefused:
		v.isDead, v.why = true, lock.Holder+" refuses connections on all sides"
	case isBlind && sv.isHolderGone:
		v.isDead = true
		v.why = fmt.Sprintf("a majority cannot use %s and no standby streams from it", lock.Holder)
	case isBlind:
		v.why = fmt.Sprintf("a majority cannot use %s and no standby streams from it, but its own"+
			" node has not given it up: no failover", lock.Holder)
	default:
		v.why = fmt.Sprintf("%s is the primary under epoch %d", lock.Holder, lock.Epoch)
	}
	return v
}

// primaryUsable returns the age of the newest sign that the primary works.
func primaryUsable(in Input) (bool, time.Duration) {
	lock := in.State.Lock
	found, age := false, time.Duration(0)
	for _, o := range in.Observations {
		isSign := o.Epoch == lock.Epoch && (o.Probe == ProbeOK || o.Node == lock.Holder &&
			o.Member.Phase == PhasePrimary && o.Member.Incarnation == lock.Incarnation)
		if isSign && (!found || o.Age < age) {
			found, age = true, o.Age
		}
	}
	return found, age
}

// lastUsable returns how long ago some node has last seen that the primary works. Nodes whose
// newest probe failed know it too, so that a leader which was elected after that can tell.
func lastUsable(in Input) (bool, time.Duration) {
	found, ago := primaryUsable(in)
	for _, o := range in.Observations {
		seen := o.Age + o.UsableAgo
		if o.Epoch == in.State.Lock.Epoch && o.UsableAgo > 0 && (!found || seen < ago) {
			found, ago = true, seen
		}
	}
	return found, ago
}

// surveyNodes counts the nodes' probes that were made under the lock's epoch.
func surveyNodes(in Input, p Policy) survey {
	lock := in.State.Lock
	var sv survey
	upstream := ""
	for _, m := range in.State.Members {
		if m.Name == lock.Holder {
			upstream = m.Postgres
		}
	}
	for _, m := range in.State.Members {
		o, isFresh := freshReport(in, p, m.Name)
		if o.isUnheard(p) {
			sv.evidence = append(sv.evidence, m.Name+": not heard yet by this leader")
			continue
		}
		if !isFresh {
			sv.silent++
			sv.isHolderGone = sv.isHolderGone || m.Name == lock.Holder
			sv.evidence = append(sv.evidence, m.Name+": silent")
			continue
		}
		isBlind := false
		text := "has not probed this epoch"
		if o.Epoch == lock.Epoch && o.Probe != ProbeNone && o.Probe != "" {
			text = fmt.Sprintf("%s (%d in a row)", o.Probe, o.ProbeCount)
			switch {
			case o.Probe == ProbeOK:
				sv.ok++
				if o.Age <= p.ProofFresh {
					sv.okNow++
				}
			case o.Probe == ProbeRefused:
				sv.refused++
				isBlind = o.ProbeCount >= p.ProbeRepeats
			default:
				isBlind = o.ProbeCount >= p.ProbeRepeats
			}
		}
		switch {
		case isBlind:
			sv.blind++
			sv.isHolderGone = sv.isHolderGone || m.Name == lock.Holder
		case o.Epoch == lock.Epoch && isUnanswered(o.Probe):
			sv.failing++
		}
		st := o.Member
		if m.Postgres != "" {
			text += ", server " + phaseText(st.Phase)
		}
		if m.Name != lock.Holder && st.Phase == PhaseStandby && st.Streaming &&
			(st.Upstream == "" || st.Upstream == upstream) {
			sv.streaming = append(sv.streaming, m.Name)
			text += ", streaming"
		}
		sv.evidence = append(sv.evidence, m.Name+": probe "+text)
	}
	return sv
}

// isUnheard tells that a leader that has just begun has not heard of a node, or only what that said
// long before: that it is silent is not known yet.
func (o *Observation) isUnheard(p Policy) bool {
	if o.V == 0 {
		return o.Node != "" && o.Age <= p.ProofFresh
	}
	return o.Age > p.ReportFresh && o.ledFor > 0 && o.ledFor <= p.ProofFresh
}

// proofByAgent tells that the holder's own agent says that its server is gone.
func proofByAgent(in Input, p Policy) string {
	lock := in.State.Lock
	o, ok := holderReport(in, p)
	if !ok {
		return ""
	}
	if o.Member.DiskBad != "" {
		return fmt.Sprintf("the agent of %s says that its data disk takes no writes: %s",
			lock.Holder, o.Member.DiskBad)
	}
	switch o.Member.Phase {
	case PhaseStopped:
		return fmt.Sprintf("the agent of %s says that its postmaster is gone", lock.Holder)
	case PhaseEmpty, PhaseForeign, PhaseCloning, PhaseRewind:
		return fmt.Sprintf("the agent of %s says that its data directory is %s", lock.Holder,
			o.Member.Phase)
	case PhaseStandby:
		// A sample from before the promotion has the lock's incarnation: no proof.
		if o.Member.Incarnation != "" && o.Member.Incarnation != lock.Incarnation {
			return fmt.Sprintf("the agent of %s says that it runs as a standby", lock.Holder)
		}
	}
	return ""
}

// restartedBySomebody tells that the holder runs as a primary, but in another incarnation than
// the lock's: transaction ids may have been given out twice (DESIGN 10.8).
func restartedBySomebody(in Input, p Policy) string {
	lock := in.State.Lock
	o, ok := holderReport(in, p)
	if !ok || o.Member.Phase != PhasePrimary || o.Member.Incarnation == "" ||
		o.Member.Incarnation == lock.Incarnation {
		return ""
	}
	for _, c := range in.State.History {
		if c.Lock.Holder == lock.Holder && c.Lock.Incarnation == o.Member.Incarnation {
			return "" // an old sample
		}
	}
	return fmt.Sprintf("the server of %s was started again by somebody else", lock.Holder)
}

// holderReport returns the holder's report if it is fresh and was made under the lock, after the
// order that led to it.
func holderReport(in Input, p Policy) (Observation, bool) {
	lock := in.State.Lock
	o, ok := freshReport(in, p, lock.Holder)
	if !ok || o.Epoch != lock.Epoch || o.Member.Pledged != 0 && o.Member.Pledged < lock.Epoch {
		return Observation{}, false
	}
	return o, true
}

// freshReport returns the newest report of a node if it is young enough to speak for the node.
func freshReport(in Input, p Policy, node string) (Observation, bool) {
	for _, o := range in.Observations {
		if o.Node == node {
			return o, o.Age <= p.ReportFresh && o.V != 0
		}
	}
	return Observation{}, false
}
