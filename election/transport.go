package election

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"
)

// Protocols on the node-to-node port, told apart by ALPN.
const (
	protoRaft = "holdfast-raft/1"
	protoRPC  = "http/1.1"
	protoLoan = "holdfast-loan/1"
)

// handshakeTimeout bounds a TLS handshake between nodes.
const handshakeTimeout = 5 * time.Second

// handshakesMax bounds connections that have not finished their handshake.
const handshakesMax = 256

// port is the node-to-node port: it accepts, shakes hands and hands the connections on to Raft,
// to the RPC server or to what lends to sidecars. It owns its goroutines.
type port struct {
	listener net.Listener
	tls      *tls.Config
	log      *zap.Logger
	isNode   func(name string) bool

	raft, rpc, loans *handoff

	inbound  connSet // Raft's connections from other nodes
	outbound connSet // and to them
	// raftWaits closes Raft's connections as long as it is not started: who may talk with it shows
	// in its log.
	raftWaits atomic.Bool
	slots     chan struct{}
	patience  time.Duration // of a handshake
	ctx       context.Context
	cancel    context.CancelFunc // ends handshakes
	work      sync.WaitGroup
	closeOnce sync.Once
}

// connSet knows open connections of Raft. Its transport blocks in reading those it accepted and
// does not close them by itself when it is closed, nor those it dialed that are in use when its
// streams are closed: heartbeats would go on over them.
type connSet struct {
	mu    sync.Mutex
	conns map[*trackedConn]struct{}
}

// trackedConn leaves its set when it is closed.
type trackedConn struct {
	net.Conn
	set *connSet
}

func (s *connSet) add(c net.Conn) net.Conn {
	t := &trackedConn{Conn: c, set: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = make(map[*trackedConn]struct{})
	}
	s.conns[t] = struct{}{}
	return t
}

// Close implements net.Conn.
func (t *trackedConn) Close() error {
	t.set.mu.Lock()
	delete(t.set.conns, t)
	t.set.mu.Unlock()
	return t.Conn.Close()
}

// closeAll closes what is open.
func (s *connSet) closeAll() {
	s.mu.Lock()
	conns := make([]*trackedConn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// handoff is a net.Listener that is fed with connections.
type handoff struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return h.addr }

func (h *handoff) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		_ = c.Close()
	}
}

// listenPort opens the port; run accepts.
func listenPort(addr string, id *identity, isNode func(string) bool, log *zap.Logger,
) (*port, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for nodes on %s (address in group.nodes): %w", addr, err)
	}
	p := &port{
		listener: l, tls: id.server(), log: log, isNode: isNode,
		raft: newHandoff(l.Addr()), rpc: newHandoff(l.Addr()),
		loans: newHandoff(l.Addr()),
		slots: make(chan struct{}, handshakesMax), patience: handshakeTimeout,
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// start accepts until close.
func (p *port) start() {
	p.work.Add(1)
	go p.runAccept()
}

func (p *port) runAccept() {
	defer p.work.Done()
	for {
		c, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond) // out of descriptors, for one
			continue
		}
		select {
		case p.slots <- struct{}{}:
			p.work.Add(1)
			go p.runHandshake(c)
		default:
			_ = c.Close()
		}
	}
}

func (p *port) runHandshake(c net.Conn) {
	defer p.work.Done()
	t := tls.Server(c, p.tls)
	ctx, cancel := context.WithTimeout(p.ctx, p.patience)
	err := t.HandshakeContext(ctx)
	cancel()
	<-p.slots
	if err != nil {
		p.log.Warn("node connection refused", zap.String("peer", c.RemoteAddr().String()),
			zap.Error(err))
		_ = c.Close()
		return
	}
	st := t.ConnectionState()
	switch {
	case st.NegotiatedProtocol == protoRPC:
		p.rpc.give(t)
	case st.NegotiatedProtocol == protoLoan:
		p.loans.give(t)
	case st.NegotiatedProtocol == protoRaft && p.raftWaits.Load():
		_ = t.Close()
	case st.NegotiatedProtocol == protoRaft && p.isNode(peerName(&st)):
		p.raft.give(p.inbound.add(t))
	default:
		p.log.Warn("node connection refused", zap.String("peer", c.RemoteAddr().String()),
			zap.String("name", peerName(&st)))
		_ = t.Close()
	}
}

// peerName is the name in the peer's certificate.
func peerName(st *tls.ConnectionState) string {
	if len(st.PeerCertificates) == 0 {
		return ""
	}
	return st.PeerCertificates[0].Subject.CommonName
}

// close ends accepting and waits.
func (p *port) close() {
	p.closeOnce.Do(func() {
		p.cancel()
		_ = p.listener.Close()
		_ = p.raft.Close()
		_ = p.rpc.Close()
		_ = p.loans.Close()
	})
	p.work.Wait()
}

// streamLayer is Raft's way over the port. While the node is silent it neither accepts nor dials.
type streamLayer struct {
	*handoff
	id       *identity
	nameOf   func(addr string) string
	isSilent func() bool
	source   net.Addr
	outbound *connSet
}

var _ raft.StreamLayer = (*streamLayer)(nil)

// errSilent is a connection that a silent node does not make.
var errSilent = errors.New("node is silent because its raft disk fails")

// Accept implements net.Listener.
func (s *streamLayer) Accept() (net.Conn, error) {
	for {
		c, err := s.handoff.Accept()
		if err != nil || !s.isSilent() {
			return c, err
		}
		_ = c.Close()
	}
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	if s.isSilent() {
		return nil, errSilent
	}
	c, err := dialNode(context.Background(), s.id, s.nameOf(string(addr)), string(addr), protoRaft,
		s.source, timeout)
	if err != nil {
		return nil, err
	}
	c = s.outbound.add(c)
	if s.isSilent() { // it fell silent meanwhile, and has closed what there was before this one
		_ = c.Close()
		return nil, errSilent
	}
	return c, nil
}

// dialNode connects to a node and checks that it is the one that was meant.
func dialNode(ctx context.Context, id *identity, peer, addr, proto string, source net.Addr,
	timeout time.Duration,
) (net.Conn, error) {
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: timeout, LocalAddr: source},
		Config:    id.client(peer, proto),
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial node %s at %s: %w", peer, addr, err)
	}
	return c, nil
}
