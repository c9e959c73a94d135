package main_test

import (
	"errors"
	"fmt"
	"time"

	holdfast "holdfast/cmd/holdfast"
)

// The sidecar's name and address. It is a host beside application servers: no voter, no PostgreSQL.
const (
	labSidecar     = "app-1"
	labSidecarAddr = "10.99.0.4"
)

// labGoesOnMax bounds the time until a sidecar that was cut off has commits again.
const labGoesOnMax = 5 * time.Second

// startSidecar starts a sidecar on its host; the load does not go through it, a prober does.
func (l *lab) startSidecar() error {
	n, err := l.cluster.NewSidecar(l.t.Context(), labSidecar)
	if err != nil {
		return err
	}
	n.HTTP = "127.0.0.4:7401"
	if err := n.ConfigureSidecar(); err != nil {
		return err
	}
	l.sidecar = n
	return n.Start()
}

func theSidecar(*labRun) []string { return []string{labSidecar} }

// theSidecarAnd adds the sidecar to nodes whose proxies must go on.
func theSidecarAnd(nodes func(*labRun) []string) func(*labRun) []string {
	return func(r *labRun) []string { return append(nodes(r), labSidecar) }
}

// notTheLost are the nodes that a fault did not kill.
func notTheLost(r *labRun) []string {
	var list []string
	for _, n := range r.cluster.Nodes {
		if !r.killed[n.Name] {
			list = append(list, n.Name)
		}
	}
	return list
}

// lender finds the node that the sidecar borrows from: the only one that is asked for a while.
func (r *labRun) lender() (*holdfast.ClusterNode, error) {
	asked := func() (map[string]int, error) {
		counts := map[string]int{}
		for _, n := range r.cluster.Nodes {
			// One that was never asked has no such metric.
			count, err := metricOf(r.ctx, r.net.host(n.Name).dial, n,
				`holdfast_election_requests_total{path="borrow"}`)
			if err == nil {
				counts[n.Name] = count
			}
		}
		return counts, r.ctx.Err()
	}
	for range 10 {
		before, err := asked()
		if err := errors.Join(err, r.sleep(2*time.Second)); err != nil {
			return nil, err
		}
		now, err := asked()
		if err != nil {
			return nil, err
		}
		var found []*holdfast.ClusterNode
		for _, n := range r.cluster.Nodes {
			if now[n.Name] > before[n.Name] {
				found = append(found, n)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
	}
	return nil, errors.New("the sidecar does not borrow from one node")
}

// placeLender makes the node that lends the primary's, or another one, by switchovers; the sidecar
// may turn to the next node with each.
func (r *labRun) placeLender(isPrimary bool) (*holdfast.ClusterNode, error) {
	for range 6 {
		n, err := r.lender()
		if err != nil {
			return nil, err
		}
		if (n == r.primary) == isPrimary {
			return n, nil
		}
		to := n
		if !isPrimary {
			to = r.others(n.Name)[0]
		}
		if err := r.cluster.Switchover(r.ctx, to.Name); err != nil {
			return nil, err
		}
		r.load.Changed()
		if err := errors.Join(r.sleep(2*time.Second), r.begin()); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the sidecar turns to another node with each switchover")
}

// loseLender takes the host away that lends to the sidecar, the primary's or another one.
func loseLender(isPrimary bool, d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		n, err := r.placeLender(isPrimary)
		if err != nil {
			return err
		}
		r.start = time.Now()
		return r.loseHostOf(n, d, func(*labRun) error { return nil })
	}
}

// cutSidecar cuts the sidecar off the nodes as far as they are voters, and does something else
// meanwhile. Its server still answers it: its sessions wait for the lease alone, and go on with it.
func cutSidecar(d time.Duration, meanwhile func(*labRun) error) func(*labRun) error {
	return func(r *labRun) error {
		begin := time.Now()
		for _, n := range r.cluster.Nodes {
			r.net.set(labSidecar, n.Name, labLink{drop: isControl})
			r.net.set(n.Name, labSidecar, labLink{drop: isControl})
		}
		if meanwhile != nil {
			if err := errors.Join(r.sleep(d/4), meanwhile(r)); err != nil {
				return err
			}
		}
		err := r.sleep(d - time.Since(begin))
		r.net.heal()
		return errors.Join(err, r.sidecarGoesOn())
	}
}

// sidecarGoesOn waits for the next commits through the sidecar.
func (r *labRun) sidecarGoesOn() error {
	p := r.probers[len(r.probers)-1]
	begin, before := time.Now(), p.clock.Total()
	return r.until(labGoesOnMax, func() error {
		if p.clock.Total() > before+2 {
			return nil
		}
		return fmt.Errorf("no commit through the sidecar %.1f s after the cut has ended",
			time.Since(begin).Seconds())
	})
}
