// The race detector's own memory, some KB for each object, is not what is measured here.
//go:build !race

package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"net"
	"os"
	osexec "os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// idleSessions is how many sessions TestIdleTLSSessions has.
const idleSessions = 1000

// idleBytesMax is what a session that waits may cost with TLS to its client.
const idleBytesMax = 14 << 10

// staticSecrets is one password for all.
type staticSecrets string

func (s staticSecrets) UserSecret(context.Context, string) (string, bool, error) {
	return string(s), true, nil
}

// TestIdleTLSSessions measures the memory of a session that waits. Clients and servers are in a
// process of their own, this test's again, so that this one has nothing but the proxy.
func TestIdleTLSSessions(t *testing.T) {
	ca := proxytest.NewCA(t)
	cert, key := ca.Issue("server", "localhost")
	child := osexec.Command(os.Args[0], "-test.run=^TestIdlePeers$")
	child.Env = append(os.Environ(), "HOLDFAST_TEST_IDLE_PEERS=yes")
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = child.Wait() }()
	out := bufio.NewReader(pipe)
	server := readLine(t, out)

	secret, err := pgwire.BuildScramSecret("idle", []byte("0123456789abcdef"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	topo := proxytest.NewTopology()
	topo.Set(&proxy.Primary{Name: "pg", Addr: server, Epoch: 1, Incarnation: "1",
		Lease: proxytest.NewLease(time.Hour)})
	cfg := proxy.DefaultConfig()
	cfg.Listen = []string{"127.0.0.1:0"}
	cfg.KeepAlive = time.Second // as often as this, what crypto/tls keeps is given back
	cfg.TLS.Mode, cfg.TLS.CertFile, cfg.TLS.KeyFile = proxy.TLSRequire, cert, key
	p, err := proxy.New(cfg, proxy.Deps{Topology: topo, Secrets: staticSecrets(secret),
		Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	wave := func() int {
		if _, err := fmt.Fprintf(in, "%s\n", p.Addrs()[0]); err != nil {
			t.Fatal(err)
		}
		if line := readLine(t, out); line != "ready" {
			t.Fatal(line)
		}
		least := math.MaxInt
		for until := time.Now().Add(4 * cfg.KeepAlive); time.Now().Before(until); {
			time.Sleep(100 * time.Millisecond)
			debug.FreeOSMemory() // as Proxy.trim does after a wave of logins
			least = min(least, residentBytes(t))
		}
		return least
	}
	first := wave() // with all that is made once
	each := (wave() - first) / idleSessions
	t.Logf("%d bytes for each of %d idle sessions with TLS", each, idleSessions)
	if each > idleBytesMax {
		t.Errorf("an idle session takes %d bytes, at most %d are allowed", each, idleBytesMax)
	}
}

func readLine(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func residentBytes(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// TestIdlePeers is the other process of TestIdleTLSSessions: a server that knows the answers to a
// login, and as many clients as it is told to connect.
func TestIdlePeers(t *testing.T) {
	if os.Getenv("HOLDFAST_TEST_IDLE_PEERS") == "" {
		t.Skip("part of TestIdleTLSSessions")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveIdle(c)
		}
	}()
	fmt.Println(l.Addr())
	var keep []*pgconn.PgConn
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		host, port, _ := net.SplitHostPort(lines.Text())
		for range idleSessions {
			c, err := dial(context.Background(), fmt.Sprintf("host=%s port=%s "+
				"user=app dbname=app password=idle sslmode=require", host, port))
			if err != nil {
				fmt.Println(err)
				return
			}
			sql := "SELECT 1 --" + strings.Repeat("x", 20<<10) // in the largest records there are
			if _, err := c.Exec(context.Background(), sql).ReadAll(); err != nil {
				fmt.Println(err)
				return
			}
			keep = append(keep, c)
		}
		fmt.Println("ready")
	}
	for _, c := range keep {
		_ = c.Conn().Close()
	}
}

// serveIdle is a server that knows the proxy's check and has no rows for anything else.
func serveIdle(c net.Conn) {
	defer c.Close()
	r := pgwire.NewReader(c, 1<<20)
	if _, err := pgwire.ReadStartup(r); err != nil {
		return
	}
	out := pgwire.AppendAuthOK(nil)
	for name, value := range map[string]string{"server_version": "15.0",
		"client_encoding": "UTF8", "standard_conforming_strings": "on"} {
		out = pgwire.AppendParameterStatus(out, name, value)
	}
	out = pgwire.AppendBackendKeyData(out, 1, []byte("1234"))
	out = pgwire.AppendReadyForQuery(out, pgwire.TxIdle)
	for {
		if _, err := c.Write(out); err != nil {
			return
		}
		typ, body, err := r.ReadMessage()
		if err != nil {
			return
		}
		out = nil
		if typ != pgwire.CliQuery {
			continue
		}
		if strings.Contains(string(body), "pg_postmaster_start_time") {
			out = pgwire.AppendRowDescription(out, "a", "b", "c")
			out = pgwire.AppendDataRow(out, []byte("1"), []byte("f"), []byte("2"), []byte("none"))
		}
		out = pgwire.AppendCommandComplete(out, "SELECT 1")
		out = pgwire.AppendReadyForQuery(out, pgwire.TxIdle)
	}
}
