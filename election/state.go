package election

import (
	"fmt"
	"slices"
)

// historyMax bounds the lock's history.
const historyMax = 500

// membersMax bounds the members of a cluster.
const membersMax = 100

// evidenceKept is how many of the newest changes keep their evidence.
const evidenceKept = 50

// evidenceMax bounds the lines of evidence for a change.
const evidenceMax = 50

// phasesMax bounds the phases of a change.
const phasesMax = 50

// textBytesMax bounds a text that a command brings into the state.
const textBytesMax = 2000

// apply carries a command out on a copy; s is never changed, so readers of it need no lock.
func apply(s *State, c Command) (*State, Result) {
	switch {
	case c.Kind == CommandRegister && c.Register != nil:
		return applyRegister(s, c.Register)
	case c.Kind == CommandBegin && c.Begin != nil:
		return applyBegin(s, c.Begin)
	case c.Kind == CommandTarget && c.Target != nil:
		return applyTarget(s, c.Target)
	case c.Kind == CommandCommitLock && c.Commit != nil:
		return applyCommit(s, c.Commit)
	case c.Kind == CommandSync && c.Sync != nil:
		return applySync(s, c.Sync)
	case c.Kind == CommandMaintenance && c.Maintenance != nil:
		return applyMaintenance(s, c.Maintenance)
	case c.Kind == CommandMembers && c.Members != nil:
		return applyMembers(s, c.Members)
	case c.Kind == CommandVoters && c.Voters != nil:
		return applyVoters(s, c.Voters)
	case c.Kind == CommandAnnounce && c.Announce != nil:
		return applyAnnounce(s, c.Announce)
	}
	return s, refuse("command %q is not known", c.Kind)
}

func refuse(format string, args ...any) Result {
	return Result{V: Version, Refused: fmt.Sprintf(format, args...)}
}

func applyRegister(s *State, c *RegisterMembers) (*State, Result) {
	if s.Cluster != "" && s.Cluster != c.Cluster {
		return s, refuse("the cluster is %q, not %q", s.Cluster, c.Cluster)
	}
	if len(c.Members) > membersMax {
		return s, refuse("more than %d members", membersMax)
	}
	if why := registerRefused(s, c); why != "" {
		return s, refuse("%s", why)
	}
	if s.Cluster == c.Cluster && slices.Equal(s.Members, c.Members) {
		return s, Result{V: Version}
	}
	next := *s
	next.V = Version
	next.Cluster = c.Cluster
	next.Members = slices.Clone(c.Members)
	return &next, Result{V: Version}
}

// applyBegin gives the intent an epoch from a counter that is never reused (DESIGN.md I1).
func applyBegin(s *State, c *BeginIntent) (*State, Result) {
	switch c.Kind {
	case IntentBootstrap, IntentFailover, IntentSwitchover, IntentRestart:
	default:
		return s, refuse("an intent of kind %q is not known", c.Kind)
	}
	if max(len(c.Request), len(c.Cause), len(c.From), len(c.To), len(c.Only)) > textBytesMax {
		return s, refuse("a text is longer than %d bytes", textBytesMax)
	}
	if why := evidenceTooLong(c.Evidence); why != "" {
		return s, refuse("%s", why)
	}
	if why := slotsTooMany(c.Slots); why != "" {
		return s, refuse("%s", why)
	}
	if i := s.Intent; i != nil && c.Request != "" && i.Request == c.Request {
		return s, Result{V: Version, Epoch: i.Epoch}
	}
	if have := lockEpoch(s); have != c.FromEpoch {
		return s, refuse("the lock is of epoch %d, not %d", have, c.FromEpoch)
	}
	if have := intentEpoch(s); have != c.Replaces {
		return s, refuse("the intent is of epoch %d, not %d", have, c.Replaces)
	}
	next := *s
	next.LastEpoch++
	intent := &Intent{
		Epoch: next.LastEpoch, Kind: c.Kind, From: c.From, FromEpoch: c.FromEpoch, To: c.To,
		Cause: c.Cause, Evidence: c.Evidence, Request: c.Request,
		StopsHolder: c.StopsHolder, Only: c.Only, AcceptLoss: c.AcceptLoss, Slots: c.Slots,
		Auto: c.Auto,
	}
	if old := s.Intent; old != nil {
		intent.Tried = slices.Clone(old.Tried)
		if old.To != "" && !slices.Contains(intent.Tried, old.To) {
			intent.Tried = append(intent.Tried, old.To)
		}
	}
	next.Intent, next.Ahead = intent, nil
	return &next, Result{V: Version, Epoch: intent.Epoch}
}

// evidenceTooLong tells which bound a list of evidence breaks; empty if none.
func evidenceTooLong(lines []string) string {
	if len(lines) > evidenceMax {
		return fmt.Sprintf("there are more than %d lines of evidence", evidenceMax)
	}
	for _, l := range lines {
		if len(l) > textBytesMax {
			return fmt.Sprintf("a line of evidence is longer than %d bytes", textBytesMax)
		}
	}
	return ""
}

// slotsTooMany tells which bound a list of slots breaks; empty if none.
func slotsTooMany(slots []LogicalSlot) string {
	if len(slots) > logicalMax {
		return fmt.Sprintf("there are more than %d slots", logicalMax)
	}
	for _, s := range slots {
		if max(len(s.Name), len(s.Bad)) > textBytesMax {
			return fmt.Sprintf("a text about a slot is longer than %d bytes", textBytesMax)
		}
	}
	return ""
}

func applyTarget(s *State, c *SetTarget) (*State, Result) {
	if c.To == "" || len(c.To) > textBytesMax {
		return s, refuse("a target needs a name of at most %d bytes", textBytesMax)
	}
	i := s.Intent
	if i == nil || i.Epoch != c.Epoch {
		return s, refuse("the intent of epoch %d is no longer current", c.Epoch)
	}
	if i.To == c.To {
		return s, Result{V: Version, Epoch: c.Epoch}
	}
	if i.To != "" {
		return s, refuse("the target of epoch %d is %q already", c.Epoch, i.To)
	}
	next, intent := *s, *i
	intent.To = c.To
	next.Intent = &intent
	return &next, Result{V: Version, Epoch: c.Epoch}
}

// applyCommit enters the lock of the current intent and ends the intent.
func applyCommit(s *State, c *CommitLock) (*State, Result) {
	if lockEpoch(s) == c.Lock.Epoch && s.Lock != nil && *s.Lock == c.Lock {
		return s, Result{V: Version, Epoch: c.Lock.Epoch}
	}
	i := s.Intent
	if i == nil || i.Epoch != c.Lock.Epoch {
		return s, refuse("the intent of epoch %d is no longer current", c.Lock.Epoch)
	}
	if i.To != c.Lock.Holder || i.To == "" {
		return s, refuse("the intent of epoch %d is for %q, not %q", i.Epoch, i.To,
			c.Lock.Holder)
	}
	if len(c.SystemID) > textBytesMax || len(c.Lock.Incarnation) > textBytesMax ||
		len(c.PhasesMS) > phasesMax {
		return s, refuse("a text is longer than %d bytes, or there are more than %d phases",
			textBytesMax, phasesMax)
	}
	if why := evidenceTooLong(c.Slots); why != "" {
		return s, refuse("slots: %s", why)
	}
	if c.Sync != nil {
		if why := syncRuleWrong(otherNames(s.Members, c.Lock.Holder), *c.Sync); why != "" {
			return s, refuse("sync set: %s", why)
		}
	}
	if c.SystemID != "" && s.SystemID != "" && c.SystemID != s.SystemID {
		return s, refuse("the system identifier is %s, not %s", s.SystemID, c.SystemID)
	}
	next := *s
	lock := c.Lock
	next.Lock, next.Intent = &lock, nil
	next.Sync = syncAfterCommit(s, lock, c.Sync)
	if c.SystemID != "" {
		next.SystemID = c.SystemID
	}
	change := Change{
		Lock: lock, Kind: i.Kind, From: i.From, Cause: i.Cause, Evidence: i.Evidence,
		At: c.At, PhasesMS: c.PhasesMS, Slots: c.Slots, Request: i.Request,
		Asked: i.Kind == IntentSwitchover && !i.Auto || i.StopsHolder || i.Only != "",
	}
	next.History = append(slices.Clone(s.History), change)
	n := len(next.History)
	if n > evidenceKept {
		next.History[n-evidenceKept-1].Evidence, next.History[n-evidenceKept-1].Slots = nil, nil
	}
	if n > historyMax {
		next.History = slices.Clone(next.History[n-historyMax:])
	}
	return &next, Result{V: Version, Epoch: lock.Epoch}
}

func lockEpoch(s *State) uint64 {
	if s.Lock == nil {
		return 0
	}
	return s.Lock.Epoch
}

func intentEpoch(s *State) uint64 {
	if s.Intent == nil {
		return 0
	}
	return s.Intent.Epoch
}
