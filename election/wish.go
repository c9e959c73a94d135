package election

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A request of an operator outlives the leader that it was put to. The node that was asked gives
// it a token, under which its intent, what takes that one's place, and the change of the lock are
// in the state: whoever leads next can tell what became of it (DESIGN.md I108).

// Marks in Intent.Request between a request's token and what makes the text unlike others.
const (
	wishSame    = "=" // a further intent for the same wish
	wishInstead = "/" // one in the place of what was asked for, such as the way back
)

// wishToken is the token in an intent's Request.
func wishToken(request string) string {
	if i := strings.IndexAny(request, wishSame+wishInstead); i >= 0 {
		return request[:i]
	}
	return request
}

func isInstead(request string) bool { return strings.Contains(request, wishInstead) }

// nextRequest is the Request of an intent that takes another one's place.
func nextRequest(request, mark string) string {
	return wishToken(request) + mark + rand.Text()
}

// wish is what the state tells of a request that was begun.
type wish struct {
	// epoch is that of the intent that stands for it, or of the lock that came of it.
	epoch uint64
	// isInstead tells that this is not what was asked for.
	isInstead, isOver bool
	err               error
}

// findWish looks for the request of a token; false if it was not begun, as far as s knows, or
// another request has taken its place before a lock came of it.
func findWish(s *State, token string) (wish, bool) {
	if it := s.Intent; it != nil && token != "" && wishToken(it.Request) == token {
		return wish{epoch: it.Epoch, isInstead: isInstead(it.Request)}, true
	}
	for _, c := range slices.Backward(s.History) {
		if token == "" || wishToken(c.Request) != token {
			continue
		}
		w := wish{epoch: c.Lock.Epoch, isInstead: isInstead(c.Request), isOver: true}
		if w.isInstead {
			w.err = fmt.Errorf("%w: %s is the primary under epoch %d: %s", ErrFailed, c.Lock.Holder,
				c.Lock.Epoch, c.Cause)
		}
		return w, true
	}
	return wish{}, false
}

// overtaken tells that a request which the state does not know must not be begun any more: since
// it was asked for another change was, from another primary perhaps. Under a leader of an older
// release that may be the one that was asked for. Once it holds it holds for each later state and
// all copies of the request: none that waits somewhere is begun after its asker was told so. (Of a
// failover that another operator's has overtaken that is so until the leader gives up that one.)
func overtaken(s *State, r Request) error {
	switch {
	case r.Token == "" || s.LastEpoch <= r.Since, isStillLost(s, r):
		return nil
	case s.Intent != nil:
		return fmt.Errorf("%w: another change came first, or took its place: %s", ErrRefused,
			intentText(*s.Intent))
	case s.Lock == nil:
		return fmt.Errorf("%w: another change came first", ErrRefused)
	}
	return fmt.Errorf("%w: another change came first, or took its place: %s is the primary under "+
		"epoch %d: %s", ErrRefused, s.Lock.Holder, s.Lock.Epoch, causeOf(s))
}

// isStillLost tells that what has begun since a failover was asked for is the leader's own next
// attempt to replace the primary that is lost: it goes through epochs as long as nothing works, and
// that is what the operator wants to end.
func isStillLost(s *State, r Request) bool {
	it := s.Intent
	return r.Kind == RequestFailover && lockEpoch(s) <= r.Since && it != nil &&
		(it.Only == "" || it.Only == r.Member)
}

// resume answers a request that another leader may have begun, from the state: this leader has all
// that was entered before. It is not handled here if nothing has happened since it was asked for.
func (c *Controller) resume(ctx context.Context, r Request) (isHandled bool, err error) {
	for {
		s, changed := c.co.State()
		w, isBegun := findWish(s, r.Token)
		switch {
		case w.isOver:
			return true, w.err
		case !isBegun:
			err := overtaken(s, r)
			return err != nil, err
		}
		t := time.NewTimer(c.policy.Tick)
		select {
		case <-ctx.Done():
			t.Stop()
			return true, fmt.Errorf("%s: outcome not waited for: %w", r.Kind, ctx.Err())
		case <-changed:
		case <-t.C:
		}
		t.Stop()
		c.mu.Lock()
		isLeader := c.isLeader
		c.mu.Unlock()
		if !isLeader {
			return true, fmt.Errorf("%s: %w any more", r.Kind, ErrNotLeading)
		}
	}
}

// lostError tells that no leader has answered a request to its end. isSure: none has begun it.
type lostError struct {
	err    error
	isSure bool
}

func (e *lostError) Error() string { return e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// asLost tells of an error, of this node's loop or of another node, that the leadership ended; any
// other error is the answer.
func asLost(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if _, after, isRemote := strings.Cut(text, errRemote.Error()+": "); isRemote {
		text = after
	}
	switch {
	case strings.HasPrefix(text, ErrRefused.Error()), strings.HasPrefix(text, ErrFailed.Error()):
		return err
	case errors.Is(err, ErrNoLeader), strings.Contains(text, errNotLeader.Error()),
		strings.Contains(text, "dial node"):
		return &lostError{err, true}
	case strings.Contains(text, ErrNotLeading.Error()), strings.Contains(text, errSilent.Error()),
		strings.Contains(text, errClosed.Error()), !isAnswer(err):
		return &lostError{err, false}
	}
	return err
}

// isAnswer tells of an error that it says what the other node, or this one's loop, has answered: a
// call that broke off says nothing.
func isAnswer(err error) bool {
	var broken *brokenCall
	return !errors.As(err, &broken)
}

// brokenCall is a call that ended without an answer.
type brokenCall struct{ error }

// asking puts a request to whoever leads until one has answered it.
type asking struct {
	state func() (*State, <-chan struct{})
	// newest asks the leader which epoch is the newest that has begun; 0 if none tells.
	newest func(context.Context) uint64
	// put asks who leads now; a lostError tells that nobody does, or not to the end.
	put func(context.Context, Request) ([]Check, error)
}

// How long a leader is waited for: one that is to begin a request, and one that knows what became
// of it.
const (
	beginMax = 10 * time.Second
	askPause = 4 * leaderLook
	// newestMax bounds the question that comes first.
	newestMax = 2 * time.Second
)

// run asks. The request is begun once, and only as long as no epoch was begun since it was asked
// for: each leader looks in the state first, also one that is the first to hear of it. The state
// here may lag a little, so the leader is asked what has begun. One that comes later is not: what
// happened until then is what the operator does not know.
func (a asking) run(ctx context.Context, r Request) ([]Check, error) {
	first, _ := a.state()
	r.V, r.Token, r.Since, r.Again = Version, rand.Text(), first.LastEpoch, false
	if !r.DryRun {
		r.Since = max(r.Since, a.newest(ctx))
	}
	var lostAt time.Time
	maybeBegun := false
	for {
		begun := time.Now()
		checks, err := a.put(ctx, r)
		var lost *lostError
		if !errors.As(err, &lost) || ctx.Err() != nil {
			return checks, err
		}
		if !lost.isSure && !changesLock(first, r) && !r.DryRun {
			return checks, err // an order to a standby, of which the next leader does not know
		}
		if lostAt.IsZero() || !lost.isSure && time.Since(begun) > askPause {
			lostAt = time.Now() // until then a leader was there, and worked on it perhaps
		}
		r.Again, maybeBegun = true, maybeBegun || !lost.isSure
		if !maybeBegun && time.Since(lostAt) > beginMax {
			return checks, fmt.Errorf("%s was not begun: %w", r.Kind, err)
		}
		if time.Since(lostAt) > followMax {
			return checks, fmt.Errorf("%s: no leader tells its outcome; see status: %w", r.Kind, err)
		}
		if pauseFor(ctx, askPause) != nil {
			return checks, err
		}
		if isKnown, err := knownOutcome(a.state, r); isKnown {
			return checks, err
		}
	}
}

// knownOutcome is what the state here tells of a request that may have been begun. It may lag, and
// never tells what is not so: a request that was overtaken once is by every later state.
func knownOutcome(state func() (*State, <-chan struct{}), r Request) (bool, error) {
	if !r.Again || r.DryRun {
		return false, nil
	}
	s, _ := state()
	w, isBegun := findWish(s, r.Token)
	switch {
	case w.isOver:
		return true, w.err
	case isBegun:
		return false, nil
	}
	err := overtaken(s, r)
	return err != nil, err
}

// Request asks the leader, wherever that is, for what an operator wants, and the next one if the
// leader changes meanwhile. It returns when that is done, or with the reason why it was not; the
// checks are the preconditions.
func (n *Node) Request(ctx context.Context, r Request) ([]Check, error) {
	s, _ := n.State()
	open, stop := n.whileOpen(ctx)
	defer stop()
	checks, err := asking{n.State, n.newestEpoch, n.putRequest}.run(open, r)
	var lost *lostError
	if errors.As(err, &lost) && errors.Is(context.Cause(open), errClosed) {
		err = fmt.Errorf("%w, and may not know the outcome: ask at another node: %w", errClosed, err)
	}
	if err == nil && !r.DryRun && changesLock(s, r) {
		n.awaitLock(ctx, lockEpoch(s))
	}
	return checks, err
}

// whileOpen ends the returned context when this node is closed: nobody answers here any more.
func (n *Node) whileOpen(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-n.stopped:
			cancel(errClosed)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// newestEpoch asks the leader which epoch is the newest that has begun. It is 0 where none answers
// soon, or one of an older release does.
func (n *Node) newestEpoch(ctx context.Context) uint64 {
	if n.isLeading() {
		s, _ := n.State()
		return s.LastEpoch
	}
	ctx, cancel := context.WithTimeout(ctx, newestMax)
	defer cancel()
	for _, p := range n.leaderPeers() {
		var a observationsAnswer
		if err := p.call(ctx, "/v1/observations", empty{Version}, &a); err == nil {
			return a.Newest
		}
	}
	return 0
}

// putRequest asks the leader that is known here.
func (n *Node) putRequest(ctx context.Context, r Request) ([]Check, error) {
	if n.isLeading() {
		checks, err := n.requestHere(ctx, r)
		return checks, asLost(err)
	}
	last := error(&lostError{ErrNoLeader, true})
	for _, p := range n.leaderPeers() {
		var a requestAnswer
		var err error
		name := p.member.Name
		whileLeads(ctx, func() bool { // a silent node does not know who does
			other := n.Leader()
			return other == "" || other == name || n.store.isSilent()
		}, func(ctx context.Context) { err = p.call(ctx, "/v1/request", r, &a) })
		switch {
		case err == nil && a.Error != "":
			err = errors.New(a.Error)
		case err != nil && !errors.Is(err, errRemote):
			err = &brokenCall{err}
		}
		last = asLost(err)
		// Only a node that surely did nothing is passed over.
		var lost *lostError
		if !errors.As(last, &lost) || !lost.isSure {
			return a.Checks, last
		}
	}
	return nil, last
}
