package proxy

import (
	"bytes"
	"context"
	"net"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"holdfast/pgwire"
)

// typist is a client that answers with a password; it keeps the buffer that is read into.
type typist struct {
	talker
	into []byte
}

func (t *typist) Read(p []byte) (int, error) {
	if t.into == nil {
		t.into = p
	}
	return t.talker.Read(p)
}

// A password that a client has sent in clear is nowhere in the buffers of its login when that is
// over, right or wrong, of both kinds of secrets.
func TestPasswordsAreWiped(t *testing.T) {
	const password = "correct horse battery staple"
	scram, err := pgwire.BuildScramSecret(password, []byte("salt of a role"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Listen = []string{"127.0.0.1:0"}
	p, err := New(cfg, Deps{Topology: noTopology{}, Log: zap.NewNop(),
		Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	p.hba, err = parseHBA([]string{"host all all all password"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ stored, given string }{
		{scram, password}, {scram, password + "?"},
		{pgwire.MD5Secret("app", password), password},
		{pgwire.MD5Secret("app", password), password + "?"},
	} {
		p.tls.now.Store(&tlsSettings{secrets: map[string]string{"app": c.stored}})
		client := &typist{talker: talker{left: pgwire.AppendPassword(nil, append([]byte(c.given), 0))}}
		d := newDoor(p, nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		d.conn, d.r = client, pgwire.NewReader(client, loginMessageMax)
		_, err := d.authenticate(context.Background(), login{user: "app", database: "app"})
		if (err == nil) != (c.given == password) {
			t.Errorf("login: %v", err)
		}
		if len(client.into) == 0 || bytes.Contains(client.into, []byte(password)) {
			t.Errorf("the password is left in %d bytes", len(client.into))
		}
	}
}
