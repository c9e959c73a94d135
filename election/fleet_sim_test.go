package election_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/election"
)

// simFleet are simulated sidecars: to the voters they are what real ones are, with the same
// requests at the same intervals and the same two connections each, one that borrows and one whose
// long-poll waits. What they save is their own: the state is decoded once for all of them, they
// have no HTTP client, and they all show one certificate.
type simFleet struct {
	cfg    election.Config
	timing election.Timing
	tls    *tls.Config
	ctx    context.Context
	work   sync.WaitGroup
	dials  chan struct{} // bounds handshakes under way
	// renewed and failed count answers to requests to borrow.
	renewed, failed atomic.Int64

	mu     sync.Mutex
	states map[uint64]*election.State // by index
	all    []*simSidecar
}

// simSidecar owns two goroutines.
type simSidecar struct {
	fleet       *simFleet
	incarnation uint64
	lender      atomic.Int64 // which node it borrows from
	state       atomic.Pointer[election.State]
	newer       chan struct{}
	holds       atomic.Int64 // epoch of its lease
	until       atomic.Int64

	tally *election.Tally
	asked map[int]bool // whom it asked since it last gave up
	given uint64
	conns map[int]net.Conn
}

// simConn is a connection that speaks HTTP/1.1 by hand.
type simConn struct {
	net.Conn
	in *bufio.Reader
}

func newSimFleet(ctx context.Context, cfg election.Config) (*simFleet, error) {
	pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	timing, err := election.TimingOf(cfg.Profile)
	return &simFleet{
		cfg: cfg, timing: timing, ctx: ctx, dials: make(chan struct{}, 32),
		tls: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool,
			MinVersion: tls.VersionTLS13},
		states: map[uint64]*election.State{},
	}, err
}

// start adds a sidecar.
func (f *simFleet) start() {
	s := &simSidecar{fleet: f, incarnation: rand.Uint64(), newer: make(chan struct{}, 1),
		tally: election.NewBorrowerTally(f.timing), asked: map[int]bool{},
		conns: map[int]net.Conn{}}
	s.lender.Store(int64(rand.IntN(len(f.cfg.Nodes))))
	s.state.Store(&election.State{})
	f.all = append(f.all, s)
	f.work.Go(s.runPolls)
	f.work.Go(s.runLease)
}

func (f *simFleet) dial(node int, proto string) (net.Conn, error) {
	f.dials <- struct{}{}
	defer func() { <-f.dials }()
	m := f.cfg.Nodes[node]
	cfg := f.tls.Clone()
	cfg.ServerName, cfg.NextProtos = m.Name, []string{proto}
	ctx, cancel := context.WithTimeout(f.ctx, 10*time.Second)
	defer cancel()
	return (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", m.Address)
}

// call posts as net/http does, with the same headers.
func (c *simConn) call(ctx context.Context, node election.Member, path string, in any,
) ([]byte, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Go-http-client/1.1\r\n"+
		"Content-Length: %d\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
		path, node.Address, len(body))
	b.Write(body)
	if _, err := c.Write(b.Bytes()); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return answer, err
}

// runPolls follows the state at the node that lends.
func (s *simSidecar) runPolls() {
	var conn *simConn
	at, index := -1, uint64(0)
	for s.fleet.ctx.Err() == nil {
		if want := int(s.lender.Load()); conn == nil || want != at {
			if conn != nil {
				_ = conn.Close()
			}
			at = want
			c, err := s.fleet.dial(at, "http/1.1")
			if err != nil {
				conn = nil
				pauseSim(s.fleet.ctx, 100*time.Millisecond)
				continue
			}
			conn = &simConn{Conn: c, in: bufio.NewReaderSize(c, 1024)}
		}
		// What a sidecar asks for as long as its lender lends.
		b, err := conn.call(s.fleet.ctx, s.fleet.cfg.Nodes[at], "/v1/state",
			map[string]any{"v": election.Version, "index": index, "wait_ms": 20000})
		if err != nil {
			_ = conn.Close()
			conn = nil
			continue
		}
		if i, state := s.fleet.decode(b); i > index {
			index = i
			s.state.Store(state)
			select {
			case s.newer <- struct{}{}:
			default:
			}
		}
	}
	if conn != nil {
		_ = conn.Close()
	}
}

// decode reads an answer whose state was not seen before.
func (f *simFleet) decode(b []byte) (uint64, *election.State) {
	var index uint64
	if _, err := fmt.Sscanf(string(b[:min(len(b), 60)]), `{"v":1,"index":%d,`, &index); err != nil {
		panic(fmt.Sprintf("an answer begins with %.60q", b))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.states[index] == nil {
		var a struct{ State *election.State }
		if err := json.Unmarshal(b, &a); err != nil {
			panic(err)
		}
		f.states[index] = a.State
	}
	return index, f.states[index]
}

// runLease borrows at intervals and gives back, as lessee does.
func (s *simSidecar) runLease() {
	pauseSim(s.fleet.ctx, rand.N(s.fleet.timing.Interval))
	t := time.NewTicker(s.fleet.timing.Interval)
	defer t.Stop()
	for s.fleet.ctx.Err() == nil {
		state := s.state.Load()
		lock, from := uint64(0), uint64(0)
		if state.Lock != nil {
			lock = state.Lock.Epoch
		}
		if state.Intent != nil {
			from = state.Intent.FromEpoch
		}
		end := from
		if end == 0 && lock > 0 {
			end = lock - 1
		}
		if end > s.given {
			s.giveBack(end)
		}
		if lock > s.given && from != lock {
			s.borrow(lock)
		}
		select {
		case <-s.fleet.ctx.Done():
		case <-s.newer:
		case <-t.C:
		}
	}
	for _, c := range s.conns {
		_ = c.Close()
	}
}

func (s *simSidecar) giveBack(epoch uint64) {
	s.given = epoch
	s.until.Store(0)
	seq := s.tally.Release()
	for node := range s.asked {
		_, _ = s.ask(node, election.LoanReturn, s.message(seq, epoch))
	}
	clear(s.asked)
}

func (s *simSidecar) message(seq, epoch uint64) election.Renewal {
	return election.Renewal{V: election.Version, Lessee: s.fleet.cfg.Name,
		Incarnation: s.incarnation, Seq: seq, Epoch: epoch}
}

func (s *simSidecar) borrow(epoch uint64) {
	s.tally.Begin(epoch)
	seq, _ := s.tally.Send(bootNanos())
	node := int(s.lender.Load())
	s.asked[node] = true
	a, err := s.ask(node, election.LoanBorrow, s.message(seq, epoch))
	if err != nil || !a.Granted {
		s.fleet.failed.Add(1)
		s.lender.Store(int64((node + 1) % len(s.fleet.cfg.Nodes)))
		return
	}
	s.fleet.renewed.Add(1)
	s.tally.Answer(s.fleet.cfg.Nodes[node].Name, a)
	_, until := s.tally.Deadlines()
	s.holds.Store(int64(epoch))
	s.until.Store(until)
}

func (s *simSidecar) ask(node int, what byte, r election.Renewal) (election.RenewalAnswer, error) {
	c := s.conns[node]
	if c == nil {
		var err error
		if c, err = s.fleet.dial(node, election.ProtoLoan); err != nil {
			return election.RenewalAnswer{}, err
		}
		s.conns[node] = c
	}
	stop := context.AfterFunc(s.fleet.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(s.fleet.timing.Doubt))
	a, err := election.AskLoan(c, what, r)
	if err != nil {
		_ = c.Close()
		delete(s.conns, node)
	}
	return a, err
}

// hold tells whether all sidecars have got a lease of the epoch.
func (f *simFleet) hold(epoch string) bool {
	for _, s := range f.all {
		if fmt.Sprint(s.holds.Load()) != epoch {
			return false
		}
	}
	return true
}

// lapsed is how many have none now.
func (f *simFleet) lapsed() (n int) {
	now := bootNanos()
	for _, s := range f.all {
		if now >= s.until.Load() {
			n++
		}
	}
	return n
}

func bootNanos() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}

func pauseSim(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
