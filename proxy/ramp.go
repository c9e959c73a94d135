package proxy

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"
)

// ramp bounds how many sessions log in at the same time. Those whose client waits for something go
// first; of the others every rampShare-th goes before them, so that none of them waits for good.
// Safe for concurrent use.
type ramp struct {
	mu     sync.Mutex
	free   int
	passed int       // how many of the urgent went since one of the others did
	urgent list.List // of *rampPlace, the first to go in front
	others list.List
}

// rampShare is how many go while one who is not urgent waits, himself included.
const rampShare = 8

// rampPlace is a place in the queue; got is closed when it is one in the ramp.
type rampPlace struct {
	got chan struct{}
	in  *list.List // nil once it was given
	at  *list.Element
}

func newRamp(places int) *ramp { return &ramp{free: places} }

// queue asks for a place.
func (r *ramp) queue(urgent bool) *rampPlace {
	p := &rampPlace{got: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.free > 0 {
		r.free--
		close(p.got)
		return p
	}
	p.in = &r.others
	if urgent {
		p.in = &r.urgent
	}
	p.at = p.in.PushBack(p)
	return p
}

// hurry makes a place that was not given yet an urgent one.
func (r *ramp) hurry(p *rampPlace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.in == &r.others {
		r.others.Remove(p.at)
		p.in, p.at = &r.urgent, r.urgent.PushBack(p)
	}
}

// cancel gives a place up, or back.
func (r *ramp) cancel(p *rampPlace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.in == nil {
		r.leaveLocked()
		return
	}
	p.in.Remove(p.at)
	p.in = nil
}

// leave gives a place back.
func (r *ramp) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaveLocked()
}

func (r *ramp) leaveLocked() {
	from := &r.urgent
	if from.Len() == 0 || r.others.Len() > 0 && r.passed >= rampShare-1 {
		from = &r.others
	}
	first := from.Front()
	if first == nil {
		r.free++
		return
	}
	if r.passed++; from == &r.others {
		r.passed = 0
	}
	p := from.Remove(first).(*rampPlace)
	p.in = nil
	close(p.got)
}

const (
	// rampWait bounds one wait for a place in the ramp, so that the hold looks after its client.
	rampWait = time.Second
	// rampLook is how often a session that waits looks whether its client does by now.
	rampLook = 200 * time.Millisecond
)

// enterRamp waits for one of the places of those who log in at the same time. Sessions with
// advisory locks are urgent, since all others wait for them.
func (s *session) enterRamp(ctx context.Context, l *loss, login bool) error {
	r := s.proxy.ramp
	s.mu.Lock()
	urgent := login || s.hasLocks
	s.mu.Unlock()
	urgent = urgent || s.isWaitedFor(l)
	p := r.queue(urgent)
	select {
	case <-p.got:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, rampWait)
	defer cancel()
	look := time.NewTicker(rampLook)
	defer look.Stop()
	for {
		select {
		case <-p.got:
			return nil
		case <-ctx.Done():
			r.cancel(p)
			return fmt.Errorf("wait for other sessions' logins: %w", ctx.Err())
		case <-look.C:
			if !urgent && s.isWaitedFor(l) {
				urgent = true
				r.hurry(p)
			}
		}
	}
}

// isWaitedFor tells that the client waits for an answer, or has sent something.
func (s *session) isWaitedFor(l *loss) bool {
	return l.waiting() || len(s.in.bytes()) > 0 || s.client.probe() == peerReadable
}
