package proxy_test

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// liar is a server that logs everybody in, and answers a Query that names one of its lies with it.
type liar struct {
	t    testing.TB
	l    net.Listener
	lies map[string]func(c net.Conn)
	// logins are what it says in the place of a login, and checks in that of its incarnation, by
	// the database; then nothing.
	logins, checks map[string][]byte
	// secret is what it says that a role's is.
	secret string
	// play may take over a session in the database fuzz, once its login is over; it does if true.
	play func(c net.Conn, r *pgwire.Reader) bool
	work sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	fuzz  []net.Conn // of the database fuzz
}

// endFuzz ends the connections of the database fuzz.
func (s *liar) endFuzz() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.fuzz {
		_ = c.Close()
	}
	s.fuzz = nil
}

func (s *liar) noteFuzz(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fuzz = append(s.fuzz, c)
}

func newLiar(t testing.TB) *liar {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &liar{t: t, l: l, lies: make(map[string]func(net.Conn))}
	s.work.Add(1)
	go s.runAccept()
	t.Cleanup(func() {
		_ = l.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			_ = c.Close()
		}
		s.mu.Unlock()
		s.work.Wait()
	})
	return s
}

func (s *liar) runAccept() {
	defer s.work.Done()
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
		s.work.Add(1)
		go s.run(c)
	}
}

const liarStarted = "17"

// run serves a connection until it ends.
func (s *liar) run(c net.Conn) {
	defer s.work.Done()
	defer c.Close()
	r := pgwire.NewReader(c, 1<<20)
	st, err := pgwire.ReadStartup(r)
	if err != nil || st.Kind != pgwire.StartupNormal {
		return
	}
	database, _ := st.Get("database")
	if database == "fuzz" {
		s.noteFuzz(c)
	}
	if said, ok := s.logins[database]; ok {
		_, _ = c.Write(said)
		_, _ = c.Read(make([]byte, 1)) // to the end
		return
	}
	out := pgwire.AppendAuthOK(nil)
	out = pgwire.AppendParameterStatus(out, "client_encoding", "UTF8")
	out = pgwire.AppendParameterStatus(out, "standard_conforming_strings", "on")
	out = pgwire.AppendBackendKeyData(out, 1, []byte{1, 2, 3, 4})
	out = pgwire.AppendReadyForQuery(out, 'I')
	for {
		if _, err := c.Write(out); err != nil {
			return
		}
		typ, body, err := r.ReadMessage()
		if err != nil || typ == pgwire.CliTerminate {
			return
		}
		out = nil
		sql := string(bytes.TrimRight(body, "\x00"))
		lie, isLie := s.lies[sql]
		check, isCheck := s.checks[database]
		switch {
		case isCheck && typ == pgwire.CliQuery:
			out = check
			continue
		case typ == pgwire.CliSync: // the proxy asks for the state of the session
			out = append(out, "3\x00\x00\x00\x041\x00\x00\x00\x042\x00\x00\x00\x04"...)
			out = append(pgwire.AppendCommandComplete(out, "SELECT 0"), "3\x00\x00\x00\x04"...)
			out = pgwire.AppendReadyForQuery(out, 'I')
			continue
		case typ != pgwire.CliQuery:
			continue
		case isLie:
			lie(c)
			continue
		case strings.Contains(sql, "pg_postmaster_start_time"):
			out = pgwire.AppendDataRow(out, []byte(liarStarted), []byte("f"),
				[]byte("1767225600000000"), []byte("none"))
		case strings.Contains(sql, "user_secret"):
			out = pgwire.AppendDataRow(out, []byte(s.secret))
		case strings.Contains(sql, "end_backend"):
			out = pgwire.AppendDataRow(out, []byte("t"))
		case strings.HasPrefix(sql, "SELECT "):
			out = pgwire.AppendRowDescription(out, "a")
			out = pgwire.AppendDataRow(out, []byte(sql[len("SELECT "):]))
		}
		out = pgwire.AppendCommandComplete(out, "SELECT 1")
		out = pgwire.AppendReadyForQuery(out, 'I')
		if database == "fuzz" && s.play != nil {
			if _, err := c.Write(out); err != nil || s.play(c, r) {
				return
			}
			out = nil
		}
	}
}

// liarRig is a proxy before a liar, by these rules; without any it trusts everybody.
func liarRig(t *testing.T, rules ...string) (*rig, *liar) {
	t.Helper()
	return liarRigWith(t, func(c *proxy.Config) {
		if len(rules) > 0 {
			c.HBA = rules
		}
	})
}

func liarRigWith(t *testing.T, change func(*proxy.Config)) (*rig, *liar) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	r := &rig{t: t, topo: proxytest.NewTopology(), metrics: prometheus.NewRegistry()}
	s := newLiar(t)
	cfg := proxy.DefaultConfig()
	cfg.Listen = []string{"127.0.0.1:0"}
	cfg.HBA = []string{"host all all all trust"}
	cfg.LookupPassword = proxytest.Password
	cfg.ServerUsersFile = writeSecret(t, "app:"+proxytest.Password+"\n")
	cfg.HoldTimeout, cfg.ShutdownTimeout = 5*time.Second, time.Second
	cfg.DialTimeout = 2 * time.Second
	change(&cfg)
	r.start(cfg)
	r.topo.Set(&proxy.Primary{
		Name: "liar", Addr: s.l.Addr().String(), Epoch: 1, Incarnation: liarStarted,
		Lease: proxytest.NewLease(time.Hour), Boundaries: []proxy.Boundary{{Epoch: 1}},
	})
	return r, s
}

// A server that says what no server may say costs the session that hears it no more than an error
// that tells the truth, and the others nothing.
func TestLyingServer(t *testing.T) {
	r, s := liarRig(t)
	row := pgwire.AppendDataRow(pgwire.AppendRowDescription(nil, "a"), []byte("x"))
	ready := pgwire.AppendReadyForQuery(pgwire.AppendCommandComplete(nil, "SELECT 1"), 'I')
	fatal := pgwire.AppendError(nil, &pgwire.Error{Severity: "FATAL", Code: "57P05", Message: "x"})
	said := map[string][]byte{
		"a type that is none":       {1, 0, 0, 0, 4},
		"a type of a client":        pgwire.AppendQuery(nil, "SELECT 1"),
		"length 0":                  {'D', 0, 0, 0, 0},
		"length 3":                  {'D', 0, 0, 0, 3},
		"length 0xffffffff":         {'D', 255, 255, 255, 255},
		"negative length":           {'C', 128, 0, 0, 0},
		"ParseComplete":             {'1', 0, 0, 0, 4},
		"a login":                   pgwire.AppendAuthOK(nil),
		"a status that is none":     pgwire.AppendReadyForQuery(nil, 'X'),
		"a status without a body":   {'Z', 0, 0, 0, 4},
		"an error without an end":   append([]byte("E\x00\x00\x00\x0aMno en"), ready...),
		"an error without a code":   append([]byte("E\x00\x00\x00\x05\x00"), ready...),
		"FATAL behind half a row":   append(row[:len(row)-1:len(row)-1], fatal...),
		"FATAL behind a row":        append(row[:len(row):len(row)], fatal...),
		"a row in a tag":            append([]byte("C\x00\x00\x00\x05x"), ready...),
		"a rollback of nothing":     append(pgwire.AppendCommandComplete(nil, "ROLLBACK"), ready...),
		"a block that nobody began": pgwire.AppendReadyForQuery(nil, 'E'),
	}
	for name, p := range said {
		s.lies[name] = func(c net.Conn) {
			_, _ = c.Write(p)
			if name == "FATAL behind a row" || name == "FATAL behind half a row" {
				_ = c.Close()
			}
		}
	}
	s.lies["ready out of nowhere"] = func(c net.Conn) {
		_, _ = c.Write(append(ready[:len(ready):len(ready)], pgwire.AppendReadyForQuery(nil, 'I')...))
	}
	s.lies["rows out of nowhere"] = func(c net.Conn) {
		_, _ = c.Write(append(ready[:len(ready):len(ready)], row...))
	}
	s.lies["parameters without an end"] = func(c net.Conn) {
		for i := 0; ; i++ {
			_, err := c.Write(pgwire.AppendParameterStatus(nil, fmt.Sprint("p", i), "x"))
			if err != nil {
				return
			}
		}
	}
	// What is well framed, and not what the proxy itself has to understand, is the client's.
	passed := map[string]string{
		"a row in a tag": "conn closed", "an error without an end": "conn closed",
		"an error without a code": "", "a rollback of nothing": "<nil>",
		"a block that nobody began": "<nil>",
		"ready out of nowhere":      "<nil>", "rows out of nowhere": "<nil>",
	}
	other := r.connect("")
	for name := range s.lies {
		t.Run(name, func(t *testing.T) {
			_, err := tryExec(r.connect(""), name)
			want, ok := passed[name]
			if !ok {
				want = "08007" // it was sent, and nothing that can be believed came back
			}
			if got := code(err); got != want {
				t.Errorf("the client is told %s, want %s", got, want)
			}
			for _, c := range []*pgconn.PgConn{other, r.connect("")} {
				if v := exec(t, c, "SELECT 7"); v != "7" {
					t.Errorf("another session: %q", v)
				}
			}
		})
	}
}

// Floods and messages without an end go through, if the client takes them, and take no memory.
func TestServerFloods(t *testing.T) {
	r, s := liarRig(t)
	other := r.connect("")
	const total = 128 << 20
	part, into := make([]byte, 64<<10), make([]byte, 64<<10)
	notice := pgwire.AppendNotice(nil, &pgwire.Error{Severity: "NOTICE", Code: "00000",
		Message: strings.Repeat("n", 1000)})
	s.lies["an endless row"] = func(c net.Conn) {
		_, _ = c.Write([]byte{'D', 0x7f, 255, 255, 255})
		for range total / len(part) {
			if _, err := c.Write(part); err != nil {
				return
			}
		}
	}
	s.lies["notices"] = func(c net.Conn) {
		for range total / len(notice) {
			if _, err := c.Write(notice); err != nil {
				return
			}
		}
	}
	s.lies["one parameter"] = func(c net.Conn) {
		p := pgwire.AppendParameterStatus(nil, "application_name", strings.Repeat("a", 1000))
		for range total / len(p) {
			if _, err := c.Write(p); err != nil {
				return
			}
		}
	}
	for name := range s.lies {
		t.Run(name, func(t *testing.T) {
			w := hijack(t, r.connect(""))
			before := heap()
			w.send(pgwire.AppendQuery(nil, name))
			_ = w.c.SetReadDeadline(time.Now().Add(30 * time.Second))
			n := 0
			for n < total/2 {
				m, err := w.from.Read(into)
				if err != nil {
					t.Fatalf("after %d bytes: %v", n, err)
				}
				n += m
			}
			if grown := int64(heap()) - int64(before); grown > 8<<20 {
				t.Errorf("memory grew by %d KB", grown>>10)
			}
			_ = w.c.Close() // in the middle
			if v := exec(t, other, "SELECT 7"); v != "7" {
				t.Errorf("another session: %q", v)
			}
		})
	}
	r.eventually(func() bool { n, _ := r.proxy.Stats(); return n == 1 }, "the sessions end")
}
