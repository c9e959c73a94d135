package main_test

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
)

// labOrder is in which order the nodes are started: 0 is that of the primary.
type labOrder [3]int

var labOrders = []labOrder{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}

// primaryLast is the order in which the others could go on without the primary's node first.
var primaryLast = labOrder{2, 1, 0}

// labStartPause is between the starts: long enough that their order is certain.
const labStartPause = 500 * time.Millisecond

// labEndMax bounds the end of all nodes, an orderly one too.
const labEndMax = 6 * time.Second

// byProcess ends a node's process by a signal; PostgreSQL lives on.
func byProcess(sig syscall.Signal) func(*labRun, *holdfast.ClusterNode) error {
	return func(r *labRun, n *holdfast.ClusterNode) error {
		if err := n.Signal(sig); err != nil {
			return err
		}
		_, err := n.Wait(r.ctx)
		return err
	}
}

// withServer kills a node and its server.
func withServer(r *labRun, n *holdfast.ClusterNode) error { return n.KillNode(r.ctx) }

// restartAll ends all three nodes at once and starts them, once in each of the orders. Each time
// the same primary must be back.
func restartAll(end func(*labRun, *holdfast.ClusterNode) error, orders ...labOrder) func(
	*labRun) error {
	return func(r *labRun) error {
		for _, order := range orders {
			begin := time.Now()
			if err := r.restartOnce(end, order); err != nil {
				return fmt.Errorf("started in the order %v: %w", order, err)
			}
			r.t.Logf("ended and started in the order %v: served after %.1f s", order,
				time.Since(begin).Seconds())
		}
		return nil
	}
}

func (r *labRun) restartOnce(end func(*labRun, *holdfast.ClusterNode) error, order labOrder) error {
	for _, n := range r.cluster.Nodes {
		r.kill(n)
	}
	// At once, so that none of them sees another one gone and does something about it.
	var g errgroup.Group
	for _, n := range r.cluster.Nodes {
		g.Go(func() error { return end(r, n) })
	}
	begin := time.Now()
	if err := g.Wait(); err != nil {
		return err
	}
	if took := time.Since(begin); took > labEndMax {
		return fmt.Errorf("the nodes took %v to end, at most %v is allowed", took, labEndMax)
	}
	nodes := append([]*holdfast.ClusterNode{r.primary}, r.others(r.primary.Name)...)
	for i, at := range order {
		if i > 0 {
			if err := r.sleep(labStartPause); err != nil {
				return err
			}
		}
		if err := nodes[at].Start(); err != nil {
			return err
		}
	}
	st, err := r.cluster.WaitHealthy(r.ctx, labHealthy)
	if err == nil {
		err = r.waitServed()
	}
	if err == nil && st.Primary != r.primary.Name {
		err = fmt.Errorf("%s is primary, %s was (epoch %d -> %d)", st.Primary, r.primary.Name,
			r.before.Epoch, st.Epoch)
	}
	return err
}

// labServedMax bounds the time until there are commits through each proxy: voters that were just
// started promise nothing at first.
const labServedMax = 20 * time.Second

// waitServed waits for a commit through each proxy, so that the next end befalls a cluster at work.
func (r *labRun) waitServed() error {
	begin := time.Now()
	for _, p := range r.probers {
		for at := p.clock.Total(); p.clock.Total() == at; {
			if time.Since(begin) > labServedMax {
				return fmt.Errorf("no commit through %s for %v", p.node.Name, labServedMax)
			}
			if err := r.sleep(20 * time.Millisecond); err != nil {
				return err
			}
		}
	}
	return nil
}

var (
	allKilled     = byProcess(unix.SIGKILL)
	allTerminated = byProcess(unix.SIGTERM)
)
