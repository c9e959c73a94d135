package main_test

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// labNet is a network of namespaces, each with one TUN device, and the router between them. What
// tc netem does in a kernel that has it, the router does to each packet on its way: see
// docs/faults.md.
type labNet struct {
	hosts  []*labHost
	byAddr map[netip.Addr]*labHost

	mu      sync.Mutex
	links   map[[2]string]labLink
	queue   labQueue
	seq     uint64
	wake    chan struct{}
	done    chan struct{}
	group   sync.WaitGroup
	dropped int
}

// labHost is one namespace of the network.
type labHost struct {
	name  string
	addrs []netip.Addr
	ns    *os.File // nil is the namespace that the test runs in
	tun   *os.File
}

// labLink is what happens to packets from one host to another. The zero value lets them pass.
type labLink struct {
	delay, jitter time.Duration
	loss          float64 // 0 to 1
	// drop tells which packets are cut off; nil is none.
	drop func(labPacket) bool
}

// labPacket is what the router knows of a packet; the ports are those of TCP.
type labPacket struct {
	src, dst         netip.Addr
	srcPort, dstPort uint16
	isSyn            bool // opens a connection
}

// Flags of TCP.
const (
	tcpSyn = 0x02
	tcpAck = 0x10
)

// labQueueMax bounds the packets on their way; more are lost, as in a real queue.
const labQueueMax = 50000

// newLabNet makes the namespaces. Those without addresses of their own are not possible: the
// first host is where the test itself runs.
func newLabNet(hosts ...*labHost) (*labNet, error) {
	n := &labNet{
		hosts: hosts, byAddr: map[netip.Addr]*labHost{}, links: map[[2]string]labLink{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	for i, h := range hosts {
		if err := h.make(i == 0); err != nil {
			return nil, errors.Join(fmt.Errorf("make namespace of %s: %w", h.name, err), n.close())
		}
		for _, a := range h.addrs {
			n.byAddr[a] = h
		}
	}
	for _, h := range hosts {
		n.group.Go(func() { n.read(h) })
	}
	n.group.Go(n.deliver)
	return n, nil
}

func (n *labNet) close() error {
	close(n.done)
	var err error
	for _, h := range n.hosts {
		if h.tun != nil {
			err = errors.Join(err, h.tun.Close())
		}
	}
	n.group.Wait()
	for _, h := range n.hosts {
		if h.ns != nil {
			err = errors.Join(err, h.ns.Close())
		}
	}
	return err
}

// make makes namespace, device, addresses and routes.
func (h *labHost) make(isHere bool) error {
	return onOwnThread(func() error {
		if !isHere {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			path := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
			var err error
			if h.ns, err = os.Open(path); err != nil {
				return err
			}
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		ifr, err := unix.NewIfreq(labDevice)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return errors.Join(fmt.Errorf("make device: %w", err), unix.Close(fd))
		}
		h.tun = os.NewFile(uintptr(fd), "tun of "+h.name)
		return h.configure()
	})
}

// labDevice is the name of the device in each namespace.
const labDevice = "lab0"

// configure brings the devices up; the first address is the one that the kernel prefers.
func (h *labHost) configure() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	for i, a := range h.addrs {
		name := labDevice
		if i > 0 {
			name = fmt.Sprintf("%s:%d", labDevice, i)
		}
		if err := setAddr(fd, name, unix.SIOCSIFADDR, a); err != nil {
			return fmt.Errorf("give address %s: %w", a, err)
		}
		mask := netip.MustParseAddr("255.255.0.0")
		if err := setAddr(fd, name, unix.SIOCSIFNETMASK, mask); err != nil {
			return fmt.Errorf("give netmask: %w", err)
		}
	}
	for _, name := range []string{"lo", labDevice} {
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_UP)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
			return fmt.Errorf("bring %s up: %w", name, err)
		}
	}
	return nil
}

func setAddr(fd int, name string, request uint, a netip.Addr) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := ifr.SetInet4Addr(a.AsSlice()); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, request, ifr)
}

// onOwnThread runs f on a thread that ends with it, so that no other goroutine can ever run in
// the namespace that f entered.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		done <- f()
	}()
	return <-done
}

// inside runs f in the host's namespace. Sockets and processes stay where they were made.
func (h *labHost) inside(f func() error) error {
	if h.ns == nil {
		return f()
	}
	return onOwnThread(func() error {
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace of %s: %w", h.name, err)
		}
		return f()
	})
}

// dial connects from the host.
func (h *labHost) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := h.inside(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

func (n *labNet) host(name string) *labHost {
	for _, h := range n.hosts {
		if h.name == name {
			return h
		}
	}
	panic("BUG: lab: no host " + name)
}

// set changes what happens from one host to another, from now on.
func (n *labNet) set(from, to string, link labLink) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[[2]string{from, to}] = link
}

// heal lets everything pass again; packets on their way still arrive when they would have.
func (n *labNet) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.links)
}

// read takes what a host sends until its device is closed.
func (n *labNet) read(h *labHost) {
	buf := make([]byte, 1<<16)
	for {
		size, err := h.tun.Read(buf)
		if err != nil {
			select {
			case <-n.done:
				return
			default:
				panic(fmt.Sprintf("lab: device of %s: %v", h.name, err))
			}
		}
		p, ok := parseLabPacket(buf[:size])
		if !ok {
			continue // IPv6 and the like: nobody here speaks it
		}
		if to := n.byAddr[p.dst]; to != nil {
			n.route(h, to, p, buf[:size])
		}
	}
}

func parseLabPacket(b []byte) (labPacket, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return labPacket{}, false
	}
	p := labPacket{src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20]))}
	head := int(b[0]&15) * 4
	if b[9] == unix.IPPROTO_TCP && len(b) >= head+4 {
		p.srcPort = uint16(b[head])<<8 | uint16(b[head+1])
		p.dstPort = uint16(b[head+2])<<8 | uint16(b[head+3])
		p.isSyn = len(b) > head+13 && b[head+13]&(tcpSyn|tcpAck) == tcpSyn
	}
	return p, true
}

// route drops, delays or passes on a packet. As with netem, each packet has a delay of its own,
// so that packets overtake each other.
func (n *labNet) route(from, to *labHost, p labPacket, b []byte) {
	n.mu.Lock()
	link := n.links[[2]string{from.name, to.name}]
	if link.drop != nil && link.drop(p) || link.loss > 0 && rand.Float64() < link.loss ||
		len(n.queue) >= labQueueMax {
		n.dropped++
		n.mu.Unlock()
		return
	}
	delay := link.delay
	if link.jitter > 0 {
		delay += rand.N(2*link.jitter) - link.jitter
	}
	if delay <= 0 {
		n.mu.Unlock()
		to.write(b)
		return
	}
	n.seq++
	heap.Push(&n.queue, labQueued{time.Now().Add(delay), n.seq, to, append([]byte(nil), b...)})
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// write gives the host a packet. One that its kernel does not take is lost, as on a wire.
func (h *labHost) write(b []byte) { _, _ = h.tun.Write(b) }

// deliver hands over delayed packets when they are due.
func (n *labNet) deliver() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		n.mu.Lock()
		wait := time.Hour
		var due []labQueued
		for len(n.queue) > 0 {
			if wait = time.Until(n.queue[0].at); wait > 0 {
				break
			}
			due = append(due, heap.Pop(&n.queue).(labQueued))
			wait = time.Hour
		}
		n.mu.Unlock()
		for _, q := range due {
			q.to.write(q.b)
		}
		timer.Reset(wait)
		select {
		case <-n.done:
			return
		case <-n.wake:
		case <-timer.C:
		}
	}
}

// labQueued is a packet on its way.
type labQueued struct {
	at  time.Time
	seq uint64
	to  *labHost
	b   []byte
}

// labQueue is a heap by time.
type labQueue []labQueued

func (q labQueue) Len() int { return len(q) }
func (q labQueue) Less(i, j int) bool {
	if q[i].at.Equal(q[j].at) {
		return q[i].seq < q[j].seq
	}
	return q[i].at.Before(q[j].at)
}
func (q labQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *labQueue) Push(x any)   { *q = append(*q, x.(labQueued)) }
func (q *labQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	old[len(old)-1] = labQueued{}
	*q = old[:len(old)-1]
	return x
}
