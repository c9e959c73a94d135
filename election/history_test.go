package election_test

import (
	"context"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"holdfast/election"
)

// historyKind is an operation on the lock or under the lease.
type historyKind string

const (
	opBegin   historyKind = "begin"
	opTarget  historyKind = "target"
	opCommit  historyKind = "commit"
	opRead    historyKind = "read"
	opEndorse historyKind = "endorse"
	opUse     historyKind = "use"
)

// historyInput is what was asked, historyOutput what was answered.
type (
	historyInput struct {
		kind            historyKind
		epoch, replaces uint64 // epoch: of the lock that is replaced, for opBegin
		hasTarget       bool   // an intent that names whom it is for
	}
	historyOutput struct {
		isUnknown, isRefused bool
		epoch                uint64
	}
)

// lockState is the lock as clients may think of it: one register with compare-and-set.
type lockState struct {
	last, intent, lock uint64
	hasTarget          bool
}

// lockModel is the lock as one register: whatever happens to nodes and network, its history is
// that of operations which happen one by one, each between its call and its return. One whose
// outcome is unknown may have happened at any time since, or never.
var lockModel = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{lockState{}} },
	Step: func(state, input, output any) []any {
		s, in, out := state.(lockState), input.(historyInput), output.(historyOutput)
		next, isDone, answer := s, false, uint64(0)
		switch in.kind {
		case opBegin:
			if isDone = in.epoch == s.lock && in.replaces == s.intent; isDone {
				next.last++
				next.intent, next.hasTarget = next.last, in.hasTarget
				answer = next.last
			}
		case opTarget:
			if isDone = in.epoch == s.intent; isDone {
				next.hasTarget, answer = true, in.epoch
			}
		case opCommit:
			switch {
			case in.epoch == s.lock:
				isDone, answer = true, in.epoch
			case in.epoch == s.intent && s.hasTarget:
				next.lock, next.intent, next.hasTarget = in.epoch, 0, false
				isDone, answer = true, in.epoch
			}
		case opRead:
			isDone, answer = true, s.lock
		}
		switch {
		case out.isUnknown:
			return []any{s, next}
		case out.isRefused && !isDone:
			return []any{s}
		case !out.isRefused && isDone && out.epoch == answer:
			return []any{next}
		}
		return nil
	},
	DescribeOperation: describeHistory,
}).ToModel()

// leaseModel: once an epoch is endorsed no older one is used.
var leaseModel = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		endorsed, in, out := state.(uint64), input.(historyInput), output.(historyOutput)
		if in.kind == opUse {
			return in.epoch >= endorsed, endorsed
		}
		if out.isUnknown {
			return true, endorsed // it may not have happened
		}
		return true, max(endorsed, in.epoch)
	},
	DescribeOperation: describeHistory,
}

func describeHistory(input, output any) string { return fmt.Sprintf("%+v %+v", input, output) }

// history records operations of clients side by side.
type history struct {
	mu          sync.Mutex
	now         func() int64
	last        int64
	lock, lease []porcupine.Operation
}

// at is the time; no two things happen at the same one.
func (h *history) at() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = max(h.last+1, h.now())
	return h.last
}

// add records an operation; one whose outcome is unknown has not returned.
func (h *history) add(client int, in historyInput, call int64, out historyOutput) {
	end := h.at()
	if out.isUnknown {
		end = math.MaxInt64
	}
	o := porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end}
	h.mu.Lock()
	defer h.mu.Unlock()
	if in.kind == opUse || in.kind == opEndorse {
		h.lease = append(h.lease, o)
	} else {
		h.lock = append(h.lock, o)
	}
}

// settle ends the operations whose outcome is unknown: they do not happen any later.
func (h *history) settle() {
	end := h.at()
	for _, ops := range [][]porcupine.Operation{h.lock, h.lease} {
		for i := range ops {
			ops[i].Return = min(ops[i].Return, end)
		}
	}
}

// applied records a command of the lock.
func (h *history) applied(
	client int, cmd election.Command, call int64, res election.Result, err error,
) {
	in := historyInput{}
	switch {
	case cmd.Begin != nil:
		b := cmd.Begin
		in = historyInput{opBegin, b.FromEpoch, b.Replaces, b.To != ""}
	case cmd.Target != nil:
		in = historyInput{kind: opTarget, epoch: cmd.Target.Epoch}
	case cmd.Commit != nil:
		in = historyInput{kind: opCommit, epoch: cmd.Commit.Lock.Epoch}
	default:
		return
	}
	h.add(client, in, call, historyOutput{err != nil, err == nil && res.Refused != "", res.Epoch})
}

// check returns which of the histories is not as its model says.
func (h *history) check() error {
	const limit = 20 * time.Second
	if r := porcupine.CheckOperationsTimeout(lockModel, h.lock, limit); r != porcupine.Ok {
		return fmt.Errorf("the history of the lock (%d operations) is %s", len(h.lock), r)
	}
	if r := porcupine.CheckOperationsTimeout(leaseModel, h.lease, limit); r != porcupine.Ok {
		return fmt.Errorf("the history of the lease (%d operations) is %s", len(h.lease), r)
	}
	return nil
}

// TestHistoryOfSimulation puts the histories of schedules before the checker (DESIGN 9), and
// shows that the checker finds mistakes.
func TestHistoryOfSimulation(t *testing.T) {
	defer oneThread()()
	operations := 0
	for seed := range uint64(100) {
		h, wrong := simHistory(t, seed, bugNone)
		operations += len(h.lock) + len(h.lease)
		if wrong != nil {
			t.Errorf("seed %d: %v", seed, wrong)
		}
	}
	t.Logf("%d operations of 100 schedules", operations)
	for _, bug := range []simBug{bugStaleRead, bugSimFromSend, bugLostUpdate} {
		found := false
		for seed := uint64(1); seed < 1000 && !found; seed++ {
			_, wrong := simHistory(t, seed, bug)
			found = wrong != nil
			if found {
				t.Logf("%s: found in schedule %d: %v", bug, seed, wrong)
			}
		}
		if !found {
			t.Errorf("%s: not found", bug)
		}
	}
}

// Mistakes that the checker must find.
const (
	bugStaleRead  simBug = "the lock is read from a node's own state"
	bugLostUpdate simBug = "a write that is answered is lost with its leader"
)

// simHistory runs a schedule; synctest's bubble ends before the checker, which has its own time.
func simHistory(t *testing.T, seed uint64, bug simBug) (*history, error) {
	_, _, _, w := runSim(t, seed, bug, func(w *simWorld) {
		w.fence = election.FenceLease // the other lets a proxy that is cut off read
		w.history = &history{now: func() int64 { return time.Now().UnixNano() }}
	})
	return w.history, w.history.check()
}

// noteUse records that a proxy did something under an epoch after a look at its clock.
func (w *simWorld) noteUse(p *simNode, epoch uint64, lag time.Duration) {
	if w.history == nil {
		return
	}
	call := time.Now().Add(-lag).UnixNano()
	client := int(p.name[len(p.name)-1] - '0')
	w.history.add(client, historyInput{kind: opUse, epoch: epoch}, call, historyOutput{})
}

// Apply implements election.Coordinator: the write may be lost, or land without an answer.
func (n *simNode) Apply(ctx context.Context, cmd election.Command) (election.Result, error) {
	h := n.w.history
	if h == nil {
		return n.apply(ctx, cmd)
	}
	client, call := int(n.name[len(n.name)-1]-'0'), h.at()
	if n.w.bug == bugStaleRead {
		s, _ := n.State()
		other, _ := n.w.nodes[n.w.names[client%3]].State()
		if s.Lock != nil && other.Lock != nil {
			h.add(client, historyInput{kind: opRead}, call, historyOutput{epoch: other.Lock.Epoch})
			call = h.at()
		}
	}
	res, err := n.apply(ctx, cmd)
	h.applied(client, cmd, call, res, err)
	return res, err
}
