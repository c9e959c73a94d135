package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
)

// killPostmasterOnly kills the primary's postmaster while some of its backends hang, so that they
// hold the shared memory and no server can start there; they go on after a while.
func killPostmasterOnly(d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		pid := r.primary.Postmaster()
		children, err := clientBackends(pid)
		if err != nil {
			return err
		}
		if len(children) < 2 {
			return fmt.Errorf("the server of %s has %d backends", r.primary.Name, len(children))
		}
		stopped := children[:2]
		for _, c := range stopped {
			if err := signalProcess(c, unix.SIGSTOP); err != nil {
				return err
			}
		}
		err = r.primary.KillPostmaster()
		if err == nil {
			_, err = r.cluster.WaitEpoch(r.ctx, r.before.Epoch, time.Minute)
		}
		err = errors.Join(err, r.sleep(d))
		for _, c := range stopped {
			// The agent may have ended them already, as it should.
			if e := signalProcess(c, unix.SIGCONT); e != nil &&
				!errors.Is(e, os.ErrProcessDone) {
				err = errors.Join(err, e)
			}
		}
		return err
	}
}

// clientBackends are the children of a postmaster that serve the probers and the load.
func clientBackends(postmaster int) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			continue
		}
		title, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(title, []byte(": "+e2eUser+" ")) {
			continue
		}
		if parentOf(pid) == postmaster {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return ppid
}

// promoteAsked is what a server says when it is being promoted.
const promoteAsked = "received promote request"

// promotionAfter kills the primary's postmaster and waits until a standby's server is being
// promoted, which its log tells; it says which.
func (r *labRun) promotionAfter(timeout time.Duration) (*holdfast.ClusterNode, error) {
	logs := map[*holdfast.ClusterNode]*os.File{}
	from := map[*holdfast.ClusterNode]int64{}
	for _, n := range r.others(r.primary.Name) {
		f, err := os.Open(serverLogPath(n))
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		if from[n], err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, err
		}
		logs[n] = f
	}
	if err := r.primary.KillPostmaster(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); {
		for n, f := range logs {
			text, err := io.ReadAll(io.NewSectionReader(f, from[n], 1<<20))
			if err != nil {
				return nil, err
			}
			if bytes.Contains(text, []byte(promoteAsked)) {
				return n, nil
			}
		}
		if err := r.sleep(time.Millisecond); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("nobody is promoted")
}

// dieInPromotion kills the primary's postmaster, and while the promotion of a standby is under way
// the whole node of the candidate, of the Raft leader, or of both, which are two; then they come
// back.
func dieInPromotion(candidate, leader bool) func(*labRun) error {
	return func(r *labRun) error {
		if leader {
			if err := r.leaderElsewhere(); err != nil {
				return err
			}
		}
		if r.leader != r.primary {
			// It has every order to give and lacks commits: the other standby is chosen.
			if err := lag(r, r.leader); err != nil {
				return err
			}
		}
		to, err := r.promotionAfter(20 * time.Second)
		if err != nil {
			return err
		}
		var dead []*holdfast.ClusterNode
		if leader {
			dead = append(dead, r.leader)
		}
		if candidate {
			dead = append(dead, to)
		}
		if to == r.leader {
			return fmt.Errorf("%s leads the Raft group and is promoted: two were to be so", to.Name)
		}
		for _, n := range dead {
			r.kill(n)
		}
		at := time.Now()
		var g errgroup.Group
		for _, n := range dead {
			g.Go(func() error { return n.KillNode(r.ctx) })
		}
		err = errors.Join(g.Wait(), r.sleep(5*time.Second))
		for _, n := range dead {
			err = errors.Join(err, n.Start())
		}
		return errors.Join(err, r.checkKilledWithin(to, at))
	}
}

// checkKilledWithin tells that a kill came too late: the lock was entered before it.
func (r *labRun) checkKilledWithin(to *holdfast.ClusterNode, killed time.Time) error {
	st, err := r.cluster.WaitEpoch(r.ctx, r.before.Epoch, labHealthy)
	if err != nil {
		return err
	}
	n := r.cluster.Node(st.Node)
	changes, err := n.Changes(r.ctx)
	if err != nil {
		return err
	}
	for _, c := range slices.Backward(changes) { // the oldest first
		if c.Epoch <= r.before.Epoch {
			continue
		}
		r.t.Logf("killed in the promotion of %s; %v later the %s to %s was entered, epoch %d -> %d",
			to.Name, c.At.Sub(killed), c.Kind, c.To, r.before.Epoch, c.Epoch)
		if c.At.Before(killed) {
			return fmt.Errorf("the promotion of %s was over %v before the kill", c.To,
				killed.Sub(c.At))
		}
		return nil
	}
	return fmt.Errorf("the history has no change after epoch %d", r.before.Epoch)
}

// powerLoss takes the power from all: what was not flushed to the disks is lost, which ext4 does
// on demand. The processes are stopped first and die after the disks, so that none of them can
// write, notice or say anything.
func powerLoss(r *labRun) error {
	for _, n := range r.cluster.Nodes {
		r.kill(n)
	}
	var err error
	for _, n := range r.cluster.Nodes {
		err = errors.Join(err, n.Signal(unix.SIGSTOP), n.FreezeServer())
	}
	for _, d := range r.disks() {
		err = errors.Join(err, d.powerOff())
	}
	for _, n := range r.cluster.Nodes {
		if n.Running() {
			err = errors.Join(err, n.KillNode(r.ctx))
		}
	}
	for _, d := range r.disks() {
		err = errors.Join(err, d.powerOn())
	}
	if err != nil {
		return err
	}
	for _, n := range r.cluster.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	return nil
}
