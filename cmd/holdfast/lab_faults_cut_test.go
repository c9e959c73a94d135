package main_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	holdfast "holdfast/cmd/holdfast"
)

// cutServer cuts the others off the port of the primary's server, and off nothing else: nodes talk,
// and the primary's node reaches the others' servers.
func cutServer(in, out bool, d time.Duration) func(*labRun) error {
	return func(r *labRun) error { return cutPrimary(in, out, toOrFrom(r.server()), d)(r) }
}

// cutStandbys cuts the standbys off the primary, and nobody else: their nodes' probes, which come
// from the same addresses, get through.
func cutStandbys(in, out bool, d time.Duration) func(*labRun) error {
	return func(r *labRun) error { return cutPrimary(in, out, r.isStandby(), d)(r) }
}

// cutClients cuts all but the standbys off the port of the primary's server.
func cutClients(d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		isServer, isStandby := toOrFrom(r.server()), r.isStandby()
		return cutPrimary(true, true, func(p labPacket) bool {
			return isServer(p) && !isStandby(p)
		}, d)(r)
	}
}

// server is the address of the primary's server.
func (r *labRun) server() netip.AddrPort { return netip.MustParseAddrPort(r.primary.Postgres) }

// toOrFrom are the packets to an address and a port, and from it.
func toOrFrom(at netip.AddrPort) func(labPacket) bool {
	return func(p labPacket) bool {
		return netip.AddrPortFrom(p.dst, p.dstPort) == at ||
			netip.AddrPortFrom(p.src, p.srcPort) == at
	}
}

// isStandby are the packets between the primary's server and the servers of the others, by the
// account that owns the socket there: PostgreSQL's, where holdfast's is root. A connection is
// looked at when it is opened, or first seen. The network calls what is returned under its lock.
func (r *labRun) isStandby() func(labPacket) bool {
	server, known := r.server(), map[netip.AddrPort]bool{}
	return func(p labPacket) bool {
		other := netip.AddrPortFrom(p.src, p.srcPort)
		switch server {
		case other:
			other = netip.AddrPortFrom(p.dst, p.dstPort)
		case netip.AddrPortFrom(p.dst, p.dstPort):
		default:
			return false
		}
		is, isKnown := known[other]
		if !isKnown || p.isSyn {
			is = r.ownerOf(other) != "0"
			known[other] = is
		}
		return is
	}
}

// ownerOf is the user id that owns a TCP socket of a node; 0 if that cannot be told.
func (r *labRun) ownerOf(socket netip.AddrPort) string {
	for _, n := range r.cluster.Nodes {
		if n.Pid() == 0 || r.net.byAddr[socket.Addr()] != r.net.host(n.Name) {
			continue
		}
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", n.Pid()))
		if err != nil {
			return "0"
		}
		return socketOwner(string(table), socket)
	}
	return "0"
}

// socketOwner finds a local address in the kernel's table of TCP sockets.
func socketOwner(table string, socket netip.AddrPort) string {
	a := socket.Addr().As4()
	want := fmt.Sprintf("%02X%02X%02X%02X:%04X", a[3], a[2], a[1], a[0], socket.Port())
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == want {
			return f[7]
		}
	}
	return "0"
}

// isGroupOnly are the packets between the nodes' own addresses as voters and as standbys, and their
// probes: proxies reach the primary's server.
func isGroupOnly(p labPacket) bool { return isControl(p) || isReplication(p) }

// loseStandby loses the host of a standby that does not lead the Raft group.
func loseStandby(d time.Duration) func(*labRun) error {
	return onFollower(func(r *labRun, n *holdfast.ClusterNode) error {
		return r.loseHostOf(n, d, func(*labRun) error { return nil })
	})
}

// notTheFollower are the nodes but that of onFollower.
func notTheFollower(r *labRun) []string {
	if r.primary == r.leader {
		return []string{r.primary.Name}
	}
	return []string{r.primary.Name, r.leader.Name}
}

// loseBoth loses the host of the primary and of the Raft leader, which are the same.
func loseBoth(d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		if r.primary != r.leader {
			if err := r.cluster.Switchover(r.ctx, r.leader.Name); err != nil {
				return err
			}
			r.load.Changed()
			if err := errors.Join(r.sleep(2*time.Second), r.begin()); err != nil {
				return err
			}
		}
		if r.primary != r.leader {
			return fmt.Errorf("%s is primary, and %s leads", r.primary.Name, r.leader.Name)
		}
		return loseHost(d)(r)
	}
}

// pauseAll stops holdfast on all nodes for a while.
func pauseAll(d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		var err error
		for _, n := range r.cluster.Nodes {
			err = errors.Join(err, n.Signal(unix.SIGSTOP))
		}
		err = errors.Join(err, r.sleep(d))
		for _, n := range r.cluster.Nodes {
			err = errors.Join(err, n.Signal(unix.SIGCONT))
		}
		return err
	}
}

// thePrimary is the node whose proxy has to feel that its node is cut off.
func thePrimary(r *labRun) []string { return []string{r.primary.Name} }

func theLeader(r *labRun) []string { return []string{r.leader.Name} }

func everyProxy(r *labRun) []string { return names(r.cluster.Nodes) }

// hurtStandby does something to the data disk of a standby, which has to feel it: it is not well
// any more, or its WAL stands still though the primary's goes on, with new segments too.
func hurtStandby(what func(*labDisk, time.Duration) error, d time.Duration) func(*labRun) error {
	return func(r *labRun) error {
		n := r.others(r.primary.Name)[0]
		disk := r.data[n.Name]
		if err := what(disk, d); err != nil {
			return err
		}
		err := r.switchWAL(4)
		if err == nil {
			err = r.sleep(d / 2)
		}
		first, e1 := r.memberNow(n.Name)
		e2 := r.sleep(d / 2)
		last, e3 := r.memberNow(n.Name)
		err = errors.Join(err, e1, e2, e3, disk.thaw(), disk.empty())
		if err == nil && last.Streaming && last.Problem == "" && first.LSN != last.LSN {
			err = fmt.Errorf("%s felt nothing: %+v, then %+v", n.Name, first, last)
		}
		r.t.Logf("%s while its disk was bad: %s, streaming %v, %s, %q", n.Name, last.Role,
			last.Streaming, last.LSN, last.Problem)
		return err
	}
}

// fullFor and frozenFor are what hurtStandby does.
func fullFor(d *labDisk, _ time.Duration) error { return d.fill() }

func frozenFor(d *labDisk, limit time.Duration) error { return d.freeze(limit + 20*time.Second) }

// memberNow is what the primary's node hears of a member.
func (r *labRun) memberNow(name string) (holdfast.MemberStatus, error) {
	st, err := r.cluster.Status(r.ctx)
	if err != nil {
		return holdfast.MemberStatus{}, err
	}
	for _, m := range st.Members {
		if m.Name == name {
			return m, nil
		}
	}
	return holdfast.MemberStatus{}, fmt.Errorf("no member %s", name)
}

// switchWAL makes the primary begin so many new WAL segments.
func (r *labRun) switchWAL(n int) error {
	secret, err := r.cluster.Secret("superuser")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, fmt.Sprintf("postgres://postgres:%s@%s/postgres", secret,
		r.primary.Proxy))
	if err != nil {
		return fmt.Errorf("switch WAL: %w", err)
	}
	defer closeLabConn(conn)
	for range n {
		if _, err := conn.Exec(ctx, "SELECT pg_switch_wal()"); err != nil {
			return fmt.Errorf("switch WAL: %w", err)
		}
		if err := r.sleep(300 * time.Millisecond); err != nil { // something is written meanwhile
			return err
		}
	}
	return nil
}
