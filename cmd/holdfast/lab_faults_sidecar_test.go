package main_test

import (
	"errors"
	"fmt"
	"time"
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
