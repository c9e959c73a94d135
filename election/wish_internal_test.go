package election

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// TestRequestsGoByOneState: what is decided about is what the same state says is not begun yet and
// may be; a copy that came in late, or has waited since before another copy was refused, is neither
// begun nor refused for the other one.
func TestRequestsGoByOneState(t *testing.T) {
	lock := Lock{Epoch: 5, Holder: "n1"}
	done := Change{Lock: lock, Request: "done"}
	idle := &State{Lock: &lock, LastEpoch: 5, History: []Change{done}}
	failover := &State{Lock: &lock, LastEpoch: 7, History: []Change{done}, Intent: &Intent{
		Kind: IntentFailover, Epoch: 7, Request: "auto=2"}}
	byName := *failover
	byName.Intent = &Intent{Kind: IntentFailover, Epoch: 7, Request: "b", Only: "n3"}
	for _, tc := range []struct {
		name    string
		s       *State
		r       Request
		decided bool
		epoch   uint64
		answer  error // errClosed: none
	}{
		{"not begun", idle, Request{Token: "a", Since: 5}, true, 0, errClosed},
		{"done", idle, Request{Token: "done", Since: 4}, false, 0, nil},
		{"overtaken", idle, Request{Token: "a", Since: 4}, false, 0, ErrRefused},
		{"of an older release", idle, Request{}, true, 0, errClosed},
		{"begun", &byName, Request{Token: "b", Since: 6}, false, 7, errClosed},
		{"overtaken by an intent", failover, Request{Kind: RequestSwitchover, Token: "a", Since: 6},
			false, 0, ErrRefused},
		{"the primary is lost still", failover, Request{Kind: RequestFailover, Token: "a", Since: 6},
			true, 0, errClosed},
		{"the next one is the primary", failover, Request{Kind: RequestFailover, Token: "a", Since: 4},
			false, 0, ErrRefused},
		{"another operator asked since", &byName,
			Request{Kind: RequestFailover, Member: "n2", Token: "a", Since: 6}, false, 0, ErrRefused},
	} {
		p := &pendingRequest{request: tc.r, done: make(chan error, 1)}
		c := &Controller{requests: []*pendingRequest{p}}
		if got := len(notBegunYet(tc.s, c.requests)) == 1; got != tc.decided {
			t.Errorf("%s: decided about: %t", tc.name, got)
		}
		c.settleRequests(tc.s)
		answer := errClosed
		select {
		case answer = <-p.done:
		default:
		}
		if !errors.Is(answer, tc.answer) || p.epoch != tc.epoch {
			t.Errorf("%s: answer %v, epoch %d", tc.name, answer, p.epoch)
		}
	}
}

// stateOf is a source that tells one state.
func stateOf(s *State) func() (*State, <-chan struct{}) {
	return func() (*State, <-chan struct{}) { return s, make(chan struct{}) }
}

// TestSinceIsTheLeaders: the state of the node that is asked may lag behind the change before.
func TestSinceIsTheLeaders(t *testing.T) {
	for newest, want := range map[uint64]uint64{0: 5, 4: 5, 7: 7} {
		var since uint64
		_, err := asking{stateOf(&State{LastEpoch: 5}), func(context.Context) uint64 { return newest },
			func(_ context.Context, r Request) ([]Check, error) { since = r.Since; return nil, nil },
		}.run(t.Context(), Request{Kind: RequestSwitchover})
		if err != nil || since != want {
			t.Errorf("the leader's newest is %d: since %d, %v", newest, since, err)
		}
	}
}

// TestAskerWaitsForEachLeader: the time in which a leader worked on a request does not count as one
// without a leader; without any one a request is given up.
func TestAskerWaitsForEachLeader(t *testing.T) {
	ask := func(t *testing.T, puts ...func() error) (took time.Duration, err error) {
		begin, calls := time.Now(), 0
		_, err = asking{stateOf(&State{}), func(context.Context) uint64 { return 0 },
			func(context.Context, Request) ([]Check, error) {
				calls++
				return nil, asLost(puts[min(calls, len(puts))-1]())
			}}.run(t.Context(), Request{Kind: RequestSwitchover})
		return time.Since(begin), err
	}
	broken := func() error { return &brokenCall{errors.New("EOF")} }
	slow := func() error { time.Sleep(25 * time.Second); return broken() }
	none := func() error { return ErrNoLeader }
	for _, tc := range []struct {
		name     string
		puts     []func() error
		from, to time.Duration
	}{
		{"no leader", []func() error{none}, beginMax, beginMax + time.Second},
		{"it broke off", []func() error{broken, none}, followMax, followMax + time.Second},
		{"the next one worked on it", []func() error{broken, slow, none}, followMax + 25*time.Second,
			followMax + 26*time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				took, err := ask(t, tc.puts...)
				if !errors.Is(err, ErrNoLeader) || took < tc.from || took > tc.to {
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

// TestClosedNodeAsksNobody: what was asked for at a node ends with it.
func TestClosedNodeAsksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{store: &store{}, stopped: make(chan struct{}), peers: &peerSet{},
			remote: newRemoteSource(nil, zap.NewNop())}
		begin := time.Now()
		time.AfterFunc(time.Second, func() { close(n.stopped) })
		_, err := n.Request(t.Context(), Request{Kind: RequestSwitchover})
		if took := time.Since(begin); !errors.Is(err, errClosed) || !errors.Is(err, ErrNoLeader) ||
			took > time.Second+askPause {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// answerLoop answers each request with an error.
type answerLoop struct {
	LeaderLoop
	err error
}

func (l answerLoop) Request(context.Context, Request) ([]Check, error) { return nil, l.err }

// TestNotBegunIsTold: only a loop that has begun nothing makes a request one that surely was not,
// whatever the lock is by then.
func TestNotBegunIsTold(t *testing.T) {
	for _, tc := range []struct {
		err    error
		isSure bool
	}{{ErrNotLeading, true}, {fmt.Errorf("restart: %w any more", ErrNotLeading), false}} {
		n := &Node{store: &store{}, stopped: make(chan struct{}), leading: true,
			loop: answerLoop{err: tc.err}, remote: newRemoteSource(nil, zap.NewNop())}
		_, err := n.requestHere(t.Context(), Request{Kind: RequestRestart, Member: "n1"})
		var lost *lostError
		if !errors.As(asLost(err), &lost) || lost.isSure != tc.isSure {
			t.Errorf("%v is passed on as %v", tc.err, err)
		}
	}
}
