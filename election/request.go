package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// ErrRefused tells that a request was not begun; the text after it says why.
var ErrRefused = errors.New("refused")

// ErrFailed tells that a request was begun and another change of the lock came of it.
var ErrFailed = errors.New("failed")

// ErrNotLeading tells that this node does not lead the group (any more): by itself that the request
// was not begun here, and wrapped into more that it is not known to have been.
var ErrNotLeading = errors.New("this node does not lead the group")

// pendingRequest is a request whose asker waits; guarded by Controller.mu.
type pendingRequest struct {
	request Request
	// epoch is that of the intent that carries the request out; 0 before.
	epoch uint64
	// done has one place, for the outcome.
	done chan error
}

// Request asks for what an operator wants and waits for its outcome; when ctx ends first, what has
// begun goes on. The checks are those of the moment in which it was asked for.
func (c *Controller) Request(ctx context.Context, r Request) ([]Check, error) {
	c.mu.Lock()
	isLeader, ledAt := c.isLeader, c.ledAt
	c.mu.Unlock()
	if !isLeader {
		return nil, ErrNotLeading
	}
	if r.Again && !r.DryRun {
		if isHandled, err := c.resume(ctx, r); isHandled {
			return nil, err
		}
	}
	c.awaitHeard(ctx, ledAt)
	var untold []string
	if r.Kind == RequestSwitchover {
		untold = c.learnSlots(ctx)
	}
	s, _ := c.co.State()
	in := Input{State: s, Observations: observationsFor(c.co, s, ledAt, time.Now())}
	_, checks := CheckRequest(in, c.policy, r)
	if len(untold) > 0 {
		checks = append(checks, untoldCheck(untold, r.AcceptSlotLoss))
	}
	if r.DryRun {
		return checks, nil
	}
	switch {
	case len(untold) > 0 && !r.AcceptSlotLoss:
		return checks, fmt.Errorf("%w: %s", ErrRefused, firstWrong(checks))
	case r.Kind == RequestReinit:
		return checks, c.orderStandby(ctx, s, r, checks, OrderReinit)
	case r.Kind == RequestRestart && s.Lock != nil && r.Member != s.Lock.Holder:
		return checks, c.orderStandby(ctx, s, r, checks, OrderRestart)
	case r.Kind == RequestFailover && s.Intent != nil && firstWrong(checks) != "":
		// The change may wait for ever for what was lost: the operator has to know at once.
		return checks, fmt.Errorf("%w: %s; %s", ErrRefused, firstWrong(checks),
			c.LastDecision().Summary)
	}
	if r.Kind == RequestSwitchover && onlyWaits(checks) {
		checks = c.awaitChecks(ctx, r, checks)
	}
	return checks, c.enqueue(ctx, r)
}

// awaitHeard leaves a leader that has just begun the time in which it hears of each node: before
// that it does not know who is silent, and would refuse a request for it.
func (c *Controller) awaitHeard(ctx context.Context, ledAt time.Time) {
	for ctx.Err() == nil {
		s, _ := c.co.State()
		obs := observationsFor(c.co, s, ledAt, time.Now())
		isMissing := func(o Observation) bool { return o.isUnheard(c.policy) }
		if !slices.ContainsFunc(obs, isMissing) {
			return
		}
		pauseFor(ctx, c.policy.Tick)
	}
}

// slotsLearnMax bounds how long a switchover waits until the primary has told its logical slots.
const slotsLearnMax = 3 * time.Second

// learnSlots has the primary tell which logical slots it has now: a slot that was made since its
// agent looked last is one whose copy the switchover has to wait for (DESIGN.md I73). It changes
// nothing. It returns the slots that the primary has and its report does not tell of even then. A
// primary that does not answer, or an agent of an older release, is taken by its report.
func (c *Controller) learnSlots(ctx context.Context) (untold []string) {
	ctx, cancel := context.WithTimeout(ctx, slotsLearnMax)
	defer cancel()
	for {
		s, _ := c.co.State()
		if s.Lock == nil {
			return nil
		}
		holder := s.Lock.Holder
		in := Input{State: s, Observations: c.observations(s, time.Now())}
		report, _ := freshReport(in, c.policy, holder) // one of any age is compared
		if report.Member.ServerVersion < slotSyncMajor*10000 {
			return nil
		}
		res, err := c.co.Call(ctx, holder, Order{V: Version, Kind: OrderSlots, Epoch: s.Lock.Epoch})
		if err != nil {
			c.log.Warn("the primary does not tell its logical slots", zap.String("node", holder),
				zap.Error(err))
			return untold // of the answer before, if there was one
		}
		// Asked again each time: what was dropped meanwhile is not waited for.
		untold = slotsUntold(report.Member.Logical, res.Logical)
		if len(untold) == 0 {
			return nil
		}
		if pauseFor(ctx, c.policy.Tick); ctx.Err() != nil {
			return untold
		}
	}
}

// untoldCheck is the check of a switchover for slots whose copies nobody can look at.
func untoldCheck(untold []string, isLossAccepted bool) Check {
	c := Check{What: "the primary's logical slots are known"}
	why := "the primary has not reported the logical slot " + strings.Join(untold, ", ") + " yet"
	if isLossAccepted {
		c.Note = why + ": it may be lost"
	} else {
		c.Why = why + ": ask again"
	}
	return c
}

// awaitChecks waits for what may pass by itself, the copies of logical slots on a standby that has
// just rejoined for one. It is bounded; what is wrong still is then refused as ever. Nothing has
// begun meanwhile: clients notice nothing.
func (c *Controller) awaitChecks(ctx context.Context, r Request, checks []Check) []Check {
	ctx, cancel := context.WithTimeout(ctx, c.policy.SlotWait)
	defer cancel()
	if s, _ := c.co.State(); s.Lock != nil {
		// It logs which transactions run. Past that record the consumer's next word moves the slot
		// far enough for a copy; by itself the server writes one every 15 s.
		o := Order{V: Version, Kind: OrderCheckpoint, Epoch: s.Lock.Epoch}
		if _, err := c.co.Call(ctx, s.Lock.Holder, o); err != nil {
			c.log.Info("checkpoint for the logical slots not done", zap.Error(err))
		}
	}
	for onlyWaits(checks) && ctx.Err() == nil {
		pauseFor(ctx, c.policy.Tick)
		s, _ := c.co.State()
		_, checks = CheckRequest(Input{State: s, Observations: c.observations(s, time.Now())},
			c.policy, r)
	}
	return checks
}

// orderStandby needs no change of the lock: the order is given under the lock's own epoch, so a
// change that begins meanwhile overtakes it.
func (c *Controller) orderStandby(ctx context.Context, s *State, r Request, checks []Check,
	kind OrderKind,
) error {
	if why := firstWrong(checks); why != "" {
		return fmt.Errorf("%w: %s", ErrRefused, why)
	}
	ctx, cancel := context.WithTimeout(ctx, c.policy.StopTimeout+c.policy.StartTimeout)
	defer cancel()
	o := Order{V: Version, Kind: kind, Epoch: s.Lock.Epoch}
	if _, err := c.co.Call(ctx, r.Member, o); err != nil {
		return fmt.Errorf("%w: order %s to %s: %w", ErrFailed, kind, r.Member, err)
	}
	return nil
}

// enqueue hands a request to the loop and waits.
func (c *Controller) enqueue(ctx context.Context, r Request) error {
	c.mu.Lock()
	if !c.isLeader {
		c.mu.Unlock()
		return ErrNotLeading
	}
	if len(c.requests) >= requestsMax {
		c.mu.Unlock()
		return fmt.Errorf("%w: too many requests wait", ErrRefused)
	}
	c.lastID++
	r.ID = c.lastID
	w := &pendingRequest{request: r, done: make(chan error, 1)}
	c.requests = append(c.requests, w)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	var err error
	select {
	case err = <-w.done:
	case <-ctx.Done():
		c.dropRequest(r.ID, nil)
		return fmt.Errorf("%s: outcome not waited for: %w", r.Kind, ctx.Err())
	}
	var left *goesOnError
	if !errors.As(err, &left) {
		return err
	}
	return c.follow(ctx, r, left.epoch)
}

// goesOnError tells the asker that the leadership ended while the intent of that epoch was carried
// out: the next leader finishes it.
type goesOnError struct{ epoch uint64 }

func (e *goesOnError) Error() string { return fmt.Sprintf("epoch %d goes on", e.epoch) }

// followMax bounds how long an asker waits for a leader that is not this node: this one may be cut
// off from it.
const followMax = 30 * time.Second

// follow waits, as one that does not lead, until the state tells the outcome of the intent that
// carries a request out. The next leader may have put another one in its place for the same wish.
func (c *Controller) follow(ctx context.Context, r Request, epoch uint64) error {
	bounded, cancel := context.WithTimeout(ctx, followMax)
	defer cancel()
	for {
		s, changed := c.co.State()
		if over, err := outcomeOf(s, epoch); over {
			if isPromotedLater(s, r, epoch) {
				return nil
			}
			return err
		}
		select {
		case <-changed:
		case <-bounded.Done():
			return fmt.Errorf("%s: %w any more, and the outcome has not arrived here (%w); see status",
				r.Kind, ErrNotLeading, bounded.Err())
		}
	}
}

// outcomeOf tells whether the intent of that epoch is over, and with which error. It was carried
// out if the lock was entered under its epoch, whatever came after that.
func outcomeOf(s *State, epoch uint64) (isOver bool, err error) {
	switch {
	case s.Lock == nil || s.Lock.Epoch < epoch:
		return false, nil
	case s.Lock.Epoch == epoch || slices.ContainsFunc(s.History, func(c Change) bool {
		return c.Lock.Epoch == epoch
	}):
		return true, nil
	}
	return true, fmt.Errorf("%w: %s is the primary under epoch %d: %s", ErrFailed, s.Lock.Holder,
		s.Lock.Epoch, causeOf(s))
}

// isPromotedLater tells that an operator's failover was carried out by a later intent than the one
// that the asker knew of: whoever leads replaces one that names a member by another for the same
// member.
func isPromotedLater(s *State, r Request, epoch uint64) bool {
	return r.Kind == RequestFailover && slices.ContainsFunc(s.History, func(c Change) bool {
		return c.Lock.Epoch > epoch && c.Kind == IntentFailover && c.Asked &&
			c.Lock.Holder == r.Member
	})
}

// requestsMax bounds the requests that wait.
const requestsMax = 16

// startRequests opens the door for requests at the start of a leadership.
func (c *Controller) startRequests() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isLeader, c.ledAt = true, time.Now()
}

// leaveRequests ends the leadership's part in all requests: the outcome of one that has begun is
// read from the state, of the others it is not known whether they have.
func (c *Controller) leaveRequests() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isLeader = false
	for _, r := range c.requests {
		if r.epoch != 0 {
			r.done <- &goesOnError{r.epoch}
			continue
		}
		r.done <- fmt.Errorf("%s: %w any more; see status for its outcome", r.request.Kind,
			ErrNotLeading)
	}
	c.requests = nil
}

// refuseRequests answers requests that are not carried out.
func (c *Controller) refuseRequests(refusals []RequestRefusal) {
	for _, r := range refusals {
		c.dropRequest(r.ID, fmt.Errorf("%w: %s", ErrRefused, r.Why))
	}
}

// notBegun answers a request whose intent was not written. With the leadership ends what is known
// of that: the entry may be in the log of the others.
func (c *Controller) notBegun(lead context.Context, id uint64, err error) {
	if lead.Err() == nil {
		c.refuseRequests([]RequestRefusal{{id, err.Error()}})
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

// notBegunYet are the requests to decide about in a state. Those that are begun by that state, or
// must not be any more, are left to settleRequests, which looked before some came in. The same one
// again has the first one's outcome.
func notBegunYet(s *State, pending []*pendingRequest) (out []Request) {
	for _, r := range pending {
		if _, isBegun := findWish(s, r.request.Token); isBegun || overtaken(s, r.request) != nil {
			continue
		}
		isTwice := r.request.Token != "" && slices.ContainsFunc(out, func(q Request) bool {
			return q.Token == r.request.Token
		})
		if r.epoch == 0 && !isTwice {
			out = append(out, r.request)
		}
	}
	return out
}

// markRequest notes the intent that carries a request out.
func (c *Controller) markRequest(id, epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.requests {
		if r.request.ID == id {
			r.epoch = epoch
		}
	}
}

// moveRequest notes that another intent carries out what an earlier one did.
func (c *Controller) moveRequest(from, to uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.requests {
		if r.epoch == from {
			r.epoch = to
		}
	}
}

// settleRequests answers the requests whose change is over.
func (c *Controller) settleRequests(s *State) {
	type answer struct {
		id  uint64
		err error
	}
	var over []answer
	c.mu.Lock()
	for _, r := range c.requests {
		if r.epoch == 0 {
			// It came a second time, while this leader carried out the first.
			w, isBegun := findWish(s, r.request.Token)
			switch err := overtaken(s, r.request); {
			case w.isOver:
				over = append(over, answer{r.request.ID, w.err})
			case isBegun && !w.isInstead:
				r.epoch = w.epoch
			case !isBegun && err != nil:
				over = append(over, answer{r.request.ID, err})
			}
			continue
		}
		if isOver, err := outcomeOf(s, r.epoch); isOver {
			over = append(over, answer{r.request.ID, err})
		}
	}
	c.mu.Unlock()
	for _, a := range over {
		c.dropRequest(a.id, a.err)
	}
}

// causeOf returns the cause of the newest change of the lock.
func causeOf(s *State) string {
	if n := len(s.History); n > 0 {
		return s.History[n-1].Cause
	}
	return "cause unknown"
}
