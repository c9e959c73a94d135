package election_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// put asks whoever leads now.
func (r *simRun) put(ctx context.Context, q election.Request) ([]election.Check, error) {
	r.w.mu.Lock()
	leader := r.w.leader
	r.w.mu.Unlock()
	if leader == "" {
		return nil, election.AsLost(election.ErrNoLeader)
	}
	checks, err := r.controllers[leader].Request(ctx, q)
	return checks, election.AsLost(err)
}

// newestEpoch asks whoever leads now.
func (r *simRun) newestEpoch(context.Context) uint64 {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if n := r.w.nodes[r.w.leader]; n != nil {
		return n.view.LastEpoch
	}
	return 0
}

// away asks for a switchover to a standby; first is what becomes of the first call.
func (r *simRun) away(to string,
	first func(context.Context, election.Request) ([]election.Check, error),
) error {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	calls := 0
	_, err := election.AskWhoeverLeads(ctx, r.w.nodes["pg1"].State, r.newestEpoch,
		func(ctx context.Context, q election.Request) ([]election.Check, error) {
			if calls++; calls == 1 {
				return first(ctx, q)
			}
			return r.put(ctx, q)
		}, election.Request{Kind: election.RequestSwitchover, Member: to})
	return err
}

// leadElsewhere has another node lead.
func (r *simRun) leadElsewhere() {
	for old := r.w.leader; r.w.leader == old; {
		r.lead(false)
	}
}

// switchovers counts those that were carried out.
func (r *simRun) switchovers() (n int) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	for _, c := range r.w.state.History {
		if c.Kind == election.IntentSwitchover {
			n++
		}
	}
	return n
}

type call = func(context.Context, election.Request) ([]election.Check, error)

// twice asks a leader for the same thing again while it has not begun it.
func twice(after time.Duration) func(*simRun) call {
	return func(r *simRun) call {
		return func(ctx context.Context, q election.Request) ([]election.Check, error) {
			go func() { _, _ = r.put(ctx, q) }()
			time.Sleep(after)
			again := q
			again.Again = true
			return r.put(ctx, again)
		}
	}
}

var errBroken = errors.New("EOF")

// lostInTheMiddle puts a request to a leader that is lost once it has begun it.
func (r *simRun) lostInTheMiddle() call {
	return func(ctx context.Context, q election.Request) ([]election.Check, error) {
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); _, _ = r.put(ctx, q) }()
		r.awaitIntent()
		r.leadElsewhere()
		cancel()
		<-done
		return nil, election.AsLost(election.BrokenCall(errBroken))
	}
}

// TestRequestOutlivesItsLeader: whoever asked gets the outcome of what was asked for, once, when
// the leader changes before it is begun, in the middle, or when only the call breaks off.
func TestRequestOutlivesItsLeader(t *testing.T) {
	for name, first := range map[string]func(*simRun) call{
		"before": func(r *simRun) call {
			return func(context.Context, election.Request) ([]election.Check, error) {
				r.leadElsewhere()
				return nil, election.AsLost(fmt.Errorf("switchover: %w any more",
					election.ErrNotLeading))
			}
		},
		"middle": (*simRun).lostInTheMiddle,
		"call": func(r *simRun) call {
			return func(ctx context.Context, q election.Request) ([]election.Check, error) {
				go func() { _, _ = r.put(ctx, q) }() // the leader goes on with it
				return nil, election.AsLost(election.BrokenCall(errBroken))
			}
		},
		"call, and asked again at once":         twice(0),
		"call, and asked again at a checkpoint": twice(10 * time.Millisecond),
	} {
		t.Run(name, func(t *testing.T) {
			simGroup(t, func(r *simRun) {
				to := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}[r.newest().Lock.Holder]
				if err := r.away(to, first(r)); err != nil {
					t.Error(err)
				}
				time.Sleep(5 * time.Second)
				if l := r.newest().Lock; l.Holder != to || r.switchovers() != 1 {
					t.Errorf("the primary is %s after %d switchovers, %s after one is expected",
						l.Holder, r.switchovers(), to)
				}
			})
		})
	}
}

// TestRequestIsNotBegunLate: when another change was made meanwhile, what was asked for rests on a
// primary that is not there any more, also if no leader has heard of it before.
func TestRequestIsNotBegunLate(t *testing.T) {
	for name, loss := range map[string]error{
		"call broken": election.BrokenCall(errBroken), "no leader": election.ErrNoLeader,
	} {
		t.Run(name, func(t *testing.T) {
			simGroup(t, func(r *simRun) { r.askBesideAnother(t, loss) })
		})
	}
}

func (r *simRun) askBesideAnother(t *testing.T, loss error) {
	next := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}
	other := next[r.newest().Lock.Holder]
	err := r.away(next[other],
		func(context.Context, election.Request) ([]election.Check, error) {
			if err := r.request(other); err != nil {
				t.Error(err)
			}
			return nil, election.AsLost(loss)
		})
	if !errors.Is(err, election.ErrRefused) ||
		!strings.Contains(err.Error(), "another change came first") {
		t.Errorf("answer is %v", err)
	}
	time.Sleep(5 * time.Second)
	if l := r.newest().Lock; l.Holder != other {
		t.Errorf("the primary is %s", l.Holder)
	}
}

// TestNewLeaderHearsFirst: a leader that has just begun refuses nothing because it has not heard of
// a node yet.
func TestNewLeaderHearsFirst(t *testing.T) {
	simGroup(t, func(r *simRun) {
		to := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}[r.newest().Lock.Holder]
		r.leadElsewhere()
		err := election.ErrNotLeading
		for errors.Is(err, election.ErrNotLeading) {
			time.Sleep(time.Millisecond)
			r.w.mu.Lock()
			clear(r.w.nodes[r.w.leader].recv)
			r.w.mu.Unlock()
			err = r.request(to)
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// TestRequestThatGoesBackFails, also if another leader than the one that was asked goes back.
func TestRequestThatGoesBackFails(t *testing.T) {
	simGroup(t, func(r *simRun) {
		old := r.newest().Lock
		to := map[string]string{"pg1": "pg2", "pg2": "pg3", "pg3": "pg1"}[old.Holder]
		r.w.mu.Lock()
		r.w.nodes[to].pg.promotesBadly = 4
		r.w.mu.Unlock()
		err := r.away(to, r.lostInTheMiddle())
		if !errors.Is(err, election.ErrFailed) || !strings.Contains(err.Error(), "back to "+old.Holder) {
			t.Errorf("answer is %v", err)
		}
	})
}

// askedLoop answers requests that another leader may have begun, and no others.
type askedLoop struct {
	idle
	asked chan election.Request
}

func (l askedLoop) Request(ctx context.Context, q election.Request) ([]election.Check, error) {
	l.asked <- q
	if q.Again {
		return nil, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestNodePassesARequestOnToTheNextLeader: the leader that was asked is closed in the middle.
func TestNodePassesARequestOnToTheNextLeader(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	g := electiontest.NewGroup(t, 3)
	asked := make(chan election.Request, 10)
	g.Change = func(_ *election.Config, deps *election.Deps) {
		deps.Loop = func(election.Coordinator) election.LeaderLoop {
			return askedLoop{asked: asked}
		}
	}
	for _, m := range g.Nodes {
		g.Start(m.Name)
	}
	leader := waitLeader(t, g)
	var asker *election.Node
	for name, n := range g.Running {
		if name != leader {
			asker = n
		}
	}
	answer := make(chan error, 1)
	go func() {
		_, err := asker.Request(t.Context(), election.Request{Kind: election.RequestSwitchover})
		answer <- err
	}()
	first := <-asked
	g.Stop(leader)
	select {
	case err := <-answer:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(40 * time.Second):
		t.Fatal("no answer")
	}
	if again := <-asked; first.Token == "" || again.Token != first.Token || !again.Again ||
		again.Since != first.Since {
		t.Errorf("the next leader is asked %+v after %+v", again, first)
	}
}
