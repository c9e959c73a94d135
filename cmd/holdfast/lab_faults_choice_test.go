package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
)

// labHandicap makes a standby unfit to take over.
type labHandicap func(*labRun, *holdfast.ClusterNode) error

// loseHostBeside loses the primary's host when one of its standbys is not fit to take over. Only
// the other one may, and must if it is known to have every commit: that takes both standbys, of
// which a full disk stops one, so that the old primary may have to come back.
func loseHostBeside(handicap labHandicap, mustChange bool) func(*labRun) error {
	return func(r *labRun) error {
		weak, strong := r.others(r.primary.Name)[0], r.others(r.primary.Name)[1]
		if err := handicap(r, weak); err != nil {
			return err
		}
		if err := loseHost(15 * time.Second)(r); err != nil {
			return err
		}
		st, err := r.cluster.WaitEpoch(r.ctx, r.before.Epoch, time.Minute)
		if err != nil {
			return err
		}
		if st.Primary == weak.Name || mustChange && st.Primary != strong.Name {
			return fmt.Errorf("%s was chosen, %s was fit", st.Primary, strong.Name)
		}
		return nil
	}
}

// lag keeps a standby from hearing of new commits, and makes sure that it lacks some.
func lag(r *labRun, n *holdfast.ClusterNode) error {
	r.net.set(r.primary.Name, n.Name, labLink{drop: isReplication})
	r.net.set(n.Name, r.primary.Name, labLink{drop: isReplication})
	if err := r.sleep(8 * time.Second); err != nil {
		return err
	}
	st, err := r.cluster.Status(r.ctx)
	if err != nil {
		return err
	}
	for _, m := range st.Members {
		if m.Name == n.Name && m.LagBytes != nil && *m.LagBytes > 0 {
			return nil
		}
	}
	return fmt.Errorf("%s lacks nothing: %+v", n.Name, st.Members)
}

// full leaves a standby no room for new commits.
func full(r *labRun, n *holdfast.ClusterNode) error {
	return errors.Join(r.data[n.Name].fill(), r.sleep(8*time.Second))
}

// fullForLong does so until commits do not count on it any more.
func fullForLong(r *labRun, n *holdfast.ClusterNode) error {
	if err := errors.Join(r.data[n.Name].fill(), r.switchWAL(4)); err != nil {
		return err
	}
	return r.until(labHealthy, func() error {
		st, err := r.cluster.Status(r.ctx)
		if err == nil && (st.Sync == nil || len(st.Sync.Leaving) > 0 ||
			slices.Contains(st.Sync.Names, n.Name)) {
			err = fmt.Errorf("commits may wait for %s: %+v", n.Name, st.Sync)
		}
		return err
	})
}

// promoteBehind loses the primary's host and promotes a standby behind the back of its agent, as
// `pg_ctl promote` would. It is of the timeline that the next primary will have, and of another
// history, and nobody can be sure that it has every commit.
func promoteBehind(r *labRun) error {
	weak := r.others(r.primary.Name)[0]
	err := loseHostWhile(15*time.Second, func(r *labRun) error {
		if err := os.WriteFile(filepath.Join(weak.DataDir, "promote"), nil, 0o600); err != nil {
			return err
		}
		if err := signalProcess(weak.Postmaster(), unix.SIGUSR1); err != nil {
			return err
		}
		signal := filepath.Join(weak.DataDir, "standby.signal")
		for until := time.Now().Add(5 * time.Second); ; {
			if _, err := os.Stat(signal); errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if time.Now().After(until) {
				return fmt.Errorf("%s was not promoted", weak.Name)
			}
			if err := r.sleep(5 * time.Millisecond); err != nil {
				return err
			}
		}
	})(r)
	if err != nil {
		return err
	}
	st, err := r.cluster.WaitEpoch(r.ctx, r.before.Epoch, time.Minute)
	if err == nil && st.Primary == weak.Name {
		err = fmt.Errorf("%s was chosen, which is on another timeline", weak.Name)
	}
	return err
}

// tagged forbids a standby's promotion by its tag, though it comes first by its priority. The
// rolling restart prepares the fault: what it did to sessions does not count as its effect.
func tagged(r *labRun, n *holdfast.ClusterNode) error {
	primary := r.primary
	err := r.restartWith(func(c *config.Config) {
		for i := range c.Group.Nodes {
			node := &c.Group.Nodes[i]
			node.Priority = 0
			if node.NoFailover = node.Name == n.Name; node.NoFailover {
				node.Priority = 100
			}
		}
	})
	if err == nil {
		err = r.begin()
	}
	if err == nil && r.primary != primary {
		err = fmt.Errorf("%s is primary after the restarts, %s was", r.primary.Name, primary.Name)
	}
	return err
}

// untag takes the tags away.
func untag(r *labRun) error { return r.restartWith(nil) }

// restartWith changes the configuration of all nodes and restarts their processes, one after the
// other; PostgreSQL lives on. It returns when their sessions are back.
func (r *labRun) restartWith(edit func(*config.Config)) error {
	for i, n := range r.cluster.Nodes {
		r.kill(n)
		if _, err := n.Terminate(r.ctx); err != nil {
			return err
		}
		if err := r.configure(n, i+1, edit); err != nil {
			return err
		}
		if err := n.Start(); err != nil {
			return err
		}
		if _, err := r.cluster.WaitHealthy(r.ctx, labHealthy); err != nil {
			return err
		}
	}
	clear(r.killed)  // all of them live
	r.load.Changed() // idle sessions read only now that their proxy has ended
	return errors.Join(r.sleep(2*time.Second), r.waitServed())
}
