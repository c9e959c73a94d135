package proxy_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/pgwire"
	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// shown is what a proxy shows of a user's secret to anybody: the salt and the iteration count.
func shown(t *testing.T, p *proxy.Proxy, user string) string {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	reader := pgwire.NewReader(conn, 1<<16)
	_, first, err := pgwire.NewScramClient(pgwire.Credentials{Password: "guess"})
	if err != nil {
		t.Fatal(err)
	}
	initial := append([]byte("SCRAM-SHA-256\x00"), 0, 0, 0, byte(len(first)))
	var body []byte
	for _, msg := range [][]byte{
		pgwire.AppendStartup(nil, pgwire.Protocol3, []pgwire.Param{{Name: "user", Value: user}}),
		pgwire.AppendPassword(nil, append(initial, first...)),
	} {
		if _, err := conn.Write(msg); err != nil {
			t.Fatal(err)
		}
		var typ byte
		if typ, body, err = reader.ReadMessage(); err != nil || typ != pgwire.SrvAuth {
			t.Fatalf("%s: message %q, %v", user, typ, err)
		}
	}
	_, salt, ok := strings.Cut(string(body[4:]), ",")
	if !ok {
		t.Fatalf("%s: challenge %q", user, body)
	}
	return salt
}

// What is shown for a name of no role is the same at each node and after a restart, as it is for a
// role: a salt that changes would tell who exists. Without a shared secret nobody can foretell it.
func TestUnknownUsersLookTheSameAtEveryNode(t *testing.T) {
	r := newRig(t, nil)
	nodes := []*proxy.Proxy{r.proxy}
	for _, password := range []string{proxytest.Password, ""} {
		cfg := proxy.DefaultConfig()
		cfg.Listen, cfg.LookupPassword = []string{"127.0.0.1:0"}, password
		cfg.ShutdownTimeout = time.Second
		r.metrics = prometheus.NewRegistry()
		r.start(cfg)
		nodes = append(nodes, r.proxy)
	}
	for _, user := range []string{"app", "nobody"} {
		want := shown(t, nodes[0], user)
		// Now that the name is known it is answered on the loop.
		if got := shown(t, nodes[0], user); got != want {
			t.Errorf("%s: %s, then %s", user, want, got)
		}
		if got := shown(t, nodes[1], user); got != want {
			t.Errorf("%s: %s at one node, %s at the other", user, want, got)
		}
	}
	// The server trusts local connections for this, so that the proxy may ask without a password.
	r.server.SetHBA("local all all trust\nhost all all all trust\n")
	if shown(t, nodes[2], "app") != shown(t, nodes[0], "app") {
		t.Error("the salt of a role is not that of its secret")
	}
	if shown(t, nodes[2], "nobody") == shown(t, nodes[0], "nobody") {
		t.Error("the salt is no secret of the group")
	}
}
