package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CutServer ends every connection that a node of the cluster has to the node's PostgreSQL server,
// as a network would: the server lives, and what it was sent it may still do. It returns how many
// there were. Connections among the servers stay.
func (c *Cluster) CutServer(n *ClusterNode) (int, error) {
	cut := 0
	var errs []error
	for _, from := range c.Nodes {
		if pid := from.Pid(); pid != 0 {
			k, err := cutConnections(pid, n.Postgres)
			cut += k
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return cut, fmt.Errorf("cut connections to %s: %w", n.Name, err)
	}
	return cut, nil
}

// CanCut tells whether this process may take the sockets of the cluster's nodes.
func (c *Cluster) CanCut() error {
	_, err := cutConnections(c.Nodes[0].Pid(), "")
	return err
}

// cutConnections shuts down the connections of a process to an address, from a copy of each socket:
// no packet filter is needed for it, nor another network.
func cutConnections(pid int, addr string) (int, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(process) }()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("list sockets: %w", err)
	}
	cut := 0
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		isCut, err := cutConnection(process, fd, addr)
		if err != nil {
			return cut, err
		}
		if isCut {
			cut++
		}
	}
	return cut, nil
}

// cutConnection shuts one socket down if it is connected to the address. The number may be another
// socket's by now, which is why the copy is asked for its peer.
func cutConnection(process, fd int, addr string) (bool, error) {
	dup, err := unix.PidfdGetfd(process, fd, 0)
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("take a socket: %w", err)
	}
	defer func() { _ = unix.Close(dup) }()
	peer, err := unix.Getpeername(dup)
	if err != nil {
		return false, nil // it listens, or is closed already
	}
	in, ok := peer.(*unix.SockaddrInet4)
	if !ok || hostPort(net.IP(in.Addr[:]).String(), in.Port) != addr {
		return false, nil
	}
	err = unix.Shutdown(dup, unix.SHUT_RDWR)
	if err != nil && !errors.Is(err, unix.ENOTCONN) {
		return false, fmt.Errorf("shut down a socket: %w", err)
	}
	return err == nil, nil
}
