package main_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
	"holdfast/config"
)

// labInside is set where a test runs inside the lab's namespaces.
const labInside = "HOLDFAST_LAB_INSIDE"

// enterLab runs the test again in a network and a mount namespace of its own and returns false;
// there it returns true. A machine that cannot make them fails the test.
func enterLab(t *testing.T, environment ...string) bool {
	t.Helper()
	if os.Getenv(labInside) == t.Name() {
		return true
	}
	cmd := labCommand(t.Name(), environment...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := startLabCommand(cmd, cmd.Run)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		t.Errorf("inside the lab: %v, see above", err)
	case err != nil:
		t.Errorf("this machine cannot run the fault lab, which needs root, network and mount "+
			"namespaces, /dev/net/tun and loop devices: %v", err)
	}
	return false
}

func labCommand(test string, environment ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run", "^"+test+"$", "-test.v", "-test.timeout", "90m")
	cmd.Env = append(os.Environ(), labInside+"="+test)
	cmd.Env = append(cmd.Env, environment...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL,
	}
	return cmd
}

// startLabCommand keeps the thread that starts the process: the process dies with the thread.
func startLabCommand(cmd *exec.Cmd, start func() error) error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	for _, program := range []string{"mkfs.ext4", "mount", "fsfreeze", "timeout"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w (packages e2fsprogs, mount, util-linux, coreutils)", err)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return start()
}

// The lab's addresses: each node has one for its servers and one that its proxy connects from, so
// that the path of the proxies can be cut apart from that of the standbys.
const (
	labNodeAddr   = "10.99.0.%d"
	labProxyAddr  = "10.99.1.%d"
	labClientAddr = "10.99.0.100"
	labClient     = "client"
)

// Sizes of the disks, which are sparse files. A data disk holds a clone beside the old data.
const (
	labRaftDisk = 48 << 20
	labDataDisk = 2 << 30
)

// lab is a cluster in its network, with its load. It lives for as many faults as it survives.
type lab struct {
	t       *testing.T
	net     *labNet
	cluster *holdfast.Cluster
	raft    map[string]*labDisk
	data    map[string]*labDisk
	kind    labKind

	probers []*labProber
	clock   *holdfast.CommitClock // of all probers
	doors   []*labDoor
	load    *holdfast.Load
	group   sync.WaitGroup
	cancel  context.CancelFunc
	stats   holdfast.LoadStats    // when the fault began
	pulse   *holdfast.CommitClock // of the machine: runPulse
	logged  map[string]int64      // how much of each server's log was looked at
	sidecar *holdfast.ClusterNode // of a labKind that has one
}

// startLab starts three nodes in namespaces and the load on them.
func startLab(t *testing.T, binary string, kind labKind) (*lab, error) {
	l := &lab{t: t, kind: kind, raft: map[string]*labDisk{}, data: map[string]*labDisk{},
		logged: map[string]int64{}, pulse: holdfast.NewCommitClock(),
		clock: holdfast.NewCommitClock(), cancel: func() {}}
	if err := l.start(binary); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *lab) start(binary string) error {
	hosts := []*labHost{{name: labClient, addrs: labAddrs(labClientAddr)}}
	cfg := holdfast.ClusterConfig{Binary: binary, Prefix: "holdfast-lab", Profile: l.kind.profile,
		Fence: l.kind.fence, Keep: os.Getenv("HOLDFAST_LAB_KEEP") != ""}
	for i := 1; i <= 3; i++ {
		addr := fmt.Sprintf(labNodeAddr, i)
		cfg.Hosts = append(cfg.Hosts, addr)
		hosts = append(hosts, &labHost{name: fmt.Sprintf("node%d", i),
			addrs: labAddrs(addr, fmt.Sprintf(labProxyAddr, i))})
	}
	if l.kind.hasSidecar {
		hosts = append(hosts, &labHost{name: labSidecar, addrs: labAddrs(labSidecarAddr)})
	}
	var err error
	if l.net, err = newLabNet(hosts...); err != nil {
		return err
	}
	cfg.Inside = func(node string, f func() error) error { return l.net.host(node).inside(f) }
	if l.cluster, err = holdfast.NewCluster(l.t.Context(), cfg); err != nil {
		return err
	}
	for i, n := range l.cluster.Nodes {
		if err := l.prepareNode(n, i+1); err != nil {
			return err
		}
	}
	for _, n := range l.cluster.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	if _, err := l.cluster.WaitHealthy(l.t.Context(), 2*time.Minute); err != nil {
		return err
	}
	if l.kind.hasSidecar {
		if err := l.startSidecar(); err != nil {
			return err
		}
	}
	return l.startLoad()
}

func labAddrs(texts ...string) []netip.Addr {
	var addrs []netip.Addr
	for _, s := range texts {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs
}

// prepareNode gives a node its disks and the configuration that fits the lab.
func (l *lab) prepareNode(n *holdfast.ClusterNode, number int) error {
	raftDir := filepath.Join(n.Dir, "raft")
	dataDir := filepath.Dir(n.DataDir)
	var err error
	if l.raft[n.Name], err = newLabDisk(n.Dir+"/raft.img", raftDir, labRaftDisk); err != nil {
		return err
	}
	if l.data[n.Name], err = newLabDisk(n.Dir+"/data.img", dataDir, labDataDisk); err != nil {
		return err
	}
	if err := writeClock(n, 0); err != nil {
		return err
	}
	n.HTTP = fmt.Sprintf("127.0.0.%d:7401", number)
	return l.configure(n, number, nil)
}

// configure writes a node's configuration, as the lab needs it and with more to change.
func (l *lab) configure(n *holdfast.ClusterNode, number int, edit func(*config.Config)) error {
	return n.Configure(func(c *config.Config) {
		c.Raft.Dir = filepath.Join(n.Dir, "raft", "log")
		c.HTTP.Listen = n.HTTP
		c.Proxy.SourceAddr = fmt.Sprintf(labProxyAddr, number)
		for i := 1; i <= 3; i++ {
			c.Postgres.AllowFrom = append(c.Postgres.AllowFrom, fmt.Sprintf(labProxyAddr, i))
		}
		if l.kind.hasSidecar {
			c.Postgres.AllowFrom = append(c.Postgres.AllowFrom, labSidecarAddr)
		}
		if edit != nil {
			edit(c)
		}
	})
}

// startLoad makes the tables and starts sessions of all kinds, a prober through each proxy and
// one on each server.
func (l *lab) startLoad() error {
	makeDatabase(l.t, l.cluster)
	conn := connect(l.t, e2eDSN(l.cluster.Nodes[0]))
	for _, table := range []string{"lab_probe", "lab_door"} {
		exec1(l.t, conn, "CREATE TABLE "+table+" (node text, id bigint, "+
			"server text DEFAULT host(inet_server_addr()), at timestamptz DEFAULT clock_timestamp())")
	}
	secret, err := l.cluster.Secret("superuser")
	if err != nil {
		return err
	}
	cfg := holdfast.LoadConfig{Sessions: 12, Superuser: "postgres", SuperuserPassword: secret}
	for _, n := range l.cluster.Nodes {
		cfg.Proxies = append(cfg.Proxies, n.Proxy)
	}
	l.load = holdfast.NewLoad(cfg)
	if err := l.load.Setup(l.t.Context()); err != nil {
		return err
	}
	if err := l.load.Start(l.t.Context()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.t.Context()))
	l.cancel = cancel
	l.group.Go(func() { l.runPulse(ctx) })
	for _, n := range l.cluster.Nodes {
		p, d := newLabProber(n, l.clock), &labDoor{node: n, host: l.net.host(n.Name)}
		l.probers, l.doors = append(l.probers, p), append(l.doors, d)
		l.group.Go(func() { p.run(ctx) })
		l.group.Go(func() { d.run(ctx) })
	}
	if l.sidecar != nil {
		p := newLabProber(l.sidecar, l.clock)
		l.probers = append(l.probers, p)
		l.group.Go(func() { p.run(ctx) })
	}
	return nil
}

// close ends everything that the lab started; the directory goes last.
func (l *lab) close() error {
	if l.net != nil {
		l.net.heal()
	}
	var err error
	for _, d := range l.disks() {
		err = errors.Join(err, d.thaw())
	}
	l.cancel()
	if l.load != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		l.load.Stop(ctx)
		cancel()
	}
	l.group.Wait()
	if l.sidecar != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err = errors.Join(err, l.sidecar.KillNode(ctx))
		cancel()
	}
	if l.cluster != nil {
		err = errors.Join(err, l.cluster.Close())
	}
	if l.net != nil {
		err = errors.Join(err, l.net.close())
	}
	return err
}

func (l *lab) disks() []*labDisk {
	var all []*labDisk
	for _, m := range []map[string]*labDisk{l.raft, l.data} {
		for _, d := range m {
			all = append(all, d)
		}
	}
	return all
}

// others returns the nodes but one.
func (l *lab) others(name string) []*holdfast.ClusterNode {
	var list []*holdfast.ClusterNode
	for _, n := range l.cluster.Nodes {
		if n.Name != name {
			list = append(list, n)
		}
	}
	return list
}
