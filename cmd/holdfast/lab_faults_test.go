package main_test

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
)

// The errors that a change of roles may tell a client.
var changeCodes = []string{"40001", "08007"}

// The lines of the failure table, in its words.
const (
	lineDelay    = "delay 400 ms +/- 300 ms between all nodes for 60 s; loss 5, 20, 40 %"
	lineLeader   = "Raft leader killed, paused, partitioned away (primary elsewhere)"
	lineRaftDisk = "Raft disk frozen 10, 20, 35 s or full, on each node in turn"
	linePause    = "node process SIGSTOPped 20, 40 s while PostgreSQL is healthy"
	lineClock    = "wall clock stepped by minutes either way (an injected one; no decision reads it)"
	lineServer   = "primary's postmaster killed, with busy backends left behind; immediate " +
		"shutdown by a third party"
	lineHost = "primary's host lost"
	lineCut  = "primary cut off from everyone; from standbys only; from voters only; one-way cuts"
	lineData = "data disk of the primary frozen or full"
	lineDies = "candidate dies in the middle of its promotion; Raft leader dies in the middle; both"
	lineWeak = "replication lag, standby on another timeline, standby with full disk, nofailover tag"
	lineAll  = "three nodes restarted at once, in any order; power loss of all"
)

// sleep waits while a fault lasts.
func (r *labRun) sleep(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

// notThePrimary are the nodes whose proxies must go on when something befalls the primary's.
func notThePrimary(r *labRun) []string { return names(r.others(r.primary.Name)) }

func notTheLeader(r *labRun) []string { return names(r.others(r.leader.Name)) }

func names(nodes []*holdfast.ClusterNode) []string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.Name)
	}
	return list
}

// betweenNodes sets what happens on all paths between nodes; clients reach all of them as before.
func (r *labRun) betweenNodes(link labLink) {
	for _, a := range r.cluster.Nodes {
		for _, b := range r.others(a.Name) {
			r.net.set(a.Name, b.Name, link)
		}
	}
}

// weather is a bad network for a while.
func weather(link labLink, d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		r.betweenNodes(link)
		err := r.sleep(d)
		r.net.heal()
		return err
	}
}

func everything(labPacket) bool { return true }

// cut drops packets between a node and all other nodes, in one direction or both.
func (r *labRun) cut(n *holdfast.ClusterNode, in, out bool, which func(labPacket) bool) {
	for _, o := range r.others(n.Name) {
		if out {
			r.net.set(n.Name, o.Name, labLink{drop: which})
		}
		if in {
			r.net.set(o.Name, n.Name, labLink{drop: which})
		}
	}
}

// cutPrimary cuts the primary's node off the others; clients still reach its proxy.
func cutPrimary(in, out bool, which func(labPacket) bool, d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		r.cut(r.primary, in, out, which)
		err := r.sleep(d)
		r.net.heal()
		return err
	}
}

// isReplication are the packets between the standbys and the primary's server: proxies connect
// from other addresses.
func isReplication(p labPacket) bool {
	isNode := func(a netip.Addr) bool { return a.As4()[2] == 0 }
	return isNode(p.src) && isNode(p.dst) && (p.srcPort == 5432 || p.dstPort == 5432)
}

// isControl are the packets between voters: Raft, leases and reports.
func isControl(p labPacket) bool { return p.srcPort == 7400 || p.dstPort == 7400 }

// loseHost takes the primary's host away as a power cut would: nobody hears of it. It comes back
// after a while.
func loseHost(d time.Duration) func(*labRun) error {
	return loseHostWhile(d, func(*labRun) error { return nil })
}

// loseHostWhile loses the primary's host and does more at that moment.
func loseHostWhile(d time.Duration, more func(*labRun) error) func(*labRun) error {
	return func(r *labRun) error { return r.loseHostOf(r.primary, d, more) }
}

// loseHostOf loses a node's host for a while and does more at that moment.
func (r *labRun) loseHostOf(n *holdfast.ClusterNode, d time.Duration,
	more func(*labRun) error,
) error {
	r.cut(n, true, true, everything)
	r.net.set(labClient, n.Name, labLink{drop: everything})
	r.net.set(n.Name, labClient, labLink{drop: everything})
	r.kill(n)
	if err := errors.Join(n.KillNode(r.ctx), more(r), r.sleep(d)); err != nil {
		return err
	}
	r.net.heal()
	return n.Start()
}

// loseHosts takes the primary's host away, and that of the next one once all is well again: the
// lock goes there and back. Each time another member must follow, on a timeline of its own.
func loseHosts(times int, d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		now, was := r.primary, r.before
		for range times {
			if err := r.loseHostOf(now, d, func(*labRun) error { return nil }); err != nil {
				return err
			}
			for _, p := range r.probers {
				if p.node == now {
					p.reset()
				}
			}
			st, err := r.cluster.WaitHealthy(r.ctx, labHealthy)
			if err != nil {
				return fmt.Errorf("after the loss of %s: %w", now.Name, err)
			}
			if st.Primary == now.Name || st.Epoch <= was.Epoch || st.Timeline <= was.Timeline {
				return fmt.Errorf("after the loss of %s, timeline %d under epoch %d: %s, timeline %d "+
					"under epoch %d", now.Name, was.Timeline, was.Epoch, st.Primary, st.Timeline,
					st.Epoch)
			}
			r.t.Logf("%s was lost, %s followed on timeline %d", now.Name, st.Primary, st.Timeline)
			now, was = r.cluster.Node(st.Primary), st
			r.load.Changed()
		}
		return nil
	}
}

// kill tells that a node is about to be killed.
func (r *labRun) kill(n *holdfast.ClusterNode) {
	r.killed[n.Name] = true
	r.load.ExpectCut(n.Proxy)
}

// onLeader runs a fault on the Raft leader's node while the primary is elsewhere.
func onLeader(f func(r *labRun, n *holdfast.ClusterNode) error) func(*labRun) error {
	return func(r *labRun) error {
		if err := r.leaderElsewhere(); err != nil {
			return err
		}
		return f(r, r.leader)
	}
}

// killProcess kills holdfast on a node and starts it again; PostgreSQL lives on.
func killProcess(d time.Duration) func(*labRun, *holdfast.ClusterNode) error {
	return func(r *labRun, n *holdfast.ClusterNode) error {
		r.kill(n)
		if err := n.Signal(unix.SIGKILL); err != nil {
			return err
		}
		if _, err := n.Wait(r.ctx); err != nil {
			return err
		}
		if err := r.sleep(d); err != nil {
			return err
		}
		return n.Start()
	}
}

// pauseProcess stops holdfast on a node for a while.
func pauseProcess(d time.Duration) func(*labRun, *holdfast.ClusterNode) error {
	return func(r *labRun, n *holdfast.ClusterNode) error {
		if err := n.Signal(unix.SIGSTOP); err != nil {
			return err
		}
		return errors.Join(r.sleep(d), n.Signal(unix.SIGCONT))
	}
}

// cutNode cuts a node off the others, cutControl only as far as it is a voter.
func cutNode(d time.Duration) func(*labRun, *holdfast.ClusterNode) error {
	return cutWhich(d, everything)
}

func cutControl(d time.Duration) func(*labRun, *holdfast.ClusterNode) error {
	return cutWhich(d, isControl)
}

func cutWhich(d time.Duration, which func(labPacket) bool) func(*labRun,
	*holdfast.ClusterNode) error {
	return func(r *labRun, n *holdfast.ClusterNode) error {
		r.cut(n, true, true, which)
		err := r.sleep(d)
		r.net.heal()
		return err
	}
}

// onPrimary runs a fault on the primary's node.
func onPrimary(f func(*labRun, *holdfast.ClusterNode) error) func(*labRun) error {
	return func(r *labRun) error { return f(r, r.primary) }
}

// onFollower runs a fault on a node that neither leads the Raft group nor is primary.
func onFollower(f func(*labRun, *holdfast.ClusterNode) error) func(*labRun) error {
	return func(r *labRun) error {
		for _, n := range r.others(r.primary.Name) {
			if n != r.leader {
				return f(r, n)
			}
		}
		return errors.New("there is no such node")
	}
}

func freezeFor(r *labRun, disk *labDisk, d time.Duration) error {
	if err := disk.freeze(d + 10*time.Second); err != nil {
		return err
	}
	return errors.Join(r.sleep(d), disk.thaw())
}

// fillDisk fills a disk for a while.
func fillDisk(disk func(*labRun, *holdfast.ClusterNode) *labDisk, d time.Duration) func(*labRun,
	*holdfast.ClusterNode) error {
	return func(r *labRun, n *holdfast.ClusterNode) error {
		if err := disk(r, n).fill(); err != nil {
			return err
		}
		return errors.Join(r.sleep(d), disk(r, n).empty())
	}
}

func raftDisk(r *labRun, n *holdfast.ClusterNode) *labDisk { return r.raft[n.Name] }
func dataDisk(r *labRun, n *holdfast.ClusterNode) *labDisk { return r.data[n.Name] }

// freezeData freezes the primary's data disk.
func freezeData(d time.Duration) func(*labRun) error {
	return func(r *labRun) error { return freezeFor(r, r.data[r.primary.Name], d) }
}

// signalPostmaster signals the primary's postmaster, as a third party would.
func signalPostmaster(sig syscall.Signal) func(*labRun) error {
	return func(r *labRun) error {
		pid := r.primary.Postmaster()
		if pid == 0 {
			return fmt.Errorf("no server runs on %s", r.primary.Name)
		}
		if err := signalProcess(pid, sig); err != nil {
			return err
		}
		_, err := r.cluster.WaitEpoch(r.ctx, r.before.Epoch, time.Minute)
		return err
	}
}
