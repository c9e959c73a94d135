package proxy_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// The mode allow, as libpq's: without TLS where the server lets in without, with it where it does
// not; sessions, the look-up of their secrets, replication connections and cancel requests alike.
func TestServerTLSAllow(t *testing.T) {
	ca := proxytest.NewCA(t)
	cert, key := ca.Issue("server", "127.0.0.1")
	for _, c := range []struct{ kind, want string }{{"host", "f"}, {"hostssl", "t"}} {
		t.Run(c.kind, func(t *testing.T) {
			r := newRig(t, func(cfg *proxy.Config) { cfg.ServerTLS.Mode = proxy.SSLAllow })
			r.server.Exec("ALTER ROLE app REPLICATION")
			r.restartWithTLS(cert, key, ca.File(), "local all all trust\nhost all postgres all trust\n"+
				c.kind+" all,replication all all scram-sha-256\n")
			for _, dsn := range []string{r.dsn(""), r.dsn("") + " replication=database"} {
				conn, err := pgconn.Connect(context.Background(), dsn)
				if err != nil {
					t.Fatal(err)
				}
				defer closeConn(conn)
				if got := exec(t, conn, isEncrypted); got != c.want {
					t.Errorf("encrypted: %s, want %s", got, c.want)
				}
			}
			if conn, err := pgconn.Connect(context.Background(), r.dsn("")+" password=wrong"); err == nil {
				closeConn(conn)
				t.Error("a wrong password logs in")
			}
		})
	}
	t.Run("nowhere", func(t *testing.T) {
		r := newRig(t, func(cfg *proxy.Config) {
			cfg.ServerTLS.Mode = proxy.SSLAllow
			cfg.HBA = []string{"host all all all trust"}
			cfg.ServerUsersFile = writeSecret(t, "app:"+proxytest.Password+"\n")
		})
		r.topo.Set(nil)
		r.proxy.Cut(r.epoch)
		r.server.SetHBA("local all all trust\nhost all postgres all trust\n" +
			"hostssl all all all scram-sha-256\n")
		r.leadDirect()
		conn, err := pgconn.Connect(context.Background(), r.dsn(""))
		defer closeConn(conn)
		if got := code(err); got != "28000" {
			t.Errorf("got %v, want the server's 28000", err)
		}
	})
}
