package election

import (
	"errors"
	"reflect"
	"slices"
	"sort"
	"sync"
	"time"
)

// reports are the newest reports of all nodes, with the time since when each is true.
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

// take keeps a report; one that says something new wakes who waits. Its age is counted from when it
// was made, but for the way here; one that newer ones have overtaken says nothing any more.
func (r *reports) take(rep Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.byNode[rep.Node]
	if known && rep.isBefore(&old.report) {
		return
	}
	r.byNode[rep.Node] = received{rep, r.now() - int64(max(0, rep.Kept))}
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

func (n *Node) buildReport(p *prober) Report {
	r := Report{
		V: Version, Node: n.cfg.Name, Epoch: p.epoch, Probe: p.result, ProbeCount: p.count,
		SyncV: SyncVersion, Sync: &SyncMode{n.cfg.SyncMode, n.cfg.SyncWait},
	}
	if p.isBlind() {
		r.BlindFor, r.UsableAgo = p.blindFor(), p.usableAgo()
		r.Reaches = p.reaches(reachRepeats)
	}
	s, _ := n.State()
	r.Borrowers = n.lessee.borrowers(s, n.cfg.CutOffAfter)
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

// takeReport keeps a report of another node.
func (n *Node) takeReport(r Report) error {
	if !n.isNode(r.Node) {
		return errors.New("report of a node that is not in the group")
	}
	n.reports.take(r)
	return nil
}
