package election

import (
	"context"
	"fmt"
	"strconv"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
)

// isOutOfRaft tells that this node takes and makes no connection of Raft: its disk fails, or it
// lost its log and does not know yet what it may vote for.
func (n *Node) isOutOfRaft() bool {
	return n.store.isSilent() || n.regain.Load().waits() != ""
}

// isBehind tells that the own state does not show what the group has: also after a start, until a
// leader has told what of the log is committed. Raft's leader waits up to 10 s before it turns to
// a node again that was away; the proxy beside it needs the lock at once (DESIGN.md I6a).
func (n *Node) isBehind() bool {
	// A follower without room for entries takes part, and has them not (DESIGN.md I6a).
	if n.isOutOfRaft() || n.store.refused.Load() {
		return true
	}
	r := n.raft.Load()
	if r == nil {
		return false
	}
	return r.AppliedIndex() < r.LastIndex() || n.regain.Load() != nil && n.raftPosition().Lost
}

// openRegain finds out whether this node lost its log. It comes before anything is written there.
func (n *Node) openRegain(hasLog bool, snaps raft.SnapshotStore) error {
	here, err := n.storedPosition(snaps)
	if err != nil {
		return err
	}
	g, err := loadRegain(n.store, hasLog, here)
	if err == nil && g != nil {
		n.regain.Store(g)
	}
	return err
}

// regainedTransport is the transport that Raft gets; what it needs runs until Close.
func (n *Node) regainedTransport() voteTransport {
	g := n.regain.Load()
	if g == nil {
		return n.transport
	}
	t := newRegainTransport(n.transport, g, n.cfg.Name)
	n.goRun(func(context.Context) { t.run(n.stopped) })
	n.goRun(func(ctx context.Context) { n.runRegain(ctx, g) })
	return t
}

// storedPosition is the position before Raft runs.
func (n *Node) storedPosition(snaps raft.SnapshotStore) (raftPosition, error) {
	var p raftPosition
	term, err := n.store.GetUint64([]byte("CurrentTerm"))
	if err != nil && err.Error() != "not found" {
		return p, fmt.Errorf("read the term: %w", err)
	}
	p.Term = term
	last, err := n.store.LastIndex()
	if err != nil {
		return p, fmt.Errorf("read the Raft log: %w", err)
	}
	if last > 0 {
		var l raft.Log
		if err := n.store.GetLog(last, &l); err != nil {
			return p, fmt.Errorf("read entry %d of the Raft log: %w", last, err)
		}
		p.LogTerm, p.LogIndex = l.Term, l.Index
	}
	list, err := snaps.List()
	if err != nil {
		return p, fmt.Errorf("list snapshots: %w", err)
	}
	if len(list) > 0 && p.compareLog(list[0].Term, list[0].Index) < 0 {
		p.LogTerm, p.LogIndex = list[0].Term, list[0].Index
	}
	return p, nil
}

// raftPosition is the position of the running Raft; nil before it runs.
func (n *Node) raftPosition() *raftPosition {
	r := n.raft.Load()
	if r == nil {
		return nil
	}
	stats := r.Stats()
	number := func(key string) uint64 {
		v, _ := strconv.ParseUint(stats[key], 10, 64)
		return v
	}
	// A term that is read after the log is not older than the log.
	p := &raftPosition{
		LogTerm: number("last_log_term"), LogIndex: number("last_log_index"), Term: r.CurrentTerm(),
	}
	if t, i := number("last_snapshot_term"), number("last_snapshot_index"); p.compareLog(t, i) < 0 {
		p.LogTerm, p.LogIndex = t, i
	}
	for _, srv := range n.raftServers() {
		if srv.Suffrage == raft.Voter {
			p.Voters = append(p.Voters, string(srv.ID))
		}
	}
	if g := n.regain.Load(); g != nil {
		p.Lost = !g.record().isCaughtUp(*p)
	}
	return p
}

// runRegain asks the other nodes until their answers tell what this one may vote for.
func (n *Node) runRegain(ctx context.Context, g *regain) {
	for round := 0; ctx.Err() == nil && g.waits() != ""; {
		answers := make(map[string]raftPosition)
		for name, a := range n.sayHello(ctx, false) {
			if a.Cluster == n.cfg.Cluster && a.Raft != nil {
				answers[name] = *a.Raft
			}
		}
		var configured []string
		for _, m := range n.cfg.Nodes {
			configured = append(configured, m.Name)
		}
		rec, why := judgeRegain(n.cfg.Name, configured, answers)
		if why == "" {
			n.regained(g, rec)
			return
		}
		g.mu.Lock()
		g.why = why
		g.mu.Unlock()
		if round++; round%admitWarn == 0 {
			n.log.Warn("node without a raft log takes no part in raft yet",
				zap.String("reason", why))
		}
		pauseFor(ctx, admitPause)
	}
}

// regained lets Raft in, once what it may vote for is durable.
func (n *Node) regained(g *regain, rec regainRecord) {
	if err := saveRegain(n.store, rec); err != nil {
		n.log.Error("what the others know of raft could not be written", zap.Error(err))
		return
	}
	g.mu.Lock()
	g.rec = rec
	g.mu.Unlock()
	n.log.Info("node without a raft log takes part in raft", zap.Uint64("term", rec.Term),
		zap.Uint64("log_term", rec.LogTerm), zap.Uint64("log_index", rec.LogIndex))
}
