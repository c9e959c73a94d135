package election_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/election/electiontest"
)

// historyClient changes and reads the lock of a real group, through any of its nodes.
type historyClient struct {
	h     *history
	id    int
	r     *rand.Rand
	nodes func() []*election.Node
	// isStale makes it take a node's own state for the lock, which is a mistake.
	isStale bool
}

// historyWait bounds an operation of a client: one that meets a fault goes on without an answer.
const historyWait = 1500 * time.Millisecond

func (c *historyClient) node() *election.Node {
	nodes := c.nodes()
	return nodes[c.r.IntN(len(nodes))]
}

func (c *historyClient) apply(cmd election.Command) (election.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), historyWait)
	defer cancel()
	call := c.h.at()
	res, err := c.node().Apply(ctx, cmd)
	if !errors.Is(err, election.ErrNoLeader) { // else it was not sent
		c.h.applied(c.id, cmd, call, res, err)
	}
	if err != nil {
		time.Sleep(500 * time.Millisecond) // what is unknown makes the check long
	}
	return res, err
}

// read reads the lock through the log: a refused command tells it.
func (c *historyClient) read() {
	in, call := historyInput{kind: opRead}, c.h.at()
	if c.isStale {
		s, _ := c.node().State()
		if s.Lock != nil {
			c.h.add(c.id, in, call, historyOutput{epoch: s.Lock.Epoch})
		}
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), historyWait)
	defer cancel()
	res, err := c.node().Apply(ctx, election.Command{
		Kind:  election.CommandBegin,
		Begin: &election.BeginIntent{Kind: election.IntentFailover, FromEpoch: math.MaxInt64},
	})
	if err != nil {
		return // it changes nothing and tells nothing
	}
	out := historyOutput{}
	if _, err := fmt.Sscanf(res.Refused, "the lock is of epoch %d,", &out.epoch); err != nil {
		panic("BUG: the answer is " + res.Refused)
	}
	c.h.add(c.id, in, call, out)
}

// change takes the lock through a whole change, beginning with what some node knows.
func (c *historyClient) change() {
	s, _ := c.node().State()
	b := election.BeginIntent{
		Kind: election.IntentFailover, To: "node1", Cause: "test",
		Request: fmt.Sprint(c.id, c.r.Uint64()),
	}
	if s.Lock != nil {
		b.FromEpoch = s.Lock.Epoch
	}
	if s.Intent != nil {
		b.Replaces = s.Intent.Epoch
	}
	res, err := c.apply(election.Command{Kind: election.CommandBegin, Begin: &b})
	if err != nil || res.Refused != "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*historyWait)
	defer cancel()
	call := c.h.at()
	err = c.node().EndorseAll(ctx, res.Epoch)
	c.h.add(c.id, historyInput{kind: opEndorse, epoch: res.Epoch}, call,
		historyOutput{isUnknown: err != nil})
	if err == nil {
		l := election.Lock{Epoch: res.Epoch, Holder: "node1"}
		_, _ = c.apply(election.Command{
			Kind: election.CommandCommitLock, Commit: &election.CommitLock{Lock: l},
		})
	}
}

// run does one thing after another until stop is closed.
func (c *historyClient) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(c.r.IntN(5)) * time.Millisecond): // let others in between
		}
		switch {
		case c.r.IntN(3) == 0:
			c.change()
		case c.isStale: // as soon as somebody has changed it, if this node has not seen it
			for range 50 {
				c.read()
			}
		}
		c.read()
	}
}

// useLease records that a node's process uses its lease, again and again.
func useLease(h *history, client int, node func() *election.Node, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(3 * time.Millisecond): // often enough to meet every change
		}
		call, n := h.at(), node()
		v := n.Lease()
		epoch, until := v.Epoch(), v.Until()
		if epoch > 0 && n.Now() < until && v.Epoch() == epoch {
			h.add(client, historyInput{kind: opUse, epoch: epoch}, call, historyOutput{})
		}
	}
}

// groupHistory lets clients change and read the lock of three real nodes while the leader's disk
// hangs and nodes are stopped and started.
func groupHistory(t *testing.T, isStale bool) *history {
	t.Helper()
	g, disks := startGroupOnDisks(t)
	waitLeader(t, g)
	clock := g.Running["node1"].Now
	h := &history{now: clock}
	var mu sync.Mutex
	var nodes []*election.Node
	refresh := func() {
		mu.Lock()
		defer mu.Unlock()
		nodes = nil
		for _, m := range g.Nodes {
			if n := g.Running[m.Name]; n != nil {
				nodes = append(nodes, n)
			}
		}
	}
	refresh()
	all := func() []*election.Node {
		mu.Lock()
		defer mu.Unlock()
		return nodes
	}
	clients := make([]*historyClient, 3)
	for i := range clients {
		clients[i] = &historyClient{h: h, id: i, r: rand.New(rand.NewPCG(uint64(i), 1)),
			nodes: all, isStale: isStale}
	}
	for _, m := range g.Nodes {
		stop := make(chan struct{})
		var work sync.WaitGroup
		for i, c := range clients {
			work.Go(func() { c.run(stop) })
			node := func() *election.Node { n := all(); return n[i%len(n)] }
			work.Go(func() { useLease(h, 3+i, node, stop) })
		}
		before := h.changes()
		time.Sleep(300 * time.Millisecond) // clients meet no fault
		electiontest.Wait(t, "a change of the lock", 30*time.Second, func() bool {
			return h.changes() > before
		})
		goOn := disks[waitLeader(t, g)].Hang()
		time.Sleep(1200 * time.Millisecond) // clients meet a hanging disk
		goOn()
		waitLeader(t, g)
		n := g.Running[m.Name]
		delete(g.Running, m.Name)
		refresh() // nobody asks it any more
		g.Running[m.Name] = n
		g.Stop(m.Name)
		time.Sleep(400 * time.Millisecond) // clients go on without it
		close(stop)
		work.Wait()
		g.Start(m.Name)
		waitLeader(t, g)
		refresh()
		// What was asked for and not answered has happened once the next leader has written
		// something, or never will.
		mustApply(t, g, election.Command{Kind: election.CommandMaintenance,
			Maintenance: &election.SetMaintenance{}})
		h.settle()
	}
	return h
}

// changes is how many changes of the lock were done.
func (h *history) changes() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	done := 0
	for _, o := range h.lock {
		if o.Input.(historyInput).kind == opCommit && o.Output.(historyOutput).epoch > 0 {
			done++
		}
	}
	return done
}

// TestHistoryOfGroup puts the history of three real nodes before the checker: the lock is one
// register with compare-and-set, and no process uses an epoch once a later one is endorsed.
func TestHistoryOfGroup(t *testing.T) {
	if testing.Short() {
		t.Skip("takes real seconds")
	}
	h := groupHistory(t, false)
	if err := h.check(); err != nil {
		t.Error(err)
	}
	done := h.changes()
	t.Logf("%d operations on the lock, %d changes, %d under the lease", len(h.lock), done,
		len(h.lease))
	if done < 3 {
		t.Errorf("only %d changes of the lock", done)
	}
}

// TestHistoryFindsStaleReads: a node's own state is not the lock, and the checker sees it.
func TestHistoryFindsStaleReads(t *testing.T) {
	if testing.Short() {
		t.Skip("takes real seconds")
	}
	h := groupHistory(t, true)
	if err := h.check(); err == nil || !strings.Contains(err.Error(), "Illegal") {
		t.Errorf("stale reads are not found in %d operations: %v", len(h.lock), err)
	}
}
