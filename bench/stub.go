package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"holdfast/pgwire"
)

// What the clients of the relay's benchmark log in with, everywhere.
const (
	benchUser     = "bench"
	benchPassword = "bench"
	benchDatabase = "postgres"
)

// stubIncarnation is what the stub claims as the start of its postmaster.
const stubIncarnation = "1"

// stub answers as PostgreSQL would, from bytes made beforehand, so that next to nothing of a
// round's CPU is a server's. It knows the statements of this benchmark; each connection has a
// goroutine, which close waits for.
type stub struct {
	listener net.Listener
	secret   pgwire.ScramSecret
	verifier string
	isScram  bool
	group    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// stubRowBytes is how long a row of a large result is; a block is what is written at once.
const (
	stubRowBytes  = 100
	stubBlockRows = 512
)

// stubBytes are the answers.
var stubBytes = struct {
	row, rows, described, check, block, copyBlock []byte
}{
	row: pgwire.AppendCommandComplete(pgwire.AppendDataRow(nil, []byte("12345")), "SELECT 1"),
	rows: pgwire.AppendReadyForQuery(pgwire.AppendCommandComplete(pgwire.AppendDataRow(
		pgwire.AppendRowDescription(nil, "abalance"), []byte("12345")), "SELECT 1"), pgwire.TxIdle),
	described: pgwire.AppendRowDescription(nil, "abalance"),
	check: pgwire.AppendReadyForQuery(pgwire.AppendCommandComplete(pgwire.AppendDataRow(
		pgwire.AppendRowDescription(nil, "started", "recovery", "backend_start", "role"),
		[]byte(stubIncarnation), []byte("f"), []byte("1767225600000000"), []byte("none")), "SELECT 1"),
		pgwire.TxIdle),
	block:     stubBlock(pgwire.SrvDataRow),
	copyBlock: stubBlock(pgwire.SrvCopyData),
}

func stubBlock(typ byte) []byte {
	var one []byte
	if typ == pgwire.SrvDataRow {
		one = pgwire.AppendDataRow(nil, bytes.Repeat([]byte("x"), stubRowBytes))
	} else {
		one = pgwire.AppendMessage(nil, typ,
			append(bytes.Repeat([]byte("x"), stubRowBytes), '\n'))
	}
	return bytes.Repeat(one, stubBlockRows)
}

// startStub listens; iterations are those of the password's secret.
func startStub(addr string, isScram bool, iterations int) (*stub, error) {
	verifier, err := stubSecret(iterations)
	if err != nil {
		return nil, fmt.Errorf("start stub: %w", err)
	}
	secret, err := pgwire.ParseScramSecret(verifier)
	if err != nil {
		return nil, fmt.Errorf("start stub: %w", err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("start stub: %w", err)
	}
	s := &stub{listener: l, secret: secret, verifier: verifier, isScram: isScram,
		conns: make(map[net.Conn]bool)}
	s.group.Go(s.runAccept)
	return s, nil
}

// stubIterations is what PostgreSQL has by default.
const stubIterations = 4096

// stubSecret is always the same, so that others can know it.
func stubSecret(iterations int) (string, error) {
	return pgwire.BuildScramSecret(benchPassword, []byte("salt of the stub"), iterations)
}

func (s *stub) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.group.Wait()
}

func (s *stub) runAccept() {
	for pid := uint32(1); ; pid++ {
		conn, err := s.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: some will come back
			continue
		}
		s.mu.Lock()
		if s.conns == nil {
			s.mu.Unlock()
			_ = conn.Close()
			return
		}
		s.conns[conn] = true
		s.mu.Unlock()
		s.group.Go(func() { s.runConn(conn, pid) })
	}
}

func (s *stub) runConn(conn net.Conn, pid uint32) {
	defer func() {
		// With a reset the peer's port is free at once, see clients.close.
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
	if s.login(conn, pid) != nil {
		return
	}
	c := stubConn{stub: s, conn: conn, in: make([]byte, 4096), out: make([]byte, 0, 512)}
	for c.serve() == nil {
	}
}

// login takes a client up to its first ReadyForQuery.
func (s *stub) login(conn net.Conn, pid uint32) error {
	r := pgwire.NewReader(conn, 1<<16)
	var st pgwire.Startup
	var err error
	for {
		if st, err = pgwire.ReadStartup(r); err != nil {
			return err
		}
		if st.Kind == pgwire.StartupSSL || st.Kind == pgwire.StartupGSS {
			if _, err := conn.Write([]byte("N")); err != nil {
				return err
			}
			continue
		}
		break
	}
	if st.Kind != pgwire.StartupNormal {
		return io.EOF
	}
	var out []byte
	if s.isScram {
		if out, err = s.scram(conn, r); err != nil {
			return err
		}
	}
	out = pgwire.AppendAuthOK(out)
	for _, p := range [][2]string{{"server_version", "15.0"}, {"client_encoding", "UTF8"},
		{"server_encoding", "UTF8"}, {"DateStyle", "ISO, MDY"}, {"TimeZone", "Etc/UTC"},
		{"IntervalStyle", "postgres"}, {"integer_datetimes", "on"}, {"is_superuser", "off"},
		{"session_authorization", benchUser}, {"standard_conforming_strings", "on"},
		{"application_name", ""}, {"in_hot_standby", "off"},
		{"default_transaction_read_only", "off"}} {
		out = pgwire.AppendParameterStatus(out, p[0], p[1])
	}
	out = pgwire.AppendBackendKeyData(out, pid, []byte{1, 2, 3, 4})
	_, err = conn.Write(pgwire.AppendReadyForQuery(out, pgwire.TxIdle))
	return err
}

// scram checks the password; the last message is left to be sent with what follows it.
func (s *stub) scram(conn net.Conn, r *pgwire.Reader) ([]byte, error) {
	if _, err := conn.Write(pgwire.AppendAuthSASL(nil, "SCRAM-SHA-256")); err != nil {
		return nil, err
	}
	_, body, err := r.ReadMessage()
	if err != nil {
		return nil, err
	}
	_, data, err := pgwire.ParseSASLInitial(body)
	if err != nil {
		return nil, err
	}
	server := pgwire.NewScramServer(s.secret, true)
	reply, err := server.First(data)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(pgwire.AppendAuthSASLContinue(nil, reply)); err != nil {
		return nil, err
	}
	if _, body, err = r.ReadMessage(); err != nil {
		return nil, err
	}
	if reply, _, err = server.Final(body); err != nil {
		return nil, err
	}
	return pgwire.AppendAuthSASLFinal(nil, reply), nil
}

// stubConn is one session after its login.
type stubConn struct {
	stub *stub
	conn net.Conn
	in   []byte
	r, w int
	skip int // bytes of a large message that are still to come
	out  []byte
	// isBlock tells that a transaction block is open.
	isBlock bool
}

// serve reads once and answers what is whole.
func (c *stubConn) serve() error {
	n, err := c.conn.Read(c.in[c.w:])
	if err != nil {
		return err
	}
	c.w += n
	c.out = c.out[:0]
	for c.w > c.r {
		if c.skip > 0 {
			n := min(c.skip, c.w-c.r)
			c.skip -= n
			c.r += n
			continue
		}
		if c.w-c.r < pgwire.HeaderLen {
			break
		}
		typ, n, err := pgwire.Header(c.in[c.r:c.w])
		if err != nil {
			return err
		}
		if typ == pgwire.CliCopyData || n > len(c.in)-pgwire.HeaderLen {
			c.skip, c.r = n, c.r+pgwire.HeaderLen
			if len(c.in) < 1<<16 {
				c.in = append(c.in, make([]byte, 1<<16-len(c.in))...)
			}
			continue
		}
		if c.w-c.r < pgwire.HeaderLen+n {
			break
		}
		body := c.in[c.r+pgwire.HeaderLen : c.r+pgwire.HeaderLen+n]
		c.r += pgwire.HeaderLen + n
		if err := c.answer(typ, body); err != nil {
			return err
		}
	}
	c.w = copy(c.in, c.in[c.r:c.w])
	c.r = 0
	return c.flush()
}

func (c *stubConn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.conn.Write(c.out)
	c.out = c.out[:0]
	return err
}

func (c *stubConn) status() byte {
	if c.isBlock {
		return pgwire.TxInBlock
	}
	return pgwire.TxIdle
}

// answer appends the answer to one message.
func (c *stubConn) answer(typ byte, body []byte) error {
	switch typ {
	case pgwire.CliTerminate:
		return io.EOF
	case pgwire.CliParse:
		c.out = append(c.out, pgwire.SrvParseComplete, 0, 0, 0, 4)
	case pgwire.CliBind:
		c.out = append(c.out, pgwire.SrvBindComplete, 0, 0, 0, 4)
	case pgwire.CliClose:
		c.out = append(c.out, pgwire.SrvCloseComplete, 0, 0, 0, 4)
	case pgwire.CliDescribe:
		if len(body) > 0 && body[0] == 'S' {
			c.out = append(c.out, pgwire.SrvParameterDescription, 0, 0, 0, 6, 0, 0)
		}
		c.out = append(c.out, stubBytes.described...)
	case pgwire.CliExecute:
		c.out = append(c.out, stubBytes.row...)
	case pgwire.CliSync:
		c.out = pgwire.AppendReadyForQuery(c.out, c.status())
	case pgwire.CliCopyDone:
		c.out = pgwire.AppendReadyForQuery(pgwire.AppendCommandComplete(c.out, "COPY 1"),
			c.status())
	case pgwire.CliQuery:
		return c.query(body[:max(0, len(body)-1)])
	}
	return nil
}

// query answers a simple query by how it begins.
func (c *stubConn) query(sql []byte) error {
	has := func(s string) bool { return bytes.Contains(sql, []byte(s)) }
	switch {
	case has("generate_series(1,"):
		return c.stream(sql)
	case bytes.HasPrefix(sql, []byte("COPY")):
		c.out = pgwire.AppendMessage(c.out, pgwire.SrvCopyInResponse, []byte{0, 0, 1, 0, 0})
	case has("pg_postmaster_start_time"):
		c.out = append(c.out, stubBytes.check...)
	case has("pg_proc"), has("pg_roles"):
		// No functions and no roles. A proxy that does not learn what functions set would ask
		// behind each statement what it has set.
		c.out = pgwire.AppendCommandComplete(pgwire.AppendRowDescription(c.out, "oid"), "SELECT 0")
		c.out = pgwire.AppendReadyForQuery(c.out, c.status())
	case has("user_secret"):
		c.out = pgwire.AppendRowDescription(c.out, "user_secret")
		c.out = pgwire.AppendDataRow(c.out, []byte(c.stub.verifier))
		c.out = pgwire.AppendCommandComplete(c.out, "SELECT 1")
		c.out = pgwire.AppendReadyForQuery(c.out, c.status())
	case bytes.HasPrefix(sql, []byte("SELECT")) && !c.isBlock:
		c.out = append(c.out, stubBytes.rows...)
	case bytes.HasPrefix(sql, []byte("SELECT")):
		c.out = append(append(c.out, stubBytes.described...), stubBytes.row...)
		c.out = pgwire.AppendReadyForQuery(c.out, c.status())
	default:
		tag, _, _ := bytes.Cut(bytes.TrimRight(sql, ";"), []byte(" "))
		tag = bytes.ToUpper(tag)
		switch string(tag) {
		case "BEGIN":
			c.isBlock = true
		case "COMMIT", "END", "ROLLBACK":
			c.isBlock = false
		}
		c.out = pgwire.AppendCommandComplete(c.out, string(tag))
		c.out = pgwire.AppendReadyForQuery(c.out, c.status())
	}
	return nil
}

// stream sends as many rows as the statement's generate_series says, in blocks.
func (c *stubConn) stream(sql []byte) error {
	_, rest, _ := bytes.Cut(sql, []byte("generate_series(1,"))
	number, _, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(")"))
	rows, err := strconv.Atoi(string(number))
	if err != nil {
		return fmt.Errorf("stub: rows of a stream: %w", err)
	}
	block, tag := stubBytes.block, "SELECT "
	if bytes.HasPrefix(sql, []byte("COPY")) {
		block, tag = stubBytes.copyBlock, "COPY "
		c.out = pgwire.AppendMessage(c.out, pgwire.SrvCopyOutResponse, []byte{0, 0, 1, 0, 0})
	} else {
		c.out = append(c.out, stubBytes.described...)
	}
	if err := c.flush(); err != nil {
		return err
	}
	size := len(block) / stubBlockRows
	for left := rows; left > 0; {
		n := min(left, stubBlockRows)
		if _, err := c.conn.Write(block[:n*size]); err != nil {
			return err
		}
		left -= n
	}
	if bytes.HasPrefix(sql, []byte("COPY")) {
		c.out = pgwire.AppendMessage(c.out, pgwire.SrvCopyDone, nil)
	}
	c.out = pgwire.AppendCommandComplete(c.out, tag+strconv.Itoa(rows))
	c.out = pgwire.AppendReadyForQuery(c.out, c.status())
	return nil
}

// newStubCommand is what the benchmark starts its server with.
func newStubCommand() *cobra.Command {
	var addr string
	var isScram bool
	var iterations int
	cmd := &cobra.Command{
		Use: "stub", Short: "A server that answers without a database", Hidden: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runStub(cmd.Context(), cmd.OutOrStdout(), addr, isScram, iterations)
		},
	}
	cmd.Flags().StringVar(&addr, "listen", "127.0.0.1:0", "address")
	cmd.Flags().BoolVar(&isScram, "scram", false, "ask for a password")
	cmd.Flags().IntVar(&iterations, "iterations", stubIterations, "of the password's secret")
	return cmd
}

func runStub(ctx context.Context, out io.Writer, addr string, isScram bool, iter int) error {
	s, err := startStub(addr, isScram, iter)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, s.listener.Addr())
	<-ctx.Done()
	s.close()
	return nil
}
