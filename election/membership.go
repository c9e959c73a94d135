package election

import (
	"fmt"
	"slices"
	"strings"
)

// This file is the membership as pure functions over the replicated state. Who votes on leases is
// a set with a version: one voter joins or leaves at a time, and a set endorses nothing before the
// one before it can grant nothing any more (DESIGN 10.3, DESIGN.md I60 to I67).

// VoterSet is who votes on leases and endorsements.
type VoterSet struct {
	// Version counts the changes. The first set, of all members, has version 0.
	Version uint64   `json:"version"`
	Names   []string `json:"names"`
	// Prev is the set before, until a majority of it has durably taken this version and what it
	// promised under older ones has ended: before that nothing is endorsed. Empty is settled.
	Prev []string `json:"prev,omitempty"`
}

// MemberChangeKind says what becomes of the member that a change names.
type MemberChangeKind string

// The kinds of changes.
const (
	MemberAdd    MemberChangeKind = "add"
	MemberRemove MemberChangeKind = "remove"
)

// MemberChange is the change of the membership that is under way; there is one at a time. The Raft
// leader carries it out step by step, and the next leader goes on from the state alone.
type MemberChange struct {
	Kind   MemberChangeKind `json:"kind"`
	Member Member           `json:"member"`
	// Replaces is the member that is removed once this one was added.
	Replaces string `json:"replaces,omitempty"`
	// Request is random; it tells changes of the same member apart.
	Request string `json:"request"`
}

// ChangeMembers begins a change of the members or ends the one that stands.
type ChangeMembers struct {
	Begin *MemberChange `json:"begin,omitempty"`
	// End is the request of the change that is complete, Abandon of the one that is given up.
	End     string `json:"end,omitempty"`
	Abandon string `json:"abandon,omitempty"`
}

// ChangeVoters changes the voter set by one voter, or settles it.
type ChangeVoters struct {
	// Version is that of the set which the sender saw.
	Version uint64 `json:"version"`
	Add     string `json:"add,omitempty"`
	Remove  string `json:"remove,omitempty"`
	Settle  bool   `json:"settle,omitempty"`
}

// memberNames are the members' names.
func memberNames(members []Member) []string {
	var out []string
	for _, m := range members {
		out = append(out, m.Name)
	}
	return out
}

// memberOf is the member of that name.
func memberOf(members []Member, name string) (Member, bool) {
	i := slices.IndexFunc(members, func(m Member) bool { return m.Name == name })
	if i < 0 {
		return Member{Name: name}, false
	}
	return members[i], true
}

// voterNames are the voters of the current set.
func voterNames(s *State) []string {
	if s.Voters == nil {
		return memberNames(s.Members)
	}
	return s.Voters.Names
}

// VoterNames are the voters of the current set, and its version.
func (s *State) VoterNames() (version uint64, names []string) {
	return setVersion(s), slices.Clone(voterNames(s))
}

// MemberChangeText says which change of the members is under way; empty if none.
func (s *State) MemberChangeText() string {
	if s.MemberChange == nil {
		return ""
	}
	return changeText(s.MemberChange)
}

// setVersion is the version of the current voter set.
func setVersion(s *State) uint64 {
	if s.Voters == nil {
		return 0
	}
	return s.Voters.Version
}

// isSettled tells that the current set may endorse.
func isSettled(s *State) bool { return s.Voters == nil || len(s.Voters.Prev) == 0 }

// isJoining tells that the member is being added.
func isJoining(s *State, name string) bool {
	c := s.MemberChange
	return c != nil && c.Kind == MemberAdd && c.Member.Name == name
}

// isLeaving tells that the member is being removed.
func isLeaving(s *State, name string) bool {
	c := s.MemberChange
	return c != nil && c.Kind == MemberRemove && c.Member.Name == name
}

// stayingMembers are the members but the one that is being removed.
func stayingMembers(s *State) []Member {
	return slices.DeleteFunc(slices.Clone(s.Members), func(m Member) bool {
		return isLeaving(s, m.Name)
	})
}

// applyMembers begins, ends or gives up a change of the members.
func applyMembers(s *State, c *ChangeMembers) (*State, Result) {
	switch {
	case c.Begin != nil && c.Begin.Kind == MemberAdd:
		return applyMemberAdd(s, c.Begin)
	case c.Begin != nil && c.Begin.Kind == MemberRemove:
		return applyMemberRemove(s, c.Begin)
	case c.Begin != nil:
		return s, refuse("a change of members of kind %q is not known", c.Begin.Kind)
	}
	now := s.MemberChange
	if request := max(c.End, c.Abandon); now == nil || request == "" || now.Request != request {
		return s, Result{V: Version} // it has ended already
	}
	next := *s
	if c.Abandon != "" {
		next.MemberChange = nil
		return &next, Result{V: Version}
	}
	return applyMemberEnd(s, &next)
}

// beginRefused tells why a change of members cannot begin, whatever it is.
func beginRefused(s *State, c *MemberChange) string {
	m := c.Member
	longest := max(len(m.Name), len(m.Address), len(m.Postgres), len(c.Replaces), len(c.Request))
	switch {
	case len(s.Members) == 0:
		return "the group is not formed yet"
	case m.Name == "" || c.Request == "":
		return "a change of members needs a name and a request"
	case longest > textBytesMax:
		return fmt.Sprintf("a text is longer than %d bytes", textBytesMax)
	case s.Intent != nil:
		return "a change of the primary is under way: " + intentText(*s.Intent)
	}
	return ""
}

func applyMemberAdd(s *State, c *MemberChange) (*State, Result) {
	if now := s.MemberChange; now != nil && now.Request == c.Request {
		return s, Result{V: Version}
	}
	if why := beginRefused(s, c); why != "" {
		return s, refuse("%s", why)
	}
	if s.MemberChange != nil {
		return s, refuse("%s", changeText(s.MemberChange))
	}
	if len(s.Members) >= membersMax {
		return s, refuse("there are %d members already", membersMax)
	}
	m := c.Member
	for _, o := range s.Members {
		switch {
		case o.Name == m.Name:
			return s, refuse("%s is a member already", m.Name)
		case o.Address == m.Address:
			return s, refuse("%s has the address %s already", o.Name, m.Address)
		case m.Postgres != "" && o.Postgres == m.Postgres:
			return s, refuse("%s has the PostgreSQL address %s already", o.Name, m.Postgres)
		}
	}
	if c.Replaces != "" {
		if why := removeRefused(s, c.Replaces); why != "" {
			return s, refuse("%s", why)
		}
	}
	next, change := *s, *c
	pinVoters(s, &next)
	next.Members = append(slices.Clone(s.Members), m)
	next.MemberChange = &change
	return &next, Result{V: Version}
}

// pinVoters writes the first set down before the members change, since it follows from them.
func pinVoters(s, next *State) {
	if s.Voters == nil {
		next.Voters = &VoterSet{Names: memberNames(s.Members)}
	}
}

// removeRefused tells why a member cannot be removed, as far as the state tells.
func removeRefused(s *State, name string) string {
	_, isMember := memberOf(s.Members, name)
	switch {
	case !isMember:
		return fmt.Sprintf("there is no member %q; members are %s", name,
			strings.Join(memberNames(s.Members), ", "))
	case s.Lock != nil && s.Lock.Holder == name:
		return name + " is the primary: switch over to another member first"
	case len(s.Members) == 1:
		return name + " is the only member"
	}
	return ""
}

func applyMemberRemove(s *State, c *MemberChange) (*State, Result) {
	now := s.MemberChange
	if now != nil && now.Request == c.Request {
		return s, Result{V: Version}
	}
	if why := beginRefused(s, c); why != "" {
		return s, refuse("%s", why)
	}
	// One that is being added may be given up.
	if now != nil && !isJoining(s, c.Member.Name) {
		return s, refuse("%s", changeText(now))
	}
	if why := removeRefused(s, c.Member.Name); why != "" {
		return s, refuse("%s", why)
	}
	next := *s
	pinVoters(s, &next)
	m, _ := memberOf(s.Members, c.Member.Name)
	next.MemberChange = &MemberChange{Kind: MemberRemove, Member: m, Request: c.Request}
	return &next, Result{V: Version}
}

// applyMemberEnd ends the change that stands; the voter set has followed it.
func applyMemberEnd(s, next *State) (*State, Result) {
	c := s.MemberChange
	name := c.Member.Name
	isVoter := slices.Contains(voterNames(s), name)
	if isVoter != (c.Kind == MemberAdd) || !isSettled(s) {
		return s, refuse("the voter set does not agree with the change of %s yet", name)
	}
	next.MemberChange = nil
	if c.Kind == MemberRemove {
		if s.Intent != nil || lockHolder(s) == name {
			return s, refuse("%s is the primary, or a change of the primary is under way", name)
		}
		if s.Sync != nil && slices.ContainsFunc(s.Sync.Rules, func(r SyncRule) bool {
			return slices.Contains(r.Names, name)
		}) {
			return s, refuse("%s is in the sync set", name)
		}
		next.Members = slices.DeleteFunc(slices.Clone(s.Members), func(m Member) bool {
			return m.Name == name
		})
		return next, Result{V: Version}
	}
	if c.Replaces != "" && removeRefused(s, c.Replaces) == "" {
		old, _ := memberOf(s.Members, c.Replaces)
		next.MemberChange = &MemberChange{
			Kind: MemberRemove, Member: old, Request: c.Request + "/2",
		}
	}
	return next, Result{V: Version}
}

func lockHolder(s *State) string {
	if s.Lock == nil {
		return ""
	}
	return s.Lock.Holder
}

// changeText says what change of members is under way.
func changeText(c *MemberChange) string {
	verb := "added"
	if c.Kind == MemberRemove {
		verb = "removed"
	}
	return fmt.Sprintf("a change of members is under way: %s is being %s", c.Member.Name, verb)
}

// applyVoters changes the voter set. While an intent stands it does not change: which set
// endorses an epoch is the one that the log has at its intent, for every voter and coordinator
// (DESIGN.md I62).
func applyVoters(s *State, c *ChangeVoters) (*State, Result) {
	if have := setVersion(s); have != c.Version || s.Voters == nil {
		return s, refuse("the voter set is of version %d, not %d", have, c.Version)
	}
	next, v := *s, *s.Voters
	next.Voters = &v
	if c.Settle {
		if isSettled(s) {
			return s, Result{V: Version}
		}
		v.Prev = nil
		return &next, Result{V: Version}
	}
	if s.Intent != nil {
		return s, refuse("a change of the primary is under way: %s", intentText(*s.Intent))
	}
	if !isSettled(s) {
		return s, refuse("the voter set of version %d is not settled yet", c.Version)
	}
	names := slices.Clone(v.Names)
	switch _, isMember := memberOf(s.Members, c.Add); {
	case c.Add != "" && c.Remove == "" && isMember && !slices.Contains(names, c.Add):
		names = append(names, c.Add)
	case c.Remove != "" && c.Add == "" && slices.Contains(names, c.Remove) && len(names) > 1:
		names = slices.DeleteFunc(names, func(n string) bool { return n == c.Remove })
	default:
		return s, refuse("the voter set changes by one member that is, or is not, in it")
	}
	v.Prev, v.Names = v.Names, names
	v.Version++
	return &next, Result{V: Version}
}

// registerList is what a leader enters of its configuration. Names and addresses are those of the
// configuration only as long as nothing is registered; after that only what else is said about a
// member is taken from it.
func registerList(s *State, configured []Member) []Member {
	if len(s.Members) == 0 {
		return configured
	}
	out := slices.Clone(s.Members)
	for i, m := range out {
		if c, ok := memberOf(configured, m.Name); ok && c.Address == m.Address {
			out[i] = c
		}
	}
	return out
}

// registerRefused tells why a list of members cannot be registered: once members have changed at
// run time, an older release's leader would take that back.
func registerRefused(s *State, c *RegisterMembers) string {
	if s.Voters == nil {
		return ""
	}
	same := slices.EqualFunc(s.Members, c.Members, func(a, b Member) bool {
		return a.Name == b.Name && a.Address == b.Address
	})
	if !same {
		return "members have been changed at run time: see holdfast member"
	}
	return ""
}

// memberStep is the next step of the leader toward the members of the state.
type memberStep struct {
	do   memberStepKind
	name string
}

type memberStepKind string

const (
	stepNone      memberStepKind = ""
	stepSettle    memberStepKind = "settle"     // the voter set
	stepLearner   memberStepKind = "learner"    // let it follow the log
	stepRaftVoter memberStepKind = "raft-voter" // let it vote in Raft
	stepJoin      memberStepKind = "join"       // let it vote on leases
	stepLeave     memberStepKind = "leave"      // it votes on leases no more
	stepRaftLeave memberStepKind = "raft-leave" // it is in Raft no more
	stepEnd       memberStepKind = "end"        // the change is complete
	stepAbandon   memberStepKind = "abandon"    // it can never be
	stepWait      memberStepKind = "wait"       // for the member, or for the end of an intent
)

// nextMemberStep tells what comes next. inRaft has the servers of Raft's configuration, true for
// those that vote; isReady tells that a member has taken over what the others know and kept
// silent for T_P.
func nextMemberStep(s *State, inRaft map[string]bool, isReady func(string) bool) memberStep {
	if s.Voters == nil {
		return memberStep{}
	}
	if !isSettled(s) {
		return memberStep{do: stepSettle}
	}
	c := s.MemberChange
	if c != nil && c.Kind == MemberRemove && lockHolder(s) == c.Member.Name {
		return memberStep{stepAbandon, c.Member.Name}
	}
	staying := memberNames(stayingMembers(s))
	joining := joinStep(s, staying, inRaft, isReady)
	if joining.do != stepNone && joining.do != stepWait {
		return joining
	}
	for _, name := range voterNames(s) {
		if slices.Contains(staying, name) {
			continue
		}
		if s.Intent != nil {
			return memberStep{stepWait, name}
		}
		return memberStep{stepLeave, name}
	}
	for _, name := range sortedKeys(inRaft) {
		if !slices.Contains(staying, name) {
			return memberStep{stepRaftLeave, name}
		}
	}
	switch {
	case c == nil || c.Kind == MemberAdd && joining.do == stepWait:
		return joining
	case c.Kind == MemberRemove && s.Intent != nil:
		return memberStep{stepWait, c.Member.Name}
	}
	return memberStep{stepEnd, c.Member.Name}
}

// joinStep is the next step for those that are to vote and do not yet. One that waits holds up no
// other: after the loss of a quorum those that were lost may never come.
func joinStep(s *State, staying []string, inRaft map[string]bool, isReady func(string) bool,
) memberStep {
	var wait memberStep
	for _, name := range staying {
		votes, known := inRaft[name]
		isVoter := slices.Contains(voterNames(s), name)
		switch {
		case !known:
			return memberStep{stepLearner, name}
		case votes && isVoter:
		case !isReady(name), votes && s.Intent != nil:
			wait = memberStep{stepWait, name}
		case !votes:
			return memberStep{stepRaftVoter, name}
		default:
			return memberStep{stepJoin, name}
		}
	}
	return wait
}
