package election

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
)

const (
	// memberPoll is how often the leader looks again while a change of the members stands.
	memberPoll = 200 * time.Millisecond
	// memberIdle is how often it looks while none stands: Raft's configuration alone tells that
	// a former leader has left something half done.
	memberIdle = 5 * time.Second
	// raftChangeTimeout bounds the wait for Raft to take a change of its configuration.
	raftChangeTimeout = 5 * time.Second
)

// runMembership carries changes of the members out while this node leads the group. Each step
// follows from the state and Raft's configuration, so that the next leader goes on with it.
func (n *Node) runMembership(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	last := ""
	for ctx.Err() == nil {
		s, newer := n.fsm.State()
		pause := memberIdle
		if step := n.memberStep(ctx, s); step.do != stepNone {
			pause = memberPoll
			err := n.doMemberStep(ctx, s, step)
			if text := fmt.Sprint(step, err); text != last && ctx.Err() == nil {
				n.log.Info("change of members", zap.String("step", string(step.do)),
					zap.String("member", step.name), zap.Error(err))
				last = text
			}
			n.setMemberProblem(step, err)
			if err == nil && step.do != stepWait {
				continue
			}
		} else {
			n.setMemberProblem(step, nil)
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-newer:
		case <-t.C:
		}
		t.Stop()
	}
}

// memberStep finds the next step. Only for a member that is on its way in others are asked.
func (n *Node) memberStep(ctx context.Context, s *State) memberStep {
	if s.Voters == nil {
		return memberStep{}
	}
	inRaft := make(map[string]bool)
	for _, srv := range n.raftServers() {
		inRaft[string(srv.ID)] = srv.Suffrage == raft.Voter
	}
	if len(inRaft) == 0 {
		return memberStep{}
	}
	return nextMemberStep(s, inRaft, func(name string) bool {
		a, err := n.helloOf(ctx, name)
		return err == nil && a.Ready && a.Cluster == n.cfg.Cluster
	})
}

// helloOf asks one node who it is.
func (n *Node) helloOf(ctx context.Context, name string) (helloAnswer, error) {
	if name == n.cfg.Name {
		return n.hello(), nil
	}
	p := n.peerOf(name)
	if p == nil {
		return helloAnswer{}, fmt.Errorf("ask %s: %w", name, errNoPeer)
	}
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	var a helloAnswer
	err := p.call(ctx, "/v1/hello", empty{Version}, &a)
	return a, err
}

// doMemberStep carries one step out. It is bounded, and repeating it is harmless.
func (n *Node) doMemberStep(ctx context.Context, s *State, step memberStep) error {
	voters := func(c ChangeVoters) error {
		c.Version = setVersion(s)
		return n.applyMembership(ctx, Command{Kind: CommandVoters, Voters: &c})
	}
	r := n.raft.Load()
	id := raft.ServerID(step.name)
	m, _ := memberOf(s.Members, step.name)
	addr := raft.ServerAddress(m.Address)
	switch step.do {
	case stepSettle:
		if err := n.awaitSettled(ctx, s); err != nil {
			return err
		}
		return voters(ChangeVoters{Settle: true})
	case stepLearner:
		return r.AddNonvoter(id, addr, 0, raftChangeTimeout).Error()
	case stepRaftVoter:
		return r.AddVoter(id, addr, 0, raftChangeTimeout).Error()
	case stepJoin:
		return voters(ChangeVoters{Add: step.name})
	case stepLeave:
		if why := n.removalMissing(ctx, s, step.name); why != "" {
			return fmt.Errorf("remove %s: %s", step.name, why)
		}
		return voters(ChangeVoters{Remove: step.name})
	case stepRaftLeave:
		if step.name == n.cfg.Name {
			// Another leader removes this one.
			return r.LeadershipTransfer().Error()
		}
		return r.RemoveServer(id, 0, raftChangeTimeout).Error()
	case stepEnd:
		c := ChangeMembers{End: s.MemberChange.Request}
		return n.applyMembership(ctx, Command{Kind: CommandMembers, Members: &c})
	case stepAbandon:
		c := ChangeMembers{Abandon: s.MemberChange.Request}
		return n.applyMembership(ctx, Command{Kind: CommandMembers, Members: &c})
	case stepWait, stepNone:
		return nil
	}
	panic("BUG: member step " + string(step.do))
}

// applyMembership writes a command and makes an error of a refusal.
func (n *Node) applyMembership(ctx context.Context, c Command) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	r, err := n.applyHere(ctx, c)
	if err != nil {
		return err
	}
	return r.Err()
}

// awaitSettled returns once a majority of the set before has durably taken the current version and
// what it promised under older ones has ended (DESIGN.md I61).
func (n *Node) awaitSettled(ctx context.Context, s *State) error {
	version := setVersion(s)
	ctx, cancel := context.WithTimeout(ctx, 2*n.timing.Promise)
	defer cancel()
	return n.askMajority(ctx, s.Voters.Prev, func(ctx context.Context, name string) error {
		if name == n.cfg.Name {
			return n.voter.awaitSet(ctx, version)
		}
		return n.ask(ctx, name, "/v1/voter-set", setRequest{Version, version})
	})
}

// removalMissing tells why a member cannot leave now: without it the others must be a majority of
// their own, and nothing that was acknowledged may depend on it.
func (n *Node) removalMissing(ctx context.Context, s *State, name string) string {
	rest := slices.DeleteFunc(slices.Clone(voterNames(s)), func(v string) bool {
		return v == name
	})
	if why := n.silentVoters(ctx, rest); why != "" {
		return why
	}
	return syncNeedsMember(s, n.policy(), name)
}

// silentVoters tells why these voters cannot decide among themselves: too few of them answer.
func (n *Node) silentVoters(ctx context.Context, names []string) string {
	type reply struct {
		name  string
		ready bool
	}
	replies := make(chan reply, len(names))
	for _, name := range names {
		go func() {
			a, err := n.helloOf(ctx, name)
			replies <- reply{name, err == nil && a.Ready}
		}()
	}
	var silent []string
	for range names {
		if r := <-replies; !r.ready {
			silent = append(silent, r.name)
		}
	}
	slices.Sort(silent)
	if len(names)-len(silent) > len(names)/2 {
		return ""
	}
	return fmt.Sprintf("of the remaining voters %s a majority must answer, and %s does not",
		strings.Join(names, ", "), strings.Join(silent, ", "))
}

// setMemberProblem keeps what the change of members waits for, for status.
func (n *Node) setMemberProblem(step memberStep, err error) {
	text := ""
	switch {
	case err != nil:
		text = err.Error()
	case step.do == stepWait:
		text = fmt.Sprintf("waits for %s", step.name)
	}
	n.mu.Lock()
	n.memberProblem = text
	n.mu.Unlock()
}
