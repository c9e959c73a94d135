package election

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrMemberRefused tells that a change of the members was not begun, or was given up; the text
// after it says why.
var ErrMemberRefused = errors.New("change of members refused")

// MemberRequest is what an operator asks for.
type MemberRequest struct {
	Change MemberChange `json:"change"`
	// DryRun asks for the preconditions only.
	DryRun bool `json:"dry_run,omitempty"`
	// AcceptFewer removes a member though fewer standbys are left than commits are to wait for.
	AcceptFewer bool `json:"accept_fewer,omitempty"`
}

// ChangeMember adds or removes a member and returns once that is done, or with the reason why not,
// and with the preconditions. When ctx ends first, a change that was begun goes on.
func (n *Node) ChangeMember(ctx context.Context, r MemberRequest) ([]Check, error) {
	b := make([]byte, 8)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("change of members: %w", err)
	}
	r.Change.Request = hex.EncodeToString(b)
	s, _ := n.State()
	since := setVersion(s)
	for again := false; ; again = true {
		checks, err := n.askLeader(ctx, memberRequest{Version, r, again, since})
		if err == nil && !r.DryRun {
			n.seeChange(ctx, r.Change)
		}
		// The leader may change in the middle; the next one knows the request.
		if err == nil || ctx.Err() != nil || !errors.Is(err, ErrNoLeader) {
			return checks, err
		}
		if c := r.Change; c.Kind == MemberRemove && c.Member.Name == n.cfg.Name && n.IsRemoved() {
			return checks, nil // nobody of the group answers it any more
		}
		pauseFor(ctx, memberPoll)
	}
}

// seeChange waits for a moment until the state here has what the leader says is done, so that
// whoever asked sees it.
func (n *Node) seeChange(ctx context.Context, c MemberChange) {
	ctx, cancel := context.WithTimeout(ctx, seeTimeout)
	defer cancel()
	for {
		s, newer := n.State()
		if !isUnderWay(s, c.Request) && changeOutcome(s, c) == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-newer:
		}
	}
}

// askLeader hands a request to whoever leads. ErrNoLeader tells that nobody did, or not to its end.
func (n *Node) askLeader(ctx context.Context, r memberRequest) ([]Check, error) {
	if n.isLeading() {
		checks, err := n.changeMemberHere(ctx, r)
		if errors.Is(err, errNotLeader) {
			return checks, fmt.Errorf("%w: %w", ErrNoLeader, err)
		}
		return checks, err
	}
	last := ErrNoLeader
	for _, p := range n.leaderPeers() {
		var a requestAnswer
		err := p.call(ctx, "/v1/member", r, &a)
		if err == nil && a.Error != "" {
			return a.Checks, fmt.Errorf("%w%s", ErrMemberRefused,
				strings.TrimPrefix(a.Error, ErrMemberRefused.Error()))
		}
		isAnswer := errors.Is(err, errRemote) && !strings.Contains(err.Error(), errNotLeader.Error())
		if err == nil || isAnswer {
			return a.Checks, err
		}
		last = fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	return nil, last
}

// serveMember answers another node that passes a request on.
func (n *Node) serveMember(ctx context.Context, r memberRequest) (requestAnswer, error) {
	checks, err := n.changeMemberHere(ctx, r)
	if errors.Is(err, ErrMemberRefused) {
		return requestAnswer{Version, checks, err.Error()}, nil
	}
	return requestAnswer{V: Version, Checks: checks}, err
}

// changeMemberHere begins a change on the leader and waits for its end.
func (n *Node) changeMemberHere(ctx context.Context, r memberRequest) ([]Check, error) {
	if !n.isLeading() {
		return nil, errNotLeader
	}
	ctx, stop := n.whileHeard(ctx)
	defer stop()
	s, _ := n.fsm.State()
	if wasBegun(s, r) {
		return nil, n.awaitChange(ctx, r.Change)
	}
	c, checks := n.memberChecks(ctx, s, r.MemberRequest)
	if why := firstWrong(checks); r.DryRun || why != "" {
		if why != "" && !r.DryRun {
			return checks, fmt.Errorf("%w: %s", ErrMemberRefused, why)
		}
		return checks, nil
	}
	err := n.applyMembership(ctx, Command{Kind: CommandMembers, Members: &ChangeMembers{Begin: &c}})
	switch {
	case errors.Is(err, ErrConflict):
		return checks, fmt.Errorf("%w: %w", ErrMemberRefused, err)
	case err != nil:
		return checks, err
	}
	return checks, n.awaitChange(ctx, c)
}

// wasBegun tells that a leader that was asked before began the change, and so that it stands or is
// done. That the members are as they were asked for is not enough: perhaps they always were, and
// the request has a name or an address wrong.
func wasBegun(s *State, r memberRequest) bool {
	switch {
	case !r.Again || r.DryRun:
		return false
	case isUnderWay(s, r.Change.Request):
		return true
	}
	return setVersion(s) > r.Since && changeOutcome(s, r.Change) == nil
}

// isUnderWay tells that the change of the request, or what follows from it, stands.
func isUnderWay(s *State, request string) bool {
	c := s.MemberChange
	return c != nil && (c.Request == request || strings.HasPrefix(c.Request, request+"/"))
}

// awaitChange waits until the change does not stand any more.
func (n *Node) awaitChange(ctx context.Context, c MemberChange) error {
	for {
		s, newer := n.fsm.State()
		if !isUnderWay(s, c.Request) {
			return changeOutcome(s, c)
		}
		if !n.isLeading() {
			return errNotLeader
		}
		t := time.NewTimer(memberPoll)
		select {
		case <-ctx.Done():
			t.Stop()
			n.mu.Lock()
			why := n.memberProblem
			n.mu.Unlock()
			return fmt.Errorf("the change of members goes on (%s): %w", orUnknown(why),
				ctx.Err())
		case <-newer:
		case <-t.C:
		}
		t.Stop()
	}
}

// changeOutcome tells what became of a change that has ended.
func changeOutcome(s *State, c MemberChange) error {
	m, isMember := memberOf(s.Members, c.Member.Name)
	_, isOldThere := memberOf(s.Members, c.Replaces)
	switch {
	case isMember && c.Kind == MemberAdd && m.Address != c.Member.Address:
		return fmt.Errorf("%w: %s is a member at %s", ErrMemberRefused, m.Name, m.Address)
	case isMember != (c.Kind == MemberAdd):
		return fmt.Errorf("%w: it was given up: see status", ErrMemberRefused)
	case c.Replaces != "" && isOldThere:
		return fmt.Errorf("%w: %s was added, but %s is still a member: remove it once it is not "+
			"the primary", ErrMemberRefused, c.Member.Name, c.Replaces)
	}
	return nil
}
