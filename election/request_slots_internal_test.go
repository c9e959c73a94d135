package election

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// slotCoordinator is a leader's whose primary has a slot that it has not reported yet.
type slotCoordinator struct {
	Coordinator
	in     Input
	answer func(calls int) (OrderResult, error)
	calls  int
	// reported is after how many questions the report tells what was answered.
	reported int
}

func (c *slotCoordinator) State() (*State, <-chan struct{}) { return c.in.State, nil }

func (c *slotCoordinator) Log() *zap.Logger { return zap.NewNop() }

func (c *slotCoordinator) Observations() ([]Observation, <-chan struct{}) {
	return c.in.Observations, nil
}

func (c *slotCoordinator) Call(_ context.Context, member string, o Order) (OrderResult, error) {
	if member != "pg1" || o.Kind != OrderSlots || o.Epoch != 7 {
		return OrderResult{}, errors.New("another order")
	}
	c.calls++
	res, err := c.answer(c.calls)
	if c.calls == c.reported {
		for i := range c.in.Observations {
			if m := &c.in.Observations[i].Member; m.Name == "pg1" {
				m.Logical = res.Logical
			}
		}
	}
	return res, err
}

// TestSwitchoverLearnsSlots: a switchover looks at slots that were made since the agent looked last
// (I73): it asks until the report tells of them, and no longer.
func TestSwitchoverLearnsSlots(t *testing.T) {
	both := []LogicalSlot{{Name: "new", Failover: true}, {Name: "s", Failover: true}}
	told := func(slots ...LogicalSlot) func(int) (OrderResult, error) {
		return func(int) (OrderResult, error) {
			return OrderResult{Logical: slots, HasLogical: true}, nil
		}
	}
	for _, tt := range []struct {
		name            string
		version         int
		answer          func(int) (OrderResult, error)
		reported, calls int
	}{
		{"reported later", 170000, told(both...), 3, 4},
		{"nothing new", 170000, told(both[1], LogicalSlot{Name: "other"}), 0, 1},
		{"invalid", 170000, told(LogicalSlot{Name: "x", Failover: true, Bad: "lost"}), 0, 1},
		{"dropped meanwhile", 170000, func(calls int) (OrderResult, error) {
			if calls < 3 {
				return told(both...)(calls)
			}
			return told(both[1])(calls)
		}, 0, 3},
		{"an older agent", 170000, func(int) (OrderResult, error) {
			return OrderResult{}, errors.New("unknown order")
		}, 0, 1},
		{"an older server", 160000, told(both...), 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			co := &slotCoordinator{in: slotInput(nil, nil), answer: tt.answer,
				reported: tt.reported}
			for i := range co.in.Observations {
				co.in.Observations[i].Member.ServerVersion = tt.version
			}
			p := slotPolicy()
			p.Tick = time.Millisecond
			untold := NewController(co, p).learnSlots(t.Context())
			if co.calls != tt.calls || len(untold) > 0 {
				t.Errorf("asked %d times, want %d; untold %q", co.calls, tt.calls, untold)
			}
		})
	}
}

// TestSwitchoverRefusedForUntoldSlots: a slot that the primary has and never reports is not lost in
// silence, also if the time ends during a question.
func TestSwitchoverRefusedForUntoldSlots(t *testing.T) {
	for i := range 4 {
		accept, isCut := i&1 > 0, i&2 > 0
		co := &slotCoordinator{in: slotInput([]LogicalSlot{ready("s")}, nil)}
		for i := range co.in.Observations {
			co.in.Observations[i].Member.ServerVersion = 170000
		}
		ctx, cancel := context.WithCancel(t.Context())
		co.answer = func(calls int) (OrderResult, error) {
			if calls == 5 {
				cancel()
				if isCut {
					return OrderResult{}, context.Canceled
				}
			}
			return OrderResult{HasLogical: true, Logical: []LogicalSlot{
				{Name: "new", Failover: true}, {Name: "s", Failover: true}}}, nil
		}
		p := slotPolicy()
		p.Tick = time.Millisecond
		c := NewController(co, p)
		c.startRequests()
		checks, err := c.Request(ctx, Request{Kind: RequestSwitchover, Member: "pg2",
			AcceptSlotLoss: accept})
		if co.calls != 5 {
			t.Errorf("asked %d times, want until the end", co.calls)
		}
		last := checks[len(checks)-1]
		if isRefused := errors.Is(err, ErrRefused); isRefused == accept {
			t.Errorf("loss accepted %v: %v", accept, err)
		}
		if !strings.Contains(last.Why+last.Note, "logical slot new") {
			t.Errorf("check %+v", last)
		}
	}
}
