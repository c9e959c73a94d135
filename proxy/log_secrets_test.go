package proxy_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"holdfast/proxy"
	"holdfast/proxy/proxytest"
)

// The passwords of TestSecretsAreNotLogged; all have the word, and nothing else has.
const (
	rightPassword = "Geheimnis right"
	wrongPassword = "Geheimnis wrong"
	usersPassword = "Geheimnis of the users file"
	queryText     = "Geheimnis in a query"
)

// logRig is a rig whose proxy logs to what is returned, at the level debug.
func logRig(t *testing.T, users string) (*rig, *observer.ObservedLogs) {
	t.Helper()
	r := newRig(t, nil)
	core, logs := observer.New(zapcore.DebugLevel)
	cfg := proxy.DefaultConfig()
	cfg.Listen, cfg.LookupPassword = []string{"127.0.0.1:0"}, proxytest.Password
	cfg.ShutdownTimeout, cfg.HoldTimeout = time.Second, 20*time.Second
	cfg.ServerUsersFile = users
	cfg.HBA = []string{"host app md5role all md5", "host app clear,clearmd5 all password",
		"host app trusted all trust", "host app nobody all reject", "host all all all scram-sha-256"}
	r.metrics = prometheus.NewRegistry()
	p, err := proxy.New(cfg, proxy.Deps{Topology: r.topo, Log: zap.New(core),
		Registerer: r.metrics})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	r.proxy = p
	return r, logs
}

// text is all that was logged, as a file would have it.
func text(t *testing.T, logs *observer.ObservedLogs) string {
	t.Helper()
	var b strings.Builder
	enc := zapcore.NewJSONEncoder(zap.NewDevelopmentEncoderConfig())
	for _, e := range logs.All() {
		line, err := enc.EncodeEntry(e.Entry, e.Context)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(line.String())
	}
	return b.String()
}

// The log has no password, nothing of what is stored of one, and no text of a statement, even at
// the level debug: through logins of every method, right and wrong ones, a bad users file, errors
// of the server at a login and in a session, and a change of primary with statements in flight.
func TestSecretsAreNotLogged(t *testing.T) {
	users := writeSecret(t, "trusted:"+usersPassword+"\n")
	r, logs := logRig(t, users)
	r.server.SetHBA("local all all trust\nhost all md5role,clearmd5 all md5\n" +
		"host all all all scram-sha-256\n")
	for _, role := range []string{"scrammed", "clear", "trusted", "nobody"} {
		r.server.Exec("CREATE ROLE " + role + " LOGIN PASSWORD '" + rightPassword + "'")
	}
	r.server.Exec("SET password_encryption = md5; CREATE ROLE md5role LOGIN PASSWORD '" +
		rightPassword + "'; CREATE ROLE clearmd5 LOGIN PASSWORD '" + rightPassword + "'")
	for _, role := range []string{"scrammed", "md5role", "clear", "clearmd5", "trusted", "nobody",
		"absent"} {
		for _, password := range []string{rightPassword, wrongPassword} {
			conn, err := dial(context.Background(), r.as(role, password))
			right := password == rightPassword && role != "trusted" && role != "nobody" &&
				role != "absent" // what the file has for trusted is wrong at the server
			if (err == nil) != right {
				t.Errorf("%s, %q: %v", role, password, err)
			}
			closeConn(conn)
		}
	}
	if err := os.WriteFile(users, []byte("trusted "+usersPassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.proxy.Reload(); err == nil || strings.Contains(err.Error(), "Geheimnis") {
		t.Errorf("a bad users file: %v", err)
	}
	sessionErrors(t, r)
	stored := []string{"Geheimnis", proxytest.Password}
	for _, row := range r.server.Exec("SELECT rolpassword FROM pg_authid WHERE rolpassword <> ''") {
		stored = append(stored, row[0])
		// SCRAM-SHA-256$4096:salt$StoredKey:ServerKey
		parts := strings.Split(strings.ReplaceAll(row[0], ":", "$"), "$")
		if len(parts) > 3 {
			stored = append(stored, parts[2:]...)
		} else {
			stored = append(stored, strings.TrimPrefix(row[0], "md5"))
		}
	}
	if len(stored) < 20 {
		t.Errorf("%d secrets to look for", len(stored))
	}
	said := text(t, logs)
	for _, secret := range stored {
		if i := strings.Index(said, secret); i >= 0 {
			t.Errorf("the log has %q: %s", secret,
				said[max(0, i-300):min(len(said), i+300)])
		}
	}
	// There is something to search.
	for _, want := range []string{"authentication failed", "cannot be used", "session ended"} {
		if !strings.Contains(said, want) {
			t.Errorf("the log has no %q:\n%s", want, said)
		}
	}
}

// sessionErrors has sessions with the text of queries, in all the ways in which a log could get it.
func sessionErrors(t *testing.T, r *rig) {
	t.Helper()
	c := r.connect("")
	exec(t, c, "CREATE TABLE t (a text UNIQUE)")
	exec(t, c, "INSERT INTO t VALUES ('"+queryText+"')")
	exec(t, c, "SET app.word = '"+queryText+"'")
	for _, sql := range []string{"SELECT '" + queryText + "'::int", "SELECT " + queryText,
		"INSERT INTO t VALUES ('" + queryText + "')",
		"ALTER ROLE app SET app.other = '" + queryText + "'"} {
		_, _ = tryExec(c, sql)
	}
	exec(t, c, "BEGIN")
	exec(t, c, "SELECT '"+queryText+"' FROM t")
	lost := r.connect("")
	done := start(lost, "SELECT pg_sleep(1), '"+queryText+"'")
	r.eventually(func() bool { return r.sleepers() == "1" }, "it runs")
	r.change()
	if err := <-done; err != nil { // it only reads, and is run again
		t.Error(err)
	}
	exec(t, c, "COMMIT")
	w := hijack(t, r.connect(""))
	w.send([]byte("Q\x00\x00\x00\x1e" + queryText + "SELECT"))
	lastWords(t, w.c)
	w = hijack(t, r.connect(""))
	w.send([]byte("\x00" + queryText))
	lastWords(t, w.c)
}
