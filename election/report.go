package election

import (
	"context"
	"errors"
	"net"
	"reflect"
	"slices"
	"sort"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// reports are the newest reports of all nodes, with the time of their arrival here.
type reports struct {
	now func() int64

	mu      sync.Mutex
	byNode  map[string]received
	changed chan struct{}
}

type received struct {
	report Report
	at     int64
}

func newReports(now func() int64) *reports {
	return &reports{now: now, byNode: make(map[string]received), changed: make(chan struct{})}
}

// take keeps a report; one that says something new wakes who waits.
func (r *reports) take(rep Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.byNode[rep.Node]
	r.byNode[rep.Node] = received{rep, r.now()}
	if !known || differs(&old.report, &rep) {
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// differs tells whether two reports of a node differ in what decisions look at; positions move
// all the time and wake nobody.
func differs(a, b *Report) bool {
	x, y := a.Member, b.Member
	x.LSN, y.LSN = 0, 0
	x.Standbys, y.Standbys = nil, nil
	x.Logical, y.Logical = withoutLSN(x.Logical), withoutLSN(y.Logical)
	return a.Epoch != b.Epoch || a.Probe != b.Probe || a.LeaseEpoch != b.LeaseEpoch ||
		a.Probe != ProbeOK && a.ProbeCount != b.ProbeCount || !reflect.DeepEqual(x, y)
}

func withoutLSN(slots []LogicalSlot) []LogicalSlot {
	out := slices.Clone(slots)
	for i := range out {
		out[i].LSN = 0
	}
	return out
}

// all lists the reports by node.
func (r *reports) all() ([]Observation, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	out := make([]Observation, 0, len(r.byNode))
	for _, v := range r.byNode {
		out = append(out, Observation{Report: v.report, Age: time.Duration(now - v.at)})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Node < out[j].Node })
	return out, r.changed
}

// prober tries to reach the lock's primary as a proxy of this node would.
type prober struct {
	dialer net.Dialer

	epoch  uint64
	result ProbeResult
	count  int
}

// probe connects and asks whether TLS is spoken, which the postmaster answers by itself or by a
// child: either shows that it lives.
func (p *prober) probe(ctx context.Context, s *State, limit time.Duration) {
	addr := ""
	if s.Lock != nil {
		for _, m := range s.Members {
			if m.Name == s.Lock.Holder {
				addr = m.Postgres
			}
		}
	}
	result := ProbeNone
	if addr != "" {
		result = p.try(ctx, addr, limit)
	}
	if e := lockEpoch(s); e != p.epoch || result != p.result {
		p.epoch, p.result, p.count = e, result, 0
	}
	p.count = min(p.count+1, 1<<20)
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

// runReports probes and reports until ctx ends: every interval, and at once when the agent has
// something new.
func (n *Node) runReports(ctx context.Context) {
	defer n.work.Done()
	p := prober{}
	p.dialer.LocalAddr = n.sourceAddr()
	t := time.NewTicker(n.timing.Interval)
	defer t.Stop()
	for ctx.Err() == nil {
		var changed <-chan struct{}
		if n.deps.Agent != nil {
			changed = n.deps.Agent.Changed()
		}
		s, newer := n.State()
		p.probe(ctx, s, n.timing.Interval*2)
		n.sendReport(ctx, n.buildReport(&p))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-newer:
		case <-t.C:
		}
	}
}

func (n *Node) buildReport(p *prober) Report {
	r := Report{
		V: Version, Node: n.cfg.Name, Epoch: p.epoch, Probe: p.result, ProbeCount: p.count,
		SyncV: SyncVersion, Sync: &SyncMode{n.cfg.SyncMode, n.cfg.SyncWait},
	}
	if n.deps.Agent != nil {
		r.Member = n.deps.Agent.Status()
	}
	if n.deps.Stats != nil {
		r.Sessions, r.Held = n.deps.Stats()
	}
	if v := n.Lease(); n.now() < v.Until() {
		r.LeaseEpoch = v.Epoch()
	}
	return r
}

// sendReport tells the leader; a report that does not get there is followed by the next one.
func (n *Node) sendReport(ctx context.Context, r Report) {
	leader := n.Leader()
	switch leader {
	case "":
		return
	case n.cfg.Name:
		n.reports.take(r)
		return
	}
	p := n.peerOf(leader)
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.timing.Interval*2)
	defer cancel()
	var a empty
	if err := p.call(ctx, "/v1/report", r, &a); err != nil {
		n.log.Debug("report was not delivered", zap.Error(err))
	}
}

// takeReport keeps a report of another node.
func (n *Node) takeReport(r Report) error {
	if !n.isNode(r.Node) {
		return errors.New("report of a node that is not in the group")
	}
	n.reports.take(r)
	return nil
}
