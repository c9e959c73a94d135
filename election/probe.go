package election

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// probeRepeats is how many failed probes in a row make a node blind.
const probeRepeats = 3

// reachRepeats is how many looks in a row a member has to answer in before a blind node reaches it.
// It is more than what makes a node blind: a minute in which the network is slow all around has
// many looks, and three that are in time by chance are too likely.
const reachRepeats = 5

// probeLimit bounds one probe: the probes that make a node blind fit into the time in which a
// standby notices the same silence, so that neither waits for the other.
func probeLimit(t Timing) time.Duration { return min(2*t.Interval, t.Silence/probeRepeats) }

// prober tries to reach the lock's primary as a proxy of this node would.
type prober struct {
	dialer net.Dialer

	epoch  uint64
	result ProbeResult
	count  int
	// blindAt is when, since the newest success under the epoch, the first probe failed; 0: none
	// has. notedAt is when the newest result came: of a pause since then nothing is known. usableAt is
	// when the newest success under the epoch was; 0: none was. reached counts for each other member
	// in how many of the newest looks in a row, made with the probes that failed, its server
	// answered.
	blindAt, notedAt, usableAt int64
	reached                    map[string]int
	// gap is how long this process may have been paused for what it saw before to count; 0: any.
	gap time.Duration
}

// probed is what one probe found, and under which epoch.
type probed struct {
	epoch   uint64
	result  ProbeResult
	reaches []string
}

// probe connects and asks whether TLS is spoken, which the postmaster answers by itself or by a
// child: either shows that it lives.
func (p *prober) probe(ctx context.Context, s *State, limit time.Duration) probed {
	out := probed{epoch: lockEpoch(s), result: ProbeNone}
	if s.Lock == nil {
		return out
	}
	for _, m := range s.Members {
		if m.Name == s.Lock.Holder && m.Postgres != "" {
			out.result = p.try(ctx, m.Postgres, limit)
		}
	}
	return out
}

// isBlind tells that the newest probe failed.
func (p *prober) isBlind() bool { return p.blindAt != 0 }

// nearlyBlind tells that one more failed probe makes the node blind, or that it has become so not
// long ago: standbys may be about to notice the same.
func (p *prober) nearlyBlind(silence time.Duration) bool {
	return p.isBlind() && p.count >= probeRepeats-1 && p.blindFor() < 2*silence
}

// reaches are the members that answered in so many looks in a row: where the network is slow all
// around, looks that were in time by chance must not move the primary.
func (p *prober) reaches(repeats int) []string {
	var out []string
	for name, n := range p.reached {
		if n >= repeats {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// blindFor is how long no probe has succeeded, as far as this process was there to see it.
func (p *prober) blindFor() time.Duration { return time.Duration(p.notedAt - p.blindAt) }

// usableAgo is how long ago a probe under the epoch has succeeded; 0 if none has.
func (p *prober) usableAgo() time.Duration {
	if p.usableAt == 0 {
		return 0
	}
	return time.Duration(p.notedAt - p.usableAt)
}

// probeGap is prober.gap of a node; no profile probes less often. A probe that was under way in a
// pause fails whatever there is to see.
const probeGap = 5 * time.Second

// note counts equal results in a row. A probe that fails by its time and one that fails otherwise
// are equal in that nobody has answered: a router may answer some for a host that is gone.
func (p *prober) note(r probed, now int64) {
	if p.gap > 0 && now-p.notedAt > int64(p.gap) {
		p.blindAt, p.reached, r.reaches = 0, nil, nil
	}
	p.notedAt = now
	if r.epoch != p.epoch {
		p.usableAt = 0
	}
	if r.result == ProbeOK {
		p.usableAt = now
	}
	switch {
	case r.result == ProbeOK || r.result == ProbeNone:
		p.blindAt = 0
	case r.epoch != p.epoch || p.blindAt == 0:
		p.blindAt = now
	}
	reached := map[string]int{}
	for _, name := range r.reaches {
		reached[name] = min(p.reached[name]+1, reachRepeats)
	}
	p.reached = reached
	isSame := r.result == p.result || isUnanswered(r.result) && isUnanswered(p.result)
	if r.epoch != p.epoch || !isSame {
		p.count = 0
	}
	p.epoch, p.result, p.count = r.epoch, r.result, min(p.count+1, 1<<20)
}

func (p *prober) try(ctx context.Context, addr string, limit time.Duration) ProbeResult {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := p.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return probeFailure(err)
	}
	defer c.Close()
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	if _, err := c.Write(pgwire.AppendSSLRequest(nil)); err != nil {
		return probeFailure(err)
	}
	var b [1]byte
	if _, err := c.Read(b[:]); err != nil {
		return probeFailure(err)
	}
	return ProbeOK
}

// isUnanswered tells that nobody has answered a probe.
func isUnanswered(r ProbeResult) bool { return r == ProbeTimeout || r == ProbeError }

func probeFailure(err error) ProbeResult {
	var ne net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return ProbeRefused
	case errors.As(err, &ne) && ne.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return ProbeTimeout
	}
	return ProbeError
}

// reporter is the state of runReports; nobody else touches it.
type reporter struct {
	n *Node
	prober
	// found has the result of the probe under way; cancel ends that one, nil if there is none.
	found  chan probed
	cancel context.CancelFunc
	// under is the epoch of the probe under way.
	under uint64
	// mail holds the newest report until the sender takes it; life is this process in them.
	mail chan Report
	life uint64
	work sync.WaitGroup
}

// runReports probes and reports until ctx ends: every interval, and at once when the agent has
// something new. Neither a probe nor a leader that answers nothing holds up the next report.
func (n *Node) runReports(ctx context.Context) {
	defer n.work.Done()
	r := reporter{n: n, found: make(chan probed, 1), mail: make(chan Report, 1),
		life: rand.Uint64() | 1}
	defer r.work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.dialer.LocalAddr, r.gap = n.sourceAddr(), probeGap
	r.work.Go(func() {
		sendReports(ctx, r.mail, n.now,
			func(rep Report) bool { return n.sendReport(ctx, rep) })
	})
	t := time.NewTicker(n.timing.Interval)
	defer t.Stop()
	isDue, tell := true, false
	for {
		var changed <-chan struct{}
		if n.deps.Agent != nil {
			changed = n.deps.Agent.Changed()
		}
		s, newer := n.State()
		if tell {
			r.post(n.buildReport(&r.prober))
		}
		isDue = isDue && !r.start(ctx, s)
		tell = true
		select {
		case <-ctx.Done():
			return
		case p := <-r.found:
			r.cancel()
			r.cancel = nil
			r.note(p, n.now())
			r.lookClosely(s)
		case <-changed:
			isDue = true
		case <-newer:
			isDue = true
		case <-t.C:
			// A quick probe's report follows at once.
			isDue, tell = true, r.cancel != nil
		}
	}
}

// lookClosely has the agent look at its standby when the primary falls silent; a primary's own
// agent has nothing to see by that.
func (r *reporter) lookClosely(s *State) {
	a, ok := r.n.deps.Agent.(WatchfulAgent)
	if ok && s.Lock != nil && s.Lock.Holder != r.n.cfg.Name && r.nearlyBlind(r.n.timing.Silence) {
		a.LookClosely()
	}
}

// start starts a probe unless one is under way; one of an earlier epoch is cut short.
func (r *reporter) start(ctx context.Context, s *State) bool {
	if r.cancel != nil {
		if r.under != lockEpoch(s) {
			r.cancel()
		}
		return false
	}
	ctx, r.cancel = context.WithCancel(ctx)
	r.under = lockEpoch(s)
	p := prober{dialer: r.dialer} // the goroutine's own
	// Nothing is known of a new lock's primary yet, and its first answer waits for nobody.
	self, isBlind := r.n.cfg.Name, r.isBlind() && r.epoch == r.under
	r.work.Go(func() {
		var others sync.WaitGroup
		var reaches []string
		if isBlind {
			others.Go(func() { reaches = p.reachOthers(ctx, s, self, probeLimit(r.n.timing)) })
		}
		out := p.probe(ctx, s, probeLimit(r.n.timing))
		others.Wait()
		out.reaches = reaches
		r.found <- out
	})
	return true
}

// post leaves a report for the sender, in the place of an older one.
func (r *reporter) post(rep Report) {
	rep.Life, rep.At = r.life, r.n.now()
	select {
	case <-r.mail:
	default:
	}
	r.mail <- rep // room: this is the only sender
}

// leaderLook is how often a report that waits looks whether there is another leader.
const leaderLook = 25 * time.Millisecond

// sendReports tells the leader. A report that does not get there is followed by the next one; one
// for which there was no leader, or no longer, goes to the next leader as soon as there is one, and
// tells for how long it was kept.
func sendReports(ctx context.Context, mail <-chan Report, now func() int64,
	send func(Report) (isDone bool),
) {
	for {
		var r Report
		select {
		case <-ctx.Done():
			return
		case r = <-mail:
		}
		for !send(r.sentAt(now())) {
			t := time.NewTimer(leaderLook)
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case r = <-mail:
			case <-t.C:
			}
			t.Stop()
		}
	}
}

// sendReport tells the leader; false if there is none, or another one since. A silent node may not
// know yet who leads, or that it does not lead itself, for as long as its disk hangs: it tells all
// others, at once as one of them may be away. Else the next leader would not hear of a primary
// beside a bad Raft disk.
func (n *Node) sendReport(ctx context.Context, r Report) (isDone bool) {
	if n.store.isSilent() {
		var all sync.WaitGroup
		for _, p := range n.peers.list() {
			all.Go(func() { n.sendReportTo(ctx, p, r) })
		}
		all.Wait()
		return true
	}
	leader := n.Leader()
	switch leader {
	case "":
		return false
	case n.cfg.Name:
		n.reports.take(r)
		return true
	}
	isLeft := false
	if p := n.peerOf(leader); p != nil {
		isLeft = whileLeads(ctx, func() bool { return n.Leader() == leader },
			func(ctx context.Context) { n.sendReportTo(ctx, p, r) })
	}
	return !isLeft
}

// whileLeads calls f and ends it when isLeader does not hold any more, which it tells: a host that
// is gone answers nothing, and what it was to be told waits for that.
func whileLeads(ctx context.Context, isLeader func() bool, f func(context.Context)) (isLeft bool) {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		t := time.NewTicker(leaderLook)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			if !isLeader() {
				isLeft = true
				cancel()
				return
			}
		}
	})
	f(ctx)
	cancel()
	watch.Wait()
	return isLeft
}

func (n *Node) sendReportTo(ctx context.Context, p *peer, r Report) {
	ctx, cancel := context.WithTimeout(ctx, n.timing.Interval*2)
	defer cancel()
	var a empty
	if err := p.call(ctx, "/v1/report", r, &a); err != nil {
		n.log.Debug("report was not delivered", zap.Error(err))
	}
}
