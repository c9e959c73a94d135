package election

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// TestRequestEndsWithItsNode: whoever waits at a node that is closed does not wait for it.
func TestRequestEndsWithItsNode(t *testing.T) {
	n := &Node{store: &store{}, stopped: make(chan struct{})}
	ctx, stop := n.whileHeard(t.Context())
	defer stop()
	close(n.stopped)
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("it still waits")
	}
	if cause := context.Cause(ctx); !errors.Is(cause, errClosed) {
		t.Errorf("the cause is %v", cause)
	}
}

// TestOutcomeOf: a request was carried out if the lock was entered under its epoch, also if more
// has changed since; nothing else is told as done.
func TestOutcomeOf(t *testing.T) {
	failover := Change{Kind: IntentFailover, Lock: Lock{Epoch: 7, Holder: "pg2"}}
	asked := failover
	asked.Asked = true
	restart := Change{Kind: IntentRestart, Lock: Lock{Epoch: 7, Holder: "pg2"}}
	done := Change{Kind: IntentSwitchover, Lock: Lock{Epoch: 5, Holder: "pg2"}, Asked: true}
	for _, tt := range []struct {
		name     string
		kind     RequestKind
		intent   *Intent
		history  []Change
		over, ok bool
	}{
		{"not yet", RequestSwitchover, &Intent{Epoch: 5}, []Change{{Lock: Lock{Epoch: 4}}}, false,
			false},
		{"done", RequestSwitchover, nil, []Change{done}, true, true},
		{"done, and the next has begun", RequestSwitchover, &Intent{Epoch: 6}, []Change{done}, true,
			true},
		{"done, and another since", RequestSwitchover, nil, []Change{done, failover}, true, true},
		{"given up, and promoted since", RequestSwitchover, nil, []Change{failover}, true, false},
		{"given up, started in place", RequestRestart, nil, []Change{restart}, true, false},
		{"a failover's next intent", RequestFailover, nil, []Change{asked}, true, true},
		{"another failover to it", RequestFailover, nil, []Change{failover}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lock := tt.history[len(tt.history)-1].Lock
			s := &State{Lock: &lock, Intent: tt.intent, History: tt.history}
			over, err := outcomeOf(s, 5)
			if over && isPromotedLater(s, Request{Kind: tt.kind, Member: "pg2"}, 5) {
				err = nil
			}
			if over != tt.over || over && (err == nil) != tt.ok ||
				err != nil && !errors.Is(err, ErrFailed) {
				t.Errorf("over %v, %v", over, err)
			}
		})
	}
}

// TestSameRequestTwiceIsOne: beside each other the second would be refused for the first.
func TestSameRequestTwiceIsOne(t *testing.T) {
	got := notBegunYet(&State{}, []*pendingRequest{
		{request: Request{ID: 1, Token: "a"}}, {request: Request{ID: 2, Token: "a"}},
		{request: Request{ID: 3, Token: "b"}, epoch: 7}, {request: Request{ID: 4}},
		{request: Request{ID: 5}},
	})
	var ids []uint64
	for _, r := range got {
		ids = append(ids, r.ID)
	}
	if !slices.Equal(ids, []uint64{1, 4, 5}) {
		t.Errorf("decided about %v", ids)
	}
}
