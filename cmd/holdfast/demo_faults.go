package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/election"
)

// faultKind is what is done to the primary.
type faultKind string

// The kinds of faults.
const (
	// faultPostmaster kills the main process of the primary's PostgreSQL.
	faultPostmaster faultKind = "postmaster"
	// faultNode kills holdfast and PostgreSQL on the primary's node, and starts it again later.
	faultNode faultKind = "node"
	// faultSwitchover moves the primary as planned.
	faultSwitchover faultKind = "switchover"
	// faultFreeze stops the primary's PostgreSQL in its tracks and thaws it once it was replaced.
	faultFreeze faultKind = "freeze"
	// faultPause stops holdfast on the primary's node for longer than any lease: PostgreSQL is
	// well, so nothing may be changed, and its proxy's sessions wait.
	faultPause faultKind = "pause"
	// faultImmediate stops the primary's PostgreSQL as `pg_ctl stop -m immediate` does.
	faultImmediate faultKind = "immediate"
	// faultRestart restarts the primary's PostgreSQL as planned.
	faultRestart faultKind = "restart"
	// faultCut cuts all connections of the nodes to the primary's PostgreSQL, which lives on.
	faultCut faultKind = "cut"
)

var allFaults = []faultKind{
	faultPostmaster, faultNode, faultSwitchover, faultFreeze, faultPause, faultImmediate,
	faultRestart, faultCut,
}

// faultSchedule is what happens by itself, half an interval apart: every other one hits hard.
var faultSchedule = []faultKind{
	faultPostmaster, faultSwitchover, faultNode, faultRestart, faultFreeze, faultCut,
	faultImmediate, faultSwitchover, faultPause, faultCut,
}

// isMild tells a fault in which no process is lost or hangs.
func (k faultKind) isMild() bool {
	return k == faultSwitchover || k == faultRestart || k == faultCut
}

// keepsPrimary tells a fault after which the primary must be the same, under the same epoch.
func (k faultKind) keepsPrimary() bool { return k == faultPause || k == faultCut }

func parseFault(word string) (faultKind, bool) {
	k := faultKind(strings.TrimSpace(word))
	return k, slices.Contains(allFaults, k)
}

// title says the fault in words.
func (k faultKind) title(node string) string {
	switch k {
	case faultPostmaster:
		return "kill -9 of the postmaster of " + node
	case faultNode:
		return "kill -9 of everything on " + node
	case faultSwitchover:
		return "switchover away from " + node
	case faultFreeze:
		return "freezing PostgreSQL on " + node
	case faultPause:
		return "freezing holdfast on " + node
	case faultImmediate:
		return "immediate stop of PostgreSQL on " + node
	case faultRestart:
		return "restart of PostgreSQL on " + node
	case faultCut:
		return "cutting the connections to PostgreSQL on " + node
	}
	panic("BUG: demo: fault " + string(k))
}

// Bounds of a fault.
const (
	// changeTimeout bounds the wait for a new epoch; the clients' hold is as long.
	changeTimeout = 60 * time.Second
	// healthyTimeout bounds the wait until all members stream again; a clone may be needed.
	healthyTimeout = 2 * time.Minute
	// nodeAway is how long a killed node stays away.
	nodeAway = 3 * time.Second
	// pauseTime is longer than the promise of the lan and the cloud profile.
	pauseTime = 6 * time.Second
	// settleTime is how long commits are watched after the change.
	settleTime = 500 * time.Millisecond
)

// fault does one fault and waits until the group has recovered.
func (d *demo) fault(ctx context.Context, kind faultKind) DemoChange {
	begin := time.Now()
	ch := DemoChange{Fault: kind}
	err := d.doFault(ctx, &ch)
	if err == nil {
		err = d.recovered(ctx, &ch)
	}
	end := time.Now()
	ch.HealthyMS = end.Sub(begin).Milliseconds()
	if d.load != nil {
		ch.GapMS = d.load.Clock().Gap(begin, end).Milliseconds()
	}
	if err != nil && !interrupted(ctx, err) {
		ch.Error = err.Error()
	}
	return ch
}

// doFault does it and returns once there is a new epoch, or there was time enough for one.
func (d *demo) doFault(ctx context.Context, ch *DemoChange) error {
	st, err := d.cluster.Status(ctx)
	if err != nil {
		return err
	}
	n := d.cluster.Node(st.Primary)
	if n == nil {
		return errors.New("there is no primary")
	}
	ch.Node = n.Name
	if ch.Fault == faultSwitchover {
		err := d.cluster.WaitSwitchover(ctx, d.nextPrimary(n.Name), healthyTimeout)
		if err != nil {
			return err
		}
	}
	d.emit(demoEvent{Event: "fault", Text: ch.Fault.title(n.Name)})
	epoch := st.Epoch
	var after Status
	ch.FaultAt = time.Now()
	switch ch.Fault {
	case faultNode:
		after, err = d.faultNode(ctx, n, epoch)
	case faultFreeze:
		if err = n.FreezeServer(); err == nil {
			after, err = d.cluster.WaitEpoch(ctx, epoch, changeTimeout)
		}
		err = errors.Join(err, n.ThawServer())
	case faultPause:
		after, err = d.faultPause(ctx, n)
	case faultCut:
		if ch.Cut, err = d.cluster.CutServer(n); err == nil {
			after, err = d.cluster.WaitEpoch(ctx, 0, changeTimeout)
		}
	case faultPostmaster, faultImmediate, faultSwitchover, faultRestart:
		if err = d.order(ctx, ch.Fault, n); err == nil {
			after, err = d.cluster.WaitEpoch(ctx, epoch, changeTimeout)
		}
	}
	if err != nil {
		return err
	}
	ch.describe(&after, epoch)
	return nil
}

// order does what needs nothing but a word, to a server or to the group.
func (d *demo) order(ctx context.Context, kind faultKind, n *ClusterNode) error {
	switch kind {
	case faultPostmaster:
		return n.KillPostmaster()
	case faultImmediate:
		return n.StopImmediately()
	case faultSwitchover:
		return d.cluster.Switchover(ctx, d.nextPrimary(n.Name))
	case faultRestart:
		return d.cluster.Restart(ctx, n.Name)
	default:
		panic("BUG: demo: fault " + string(kind))
	}
}

// schedule is what happens by itself, without what this process is not allowed to do.
func (d *demo) schedule() []faultKind {
	err := d.cluster.CanCut()
	if err == nil {
		return faultSchedule
	}
	d.note("connections are not cut: %v", err)
	return slices.DeleteFunc(slices.Clone(faultSchedule), func(k faultKind) bool {
		return k == faultCut
	})
}

func (d *demo) faultNode(ctx context.Context, n *ClusterNode, epoch uint64) (Status, error) {
	if d.load != nil {
		d.load.ExpectCut(n.Proxy)
	}
	if err := n.KillNode(ctx); err != nil {
		return Status{}, err
	}
	away := time.After(nodeAway)
	after, err := d.cluster.WaitEpoch(ctx, epoch, changeTimeout)
	select {
	case <-away:
	case <-ctx.Done():
	}
	return after, errors.Join(err, n.Start())
}

func (d *demo) faultPause(ctx context.Context, n *ClusterNode) (Status, error) {
	if err := n.Signal(unix.SIGSTOP); err != nil {
		return Status{}, err
	}
	select {
	case <-time.After(pauseTime):
	case <-ctx.Done():
	}
	if err := n.Signal(unix.SIGCONT); err != nil {
		return Status{}, err
	}
	return d.cluster.WaitEpoch(ctx, 0, changeTimeout)
}

// nextPrimary is the node after the primary, so that each has its turn.
func (d *demo) nextPrimary(primary string) string {
	nodes := d.cluster.Nodes
	i := slices.IndexFunc(nodes, func(n *ClusterNode) bool { return n.Name == primary })
	return nodes[(i+1)%len(nodes)].Name
}

// describe takes the newest entry of the lock's history if it is newer than the epoch.
func (c *DemoChange) describe(after *Status, epoch uint64) {
	last := after.Last
	if last == nil || last.Epoch <= epoch {
		return
	}
	c.Kind, c.From, c.To, c.Epoch = last.Kind, last.From, last.To, last.Epoch
	c.Cause, c.PhasesMS, c.TotalMS = last.Cause, last.PhasesMS, last.TotalMS
	c.LockAt = &last.At
}

// recovered waits until the members are healthy and clients commit again.
func (d *demo) recovered(ctx context.Context, ch *DemoChange) error {
	if _, err := d.cluster.WaitHealthy(ctx, healthyTimeout); err != nil {
		return err
	}
	if ch.Fault.keepsPrimary() && ch.Kind != "" {
		return fmt.Errorf("the primary was changed though its PostgreSQL was well: %s", ch.Cause)
	}
	if d.load == nil {
		return nil
	}
	d.load.Changed()
	before := d.load.Clock().Total()
	deadline := time.Now().Add(changeTimeout)
	for d.load.Clock().Total() == before {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no session commits for %v after the change", changeTimeout)
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(settleTime):
	}
	return nil
}

// phasesText lists phases in the order in which they happen.
func phasesText(ms map[string]int64) string {
	var parts []string
	for _, name := range election.PhaseNames() {
		if v, ok := ms[name]; ok && name != "total" {
			parts = append(parts, fmt.Sprintf("%s %d", name, v))
		}
	}
	return strings.Join(parts, ", ")
}
