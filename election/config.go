package election

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// Profiles of timing, for Config.Profile.
const (
	ProfileLAN   = "lan"
	ProfileCloud = "cloud"
	ProfileWAN   = "wan"
)

// clockRate is how much two hosts' clocks may differ in rate: r of the safety inequality.
const clockRate = 0.001

// reachTime bounds the time from the end of a lease until nothing more can reach a client or the
// old primary: d of the safety inequality.
const reachTime = 100 * time.Millisecond

// cutAfterDefault is long beside the time in which a dead primary is told (Timing.Silence): whoever
// is cut off for less is held.
const cutAfterDefault = 15 * time.Second

// Config is what a Node needs to know. Start from DefaultConfig.
type Config struct {
	// Name is this node's; it is the name of its certificate.
	Name string
	// Cluster is the name of the cluster; nodes of another one are refused.
	Cluster string
	// Dir is the directory of the Raft log and the endorsements.
	Dir string
	// Voter makes this node a member of the Raft group; without it the node follows the voters.
	Voter bool
	// Nodes are the voters, the same on all nodes; those with a Postgres address are members.
	Nodes []Member
	// Listen is where other nodes connect to; empty is this node's address in Nodes.
	Listen string
	// CAFile, CertFile and KeyFile are the group's CA and this node's certificate.
	CAFile, CertFile, KeyFile string
	// Profile chooses the times.
	Profile string
	// SyncMode is one of SyncModes.
	SyncMode string
	// SyncWait is how many standbys a commit waits for in the modes quorum and strict.
	SyncWait int
	// SyncDegradeAfter is how long a standby may be away before commits no longer wait for it.
	SyncDegradeAfter time.Duration
	// Fence is one of Fences.
	Fence string
	// CutOffAfter is how long a primary that runs must be out of reach for most nodes, or for most
	// sidecars, before another member takes its place; 0: never.
	CutOffAfter time.Duration
	// LockBarrier bounds how long units of work wait, after a change of the lock, until sessions
	// of all proxies have their advisory locks again; 0 does not wait.
	LockBarrier time.Duration
	// DrainTimeout bounds how long open units of work may delay a switchover.
	DrainTimeout time.Duration
	// HoldTimeout is how long proxies hold a client: a switchover that does not advance turns
	// back so early that the old primary serves again before that is over. 0: it is not known.
	HoldTimeout time.Duration
	// PrewarmTime is Policy.PrewarmTime.
	PrewarmTime time.Duration
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Cluster: "main", Dir: "/var/lib/holdfast/raft", Voter: true, Profile: ProfileCloud,
		SyncMode: SyncQuorum, SyncWait: 1, SyncDegradeAfter: 10 * time.Second,
		Fence: FenceLease, DrainTimeout: 10 * time.Second, LockBarrier: 2 * time.Second,
		CutOffAfter: cutAfterDefault, HoldTimeout: time.Minute,
		PrewarmTime: 500 * time.Millisecond,
	}
}

// TimingOf returns the times of a profile.
func TimingOf(profile string) (Timing, error) {
	ms := time.Millisecond
	switch profile {
	case ProfileLAN:
		return Timing{250 * ms, 800 * ms, 2000 * ms, 2500 * ms, 400 * ms, 1000 * ms}, nil
	case ProfileCloud:
		return Timing{500 * ms, 1500 * ms, 4000 * ms, 5000 * ms, 800 * ms, 5000 * ms}, nil
	case ProfileWAN:
		return Timing{1000 * ms, 3000 * ms, 10000 * ms, 12000 * ms, 2000 * ms, 10000 * ms}, nil
	}
	return Timing{}, fmt.Errorf("profile %q is not one of lan, cloud, wan", profile)
}

// Validate checks the relations between the times, first of all the safety inequality
// T_P(1-r) >= T_L(1+r) + d.
func (t Timing) Validate() error {
	var errs []error
	if t.Interval <= 0 || t.Interval*2 > t.Doubt {
		errs = append(errs, errors.New("two intervals must fit into the time of doubt"))
	}
	if t.Doubt >= t.Lease {
		errs = append(errs, errors.New("the time of doubt must be shorter than the lease"))
	}
	promise := float64(t.Promise) * (1 - clockRate)
	if promise < float64(t.Lease)*(1+clockRate)+float64(reachTime) {
		errs = append(errs, fmt.Errorf("promise %s is too short for lease %s", t.Promise,
			t.Lease))
	}
	if t.Heartbeat <= 0 {
		errs = append(errs, errors.New("heartbeat must be greater than zero"))
	}
	if t.Silence <= 0 {
		errs = append(errs, errors.New("the time of silence must be greater than zero"))
	}
	return errors.Join(errs...)
}

// Validate says everything that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	add := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(format, args...))
	}
	if c.Name == "" {
		add("name: must be set")
	}
	if c.Cluster == "" {
		add("group.cluster: must be set")
	}
	if len(c.Nodes) == 0 {
		add("group.nodes: at least one node is needed")
	}
	seen := make(map[string]bool)
	for _, n := range c.Nodes {
		if seen[n.Name] || n.Name == "" {
			add("group.nodes: name %q is empty or there twice", n.Name)
		}
		seen[n.Name] = true
		if _, _, err := net.SplitHostPort(n.Address); err != nil {
			add("group.nodes: address %q of %s: %w", n.Address, n.Name, err)
		}
		if n.Postgres == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(n.Postgres); err != nil {
			add("group.nodes: postgres %q of %s: %w", n.Postgres, n.Name, err)
		}
	}
	if c.Voter && !seen[c.Name] {
		add("name: %q is not in group.nodes", c.Name)
	}
	if c.Voter && !filepath.IsAbs(c.Dir) {
		add("raft.dir: %q is not an absolute path", c.Dir)
	}
	if t, err := TimingOf(c.Profile); err != nil {
		add("group.%w", err)
	} else if err := t.Validate(); err != nil {
		add("group.profile: %w", err)
	}
	errs = append(errs, c.validateSync()...)
	errs = append(errs, c.validateFence()...)
	if t, err := TimingOf(c.Profile); err == nil && c.CutOffAfter != 0 && c.CutOffAfter <= t.Silence {
		add("group.cut_off_after: %s must be 0 or more than %s, in which a failover decides with "+
			"profile %s", c.CutOffAfter, t.Silence, c.Profile)
	}
	if c.LockBarrier < 0 {
		add("proxy.lock_barrier_timeout: must not be less than zero")
	}
	if c.PrewarmTime < 0 || c.PrewarmTime > prewarmTimeMax {
		add("group.prewarm_time: must be 0 to %s", prewarmTimeMax)
	}
	if c.DrainTimeout <= 0 {
		add("group.drain_timeout: must be greater than zero")
	}
	return errors.Join(errs...)
}

// Self is this node's entry in Nodes.
func (c Config) Self() Member {
	for _, n := range c.Nodes {
		if n.Name == c.Name {
			return n
		}
	}
	return Member{Name: c.Name}
}
