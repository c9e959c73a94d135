package election

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// reachOthers tells which other members' servers answer; at most membersMax are tried, all at once.
func (p *prober) reachOthers(ctx context.Context, s *State, self string, limit time.Duration,
) []string {
	var (
		mu  sync.Mutex
		out []string
		all sync.WaitGroup
	)
	for _, m := range DataMembers(s.Members) {
		if s.Lock == nil || m.Name == s.Lock.Holder || m.Name == self {
			continue
		}
		one := prober{dialer: p.dialer}
		all.Go(func() {
			if one.try(ctx, m.Postgres, limit) == ProbeOK {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, m.Name)
			}
		})
	}
	all.Wait()
	return out
}

// sidecarView is what a sidecar tells of the primary; nobody changes one that was published.
type sidecarView struct {
	// blindFor is how long its proxy has had no connection though it tried; 0: it has not, or has
	// not tried of late.
	blindFor time.Duration
	reaches  []string
}

// sidecarWatch asks the proxy beside a sidecar. It makes no connections of its own as long as the
// proxy has no trouble: thousands that probe would load the primary more than their clients.
type sidecarWatch struct {
	blind func() time.Duration
	view  atomic.Pointer[sidecarView]
}

// reachPause is the least pause between two looks of a sidecar at the other members, and up to
// twice as long: of thousands that lost the primary at once, a few hundred try in a second.
const reachPause = 10 * time.Second

// runSidecarWatch looks every interval until ctx ends.
func (n *Node) runSidecarWatch(ctx context.Context) {
	w := n.sidecar
	var p prober
	p.dialer.LocalAddr = n.sourceAddr()
	next := time.Time{}
	for ctx.Err() == nil {
		v := sidecarView{blindFor: w.blind()}
		if old := w.view.Load(); old != nil && v.blindFor > 0 {
			v.reaches = old.reaches
		}
		if v.blindFor > 0 && !time.Now().Before(next) {
			s, _ := n.State()
			v.reaches = p.reachOthers(ctx, s, "", probeLimit(n.timing))
			next = time.Now().Add(reachPause + rand.N(reachPause))
		}
		w.view.Store(&v)
		pauseFor(ctx, n.timing.Interval)
	}
}

// load is what to tell; nothing while there is nothing wrong.
func (w *sidecarWatch) load() sidecarView {
	if w == nil {
		return sidecarView{}
	}
	if v := w.view.Load(); v != nil {
		return *v
	}
	return sidecarView{}
}
