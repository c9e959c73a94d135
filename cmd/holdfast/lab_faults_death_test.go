package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

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

// intentTo waits until a change is under way and says to whom.
func (r *labRun) intentTo(timeout time.Duration) (*holdfast.ClusterNode, error) {
	deadline := time.Now().Add(timeout)
	for time.Now().Before(deadline) {
		for _, n := range r.others(r.primary.Name) {
			st, err := n.Status(r.ctx)
			if err != nil {
				continue
			}
			if st.Intent != nil && st.Intent.To != "" {
				if to := r.cluster.Node(st.Intent.To); to != nil {
					return to, nil
				}
			}
			if st.Epoch > r.before.Epoch {
				return nil, fmt.Errorf("the change to %s was over before it was seen", st.Primary)
			}
		}
		if err := r.sleep(2 * time.Millisecond); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("no change came under way")
}

// dieInPromotion kills the primary's whole node, and the candidate's or the Raft leader's or both
// while the promotion is under way; then all come back.
func dieInPromotion(candidate, leader bool) func(*labRun) error {
	return func(r *labRun) error {
		if leader {
			if err := r.leaderElsewhere(); err != nil {
				return err
			}
		}
		for _, n := range r.cluster.Nodes {
			r.killed[n.Name] = true // which ones die shows only later
		}
		if err := r.primary.KillPostmaster(); err != nil {
			return err
		}
		to, err := r.intentTo(20 * time.Second)
		if err != nil {
			return err
		}
		var dead []*holdfast.ClusterNode
		if candidate {
			dead = append(dead, to)
		}
		if leader && (!candidate || r.leader != to) {
			dead = append(dead, r.leader)
		}
		for _, n := range dead {
			r.kill(n)
			err = errors.Join(err, n.KillNode(r.ctx))
		}
		err = errors.Join(err, r.sleep(5*time.Second))
		for _, n := range dead {
			err = errors.Join(err, n.Start())
		}
		return err
	}
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
