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
	// epoch is the one of the primary that it is about.
	epoch uint64
	// blindFor is how long its proxy has got no connection though it tried, and probes fail as
	// well; 0: it has got one, or has not tried of late, or is only slow.
	blindFor time.Duration
	reaches  []string
}

// sidecarWatch asks the proxy beside a sidecar. It makes no connections of its own as long as the
// proxy has no trouble: thousands that probe would load the primary more than their clients.
type sidecarWatch struct {
	blind func() (epoch uint64, d time.Duration)
	view  atomic.Pointer[sidecarView]
}

// sidecarRepeats is in how many looks in a row a member has to answer a sidecar that the primary
// answers in none of them.
const sidecarRepeats = 2

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
		epoch, blindFor := w.blind()
		if blindFor == 0 {
			p = prober{dialer: p.dialer}
		} else if !time.Now().Before(next) {
			n.lookAround(ctx, &p)
			next = time.Now().Add(reachPause + rand.N(reachPause))
		}
		w.view.Store(sidecarSees(&p, epoch, blindFor))
		pauseFor(ctx, n.timing.Interval)
	}
}

// lookAround probes the primary and the other members as one. A login takes many times what a
// probe takes: where a network or a primary is slow, logins run out of time and members answer, the
// primary among them, and another primary would be as slow.
func (n *Node) lookAround(ctx context.Context, p *prober) {
	s, _ := n.State()
	var others sync.WaitGroup
	var reaches []string
	others.Go(func() { reaches = p.reachOthers(ctx, s, "", probeLimit(n.timing)) })
	out := p.probe(ctx, s, probeLimit(n.timing))
	others.Wait()
	if out.result != ProbeOK {
		out.reaches = reaches
	}
	p.note(out, n.now())
}

// sidecarSees is what to tell when the proxy has got no connection for blindFor under the epoch.
func sidecarSees(p *prober, epoch uint64, blindFor time.Duration) *sidecarView {
	if blindFor == 0 || !p.isBlind() || p.epoch != epoch {
		return &sidecarView{}
	}
	return &sidecarView{epoch, blindFor, p.reaches(sidecarRepeats)}
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
