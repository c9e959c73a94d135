package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
)

// freezeRaft freezes a node's Raft disk; the watchdog would thaw it a little later.
func freezeRaft(d time.Duration) func(*labRun, *holdfast.ClusterNode) error {
	return func(r *labRun, n *holdfast.ClusterNode) error {
		return freezeFor(r, r.raft[n.Name], d)
	}
}

// labChangeMax bounds a switchover while one node's Raft disk is bad, labCaughtUpMax the return of
// that node once it is well again.
const (
	labChangeMax   = 8 * time.Second
	labCaughtUpMax = 15 * time.Second
)

// labHurt is what is done to a Raft disk until the fault ends.
type labHurt struct {
	begin, end func(*labDisk) error
	// press makes the node write until it feels it, where a change may not be enough; or nil.
	press func(r *labRun, n *holdfast.ClusterNode, isFelt func() (bool, error)) error
	// isFelt tells whether the node's log, from when the fault began, or its state shows that it
	// could not write.
	isFelt func(own, group holdfast.Status, log []byte) bool
}

var frozen = labHurt{
	begin: func(d *labDisk) error { return d.freeze(40 * time.Second) },
	end:   (*labDisk).thaw,
	// Its log on the disk ends before that of the others.
	isFelt: func(own, group holdfast.Status, _ []byte) bool {
		return own.RaftLastIndex < group.RaftLastIndex
	},
}

// noRoom leaves room for small entries inside of the log's file, which are used up first. The node
// says what it could not write.
var noRoom = labHurt{begin: (*labDisk).fill, end: (*labDisk).empty, press: writeToGroup,
	isFelt: func(_, _ holdfast.Status, log []byte) bool {
		return bytes.Contains(log, []byte("no space left on device"))
	},
}

// writeToGroup has the group write entries until a node feels it: maintenance begins and ends.
func writeToGroup(r *labRun, n *holdfast.ClusterNode, isFelt func() (bool, error)) error {
	post, err := r.maintenanceAt(r.others(n.Name)[0])
	if err != nil {
		return err
	}
	for i := range 200 {
		if is, err := isFelt(); is || err != nil {
			r.out.isSpoilt = true // until maintenance has ended
			if e := r.until(labChangeMax, func() error { return post(`{"on":false}`) }); e != nil {
				return errors.Join(err, e)
			}
			r.out.isSpoilt = false
			return err
		}
		// Each reason is another one, so that each is an entry. One that fails is not missed: the
		// leader may step down because of its disk.
		_ = post(fmt.Sprintf(`{"on":true,"reason":"%d%s"}`, i, strings.Repeat("x", 200)))
	}
	return fmt.Errorf("%s does not feel 200 entries", n.Name)
}

// maintenanceAt posts to a node that maintenance begins or ends.
func (r *labRun) maintenanceAt(n *holdfast.ClusterNode) (post func(body string) error, err error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: r.net.host(n.Name).dial}}
	token, err := config.ReadSecret(n.TokenFile)
	if err != nil {
		return nil, err
	}
	return func(body string) error {
		req, err := http.NewRequestWithContext(r.ctx, http.MethodPost,
			"http://"+n.HTTP+"/v1/maintenance", strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			err = errors.New("maintenance: " + resp.Status)
		}
		return errors.Join(err, resp.Body.Close())
	}, nil
}

// until tries again until it goes well.
func (r *labRun) until(limit time.Duration, try func() error) error {
	for begin := time.Now(); ; {
		err := try()
		if err == nil || time.Since(begin) > limit {
			return err
		}
		if err := r.sleep(200 * time.Millisecond); err != nil {
			return err
		}
	}
}

// switchoverWhile hurts a node's Raft disk and then asks for a switchover to another node, which
// writes to the Raft log: without a change nothing does, and the fault would not be felt. The
// change must be done within seconds, and the node must catch up by itself once its disk is well
// again, which is after d at the earliest.
func switchoverWhile(hurt labHurt, d time.Duration) func(*labRun, *holdfast.ClusterNode) error {
	return func(r *labRun, n *holdfast.ClusterNode) error {
		begin := time.Now()
		logFrom, err := os.Stat(n.LogPath)
		if err == nil {
			err = errors.Join(hurt.begin(r.raft[n.Name]), r.sleep(2*time.Second))
		}
		if err != nil {
			return err
		}
		var to *holdfast.ClusterNode
		for _, o := range r.others(r.primary.Name) {
			if o != n {
				to = o
			}
		}
		isFelt := func() (bool, error) {
			own, group, err := r.raftOf(n)
			if err != nil {
				return false, err
			}
			log, err := os.ReadFile(n.LogPath)
			return err == nil && hurt.isFelt(own, group, log[logFrom.Size():]), err
		}
		if hurt.press != nil {
			if err := hurt.press(r, n, isFelt); err != nil {
				return err
			}
		}
		if err := r.switchoverWithin(to, labChangeMax); err != nil {
			return err
		}
		if err := r.sleep(d - time.Since(begin)); err != nil {
			return err
		}
		switch is, err := isFelt(); {
		case err != nil:
			return err
		case !is:
			return fmt.Errorf("%s did not feel its disk", n.Name)
		}
		if err := hurt.end(r.raft[n.Name]); err != nil {
			return err
		}
		return r.waitCaughtUp(n)
	}
}

// switchoverWithin asks for a switchover until it is done.
func (r *labRun) switchoverWithin(to *holdfast.ClusterNode, limit time.Duration) error {
	for begin := time.Now(); ; {
		err := r.cluster.Switchover(r.ctx, to.Name)
		st, e := r.cluster.Status(r.ctx)
		took := time.Since(begin)
		switch isDone := e == nil && st.Primary == to.Name; {
		case took > limit:
			return errors.Join(fmt.Errorf("a switchover takes %v, at most %v is allowed", took,
				limit), err, e)
		case isDone:
			r.out.ChangeMS = took.Milliseconds()
			return nil
		}
		// The leader of the moment may have fallen silent in the middle of it.
		if err := r.sleep(200 * time.Millisecond); err != nil {
			return err
		}
	}
}

// raftOf asks a node for its part in the group, and the others for the furthest.
func (r *labRun) raftOf(n *holdfast.ClusterNode) (own, group holdfast.Status, err error) {
	if own, err = n.Status(r.ctx); err != nil {
		return own, group, err
	}
	for _, o := range r.others(n.Name) {
		st, err := o.Status(r.ctx)
		if err != nil {
			return own, group, err
		}
		if st.RaftIndex >= group.RaftIndex {
			group = st
		}
	}
	return own, group, nil
}

// waitCaughtUp waits until a node has what the group has, on disk and in its state, and takes part
// again.
func (r *labRun) waitCaughtUp(n *holdfast.ClusterNode) error {
	for begin := time.Now(); ; {
		own, group, err := r.raftOf(n)
		why := behind(own, group)
		if err == nil && why == "" {
			r.out.CaughtUpMS = time.Since(begin).Milliseconds()
			return nil
		}
		if time.Since(begin) > labCaughtUpMax {
			return errors.Join(fmt.Errorf("%s has not caught up %v after its disk was well: %s",
				n.Name, labCaughtUpMax, why), err)
		}
		if err := r.sleep(50 * time.Millisecond); err != nil {
			return err
		}
	}
}

// behind says what a node lacks of the group; empty if nothing.
func behind(own, group holdfast.Status) string {
	for _, p := range own.Problems {
		if strings.HasPrefix(p, own.Node+": ") {
			return p
		}
	}
	switch {
	case own.Leader == "":
		return "it knows no leader"
	case own.RaftIndex != group.RaftIndex:
		return fmt.Sprintf("it has applied %d of %d", own.RaftIndex, group.RaftIndex)
	case own.RaftLastIndex != group.RaftLastIndex:
		return fmt.Sprintf("its log ends at %d, not at %d", own.RaftLastIndex, group.RaftLastIndex)
	}
	return ""
}

// freezeAllRaft freezes the Raft disks of all nodes at once. Something is written to the log
// meanwhile, in vain: without that nobody would feel it. The leader and the one that stands for
// election after it must say that they are silent; the third then has nobody to vote for. All must
// take part again by themselves when the disks are well.
func freezeAllRaft(d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		begin := time.Now()
		for _, n := range r.cluster.Nodes {
			if err := r.raft[n.Name].freeze(d + 10*time.Second); err != nil {
				return err
			}
		}
		post, err := r.maintenanceAt(r.leader)
		if err != nil {
			return err
		}
		r.out.isSpoilt = true // until maintenance has ended
		if err := post(`{"on":true,"reason":"written to disks that hang"}`); err == nil {
			return errors.New("the group has written to disks that hang")
		}
		if err := r.until(d/2, r.isGroupSilent); err != nil {
			return err
		}
		r.t.Logf("the group was silent after %.1f s", time.Since(begin).Seconds())
		if err := r.sleep(d - time.Since(begin)); err != nil {
			return err
		}
		for _, n := range r.cluster.Nodes {
			if err := r.raft[n.Name].thaw(); err != nil {
				return err
			}
		}
		for _, n := range r.cluster.Nodes {
			if err := r.waitCaughtUp(n); err != nil {
				return err
			}
		}
		// What was written in vain may have come to the log since.
		err = r.until(labChangeMax, func() error { return post(`{"on":false}`) })
		r.out.isSpoilt = err != nil
		return err
	}
}

// isGroupSilent is an error unless two nodes say that their Raft disk keeps them from taking part,
// and nobody knows a leader.
func (r *labRun) isGroupSilent() error {
	silent := 0
	var said []string
	for _, n := range r.cluster.Nodes {
		st, err := n.Status(r.ctx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(st.Problems, func(p string) bool {
			return strings.HasPrefix(p, n.Name+": ") && strings.Contains(p, "no part in Raft")
		}) {
			silent++
		} else if st.Leader != "" {
			return fmt.Errorf("%s says that %s leads", n.Name, st.Leader)
		}
		said = append(said, st.Problems...)
	}
	if silent < 2 {
		return fmt.Errorf("%d nodes feel their disks: %q", silent, said)
	}
	return nil
}
