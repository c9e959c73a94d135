package election_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"holdfast/election"
)

// bugSimAskedAnew is a mistake that the simulation must find.
const bugSimAskedAnew simBug = "the next leader begins a request anew whatever became of it"

// askNode asks a node, which passes it on to whoever leads; calls break off by chance.
func (r *simRun) askNode(name string, q election.Request) error {
	w := r.w
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	d := w.diceOf(name, uint64(time.Now().UnixNano()), 70)
	token, calls := "", 0
	state := w.nodes[name].State
	if w.bug == bugSimAskedAnew {
		none := make(chan struct{})
		state = func() (*election.State, <-chan struct{}) { return &election.State{}, none }
	}
	newest := r.newestEpoch
	if d.chance(0.2) { // the leader is not known, or does not answer
		newest = func(context.Context) uint64 { return 0 }
	}
	_, err := election.AskWhoeverLeads(ctx, state, newest,
		func(ctx context.Context, q election.Request) ([]election.Check, error) {
			token = q.Token
			if w.bug == bugSimAskedAnew {
				calls++ // no leader knows it again
				q.Token, q.Since, q.Again = fmt.Sprintf("%s=%d", token, calls), math.MaxUint64, false
			}
			if !w.isLossy() || !d.chance(0.3) {
				return r.put(ctx, q)
			}
			ctx, cancel := context.WithTimeout(ctx, time.Duration(1+d.upto(1500e6)))
			defer cancel()
			_, _ = r.put(ctx, q)
			return nil, election.AsLost(election.BrokenCall(errBroken))
		}, q)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[token] = err
	w.checkAnswerLocked(token)
	return err
}

// checkAnswersLocked holds I108 at a change of the lock: a request is carried out once, and not
// after its asker was told that it is not.
func (w *simWorld) checkAnswersLocked(after *election.State) {
	c := after.History[len(after.History)-1]
	token, isIt := election.WishOf(c)
	if token == "" || !isIt || !c.Asked {
		return
	}
	if w.carried[token]++; w.carried[token] > 1 {
		w.violate("a %s that was asked for once is carried out %d times", c.Kind, w.carried[token])
	}
	w.checkAnswerLocked(token)
}

func (w *simWorld) checkAnswerLocked(token string) {
	err := w.answers[token]
	if w.carried[token] > 0 && (errors.Is(err, election.ErrRefused) ||
		errors.Is(err, election.ErrFailed)) {
		w.violate("a request is carried out, and its asker was told: %v", err)
	}
}
