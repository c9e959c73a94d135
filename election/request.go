package election

import (
	"context"
	"errors"
	"fmt"
)

// ErrSwitchoverRefused tells that a switchover was not begun; the text after it says why.
var ErrSwitchoverRefused = errors.New("switchover refused")

// ErrSwitchoverFailed tells that a switchover was begun and another change of the lock came of it.
var ErrSwitchoverFailed = errors.New("switchover failed")

// ErrNotLeading tells that this node does not lead the group (any more); a switchover that it had
// begun is finished by the next leader.
var ErrNotLeading = errors.New("this node does not lead the group")

// pendingSwitchover is a request whose asker waits; guarded by Controller.mu.
type pendingSwitchover struct {
	request Request
	// epoch is that of the intent that carries the request out; 0 before.
	epoch uint64
	to    string
	// done has one place, for the outcome.
	done chan error
}

// RequestSwitchover asks for a switchover to a member, or to the best one if to is empty, and
// waits for its outcome. When ctx ends first, a switchover that has begun goes on.
func (c *Controller) RequestSwitchover(ctx context.Context, to string) error {
	c.mu.Lock()
	if !c.isLeader {
		c.mu.Unlock()
		return ErrNotLeading
	}
	if len(c.requests) >= requestsMax {
		c.mu.Unlock()
		return fmt.Errorf("%w: too many requests wait", ErrSwitchoverRefused)
	}
	c.lastID++
	r := &pendingSwitchover{request: Request{ID: c.lastID, To: to}, done: make(chan error, 1)}
	c.requests = append(c.requests, r)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		c.dropRequest(r.request.ID, nil)
		return fmt.Errorf("switchover: outcome not waited for: %w", ctx.Err())
	}
}

// requestsMax bounds the requests that wait.
const requestsMax = 16

// startRequests opens the door for requests at the start of a leadership. Changes from before it
// have an unknown age and are not counted as flapping.
func (c *Controller) startRequests() {
	s, _ := c.co.State()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isLeader = true
	for _, h := range s.History {
		c.seenEpoch = max(c.seenEpoch, h.Lock.Epoch)
	}
}

// failRequests ends all requests with the leadership.
func (c *Controller) failRequests() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isLeader = false
	for _, r := range c.requests {
		r.done <- fmt.Errorf("switchover: %w any more; see status for its outcome", ErrNotLeading)
	}
	c.requests = nil
}

// refuseRequests answers requests that are not carried out.
func (c *Controller) refuseRequests(refusals []RequestRefusal) {
	for _, r := range refusals {
		c.dropRequest(r.ID, fmt.Errorf("%w: %s", ErrSwitchoverRefused, r.Why))
	}
}

// dropRequest takes a request off the list and answers it.
func (c *Controller) dropRequest(id uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, r := range c.requests {
		if r.request.ID == id {
			c.requests = append(c.requests[:i], c.requests[i+1:]...)
			r.done <- err
			return
		}
	}
}

// markRequest notes the intent that carries a request out.
func (c *Controller) markRequest(id, epoch uint64, to string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.requests {
		if r.request.ID == id {
			r.epoch, r.to = epoch, to
		}
	}
}

// settleRequests answers the requests whose change is over.
func (c *Controller) settleRequests(s *State) {
	if s.Intent != nil || s.Lock == nil {
		return
	}
	c.mu.Lock()
	var over []*pendingSwitchover
	for _, r := range c.requests {
		if r.epoch != 0 && s.Lock.Epoch >= r.epoch {
			over = append(over, r)
		}
	}
	c.mu.Unlock()
	for _, r := range over {
		var err error
		if s.Lock.Epoch != r.epoch {
			err = fmt.Errorf("%w: %s is the primary under epoch %d: %s", ErrSwitchoverFailed,
				s.Lock.Holder, s.Lock.Epoch, causeOf(s))
		}
		c.dropRequest(r.request.ID, err)
	}
}

// causeOf returns the cause of the newest change of the lock.
func causeOf(s *State) string {
	if n := len(s.History); n > 0 {
		return s.History[n-1].Cause
	}
	return "cause unknown"
}
