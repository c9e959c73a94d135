package main

import (
	"bytes"
	"net"
	"testing"
	"time"

	"holdfast/pgwire"
)

// stubFor starts a stub that asks for a password whose check is cheap.
func stubFor(t *testing.T) string {
	t.Helper()
	s, err := startStub("127.0.0.1:0", true, 16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s.listener.Addr().String()
}

func TestStubChecksPasswords(t *testing.T) {
	addr := stubFor(t)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = pgwire.Login(conn, pgwire.NewReader(conn, 1<<16),
		[]pgwire.Param{{Name: "user", Value: benchUser}}, pgwire.Credentials{Password: "wrong"})
	if err == nil {
		t.Error("a wrong password was taken")
	}
}

// TestStubAnswers sends every script in pieces of each size: what arrives how must not matter.
func TestStubAnswers(t *testing.T) {
	conn, r, err := dial(t.Context(), stubFor(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	for _, s := range []script{preparedSelect, simpleSelect, extendedSelect} {
		if s.setup != nil {
			if _, err := exchange(conn, r, s.setup); err != nil {
				t.Fatal(err)
			}
		}
		want, err := exchange(conn, r, s.request)
		if err != nil || want < 30 {
			t.Fatalf("%s: %d bytes, %v", s.name, want, err)
		}
		for cut := 1; cut < len(s.request); cut += 3 {
			if _, err := conn.Write(s.request[:cut]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Microsecond) // so that the pieces arrive one by one, mostly
			if got, err := exchange(conn, r, s.request[cut:]); err != nil || got != want {
				t.Fatalf("%s cut at %d: %d bytes, %v; want %d", s.name, cut, got, err, want)
			}
		}
	}
}

func TestStubStreams(t *testing.T) {
	conn, r, err := dial(t.Context(), stubFor(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	for _, sql := range []string{"SELECT repeat('x', 100) FROM generate_series(1,%)",
		"COPY (SELECT 1 FROM generate_series(1,%)) TO STDOUT"} {
		one, err := exchange(conn, r, pgwire.AppendQuery(nil, string(bytes.ReplaceAll(
			[]byte(sql), []byte("%"), []byte("1000")))))
		if err != nil || one < 1000*stubRowBytes {
			t.Fatalf("%s: %d bytes, %v", sql, one, err)
		}
	}
	w := &copyIn{conn, r}
	if n, err := w.one(); err != nil || n < 9e6 {
		t.Errorf("copy in: %d bytes, %v", n, err)
	}
	if _, err := exchange(conn, r, simpleSelect.request); err != nil {
		t.Errorf("after COPY: %v", err)
	}
}

// TestStubKnowsTransactions: a proxy asks for the status of each ReadyForQuery.
func TestStubKnowsTransactions(t *testing.T) {
	conn, r, err := dial(t.Context(), stubFor(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	for _, tt := range []struct {
		sql  string
		want byte
	}{
		{"BEGIN", pgwire.TxInBlock}, {"SELECT 1", pgwire.TxInBlock}, {"COMMIT", pgwire.TxIdle},
		{"SELECT 1", pgwire.TxIdle}, {"begin;", pgwire.TxInBlock}, {"end", pgwire.TxIdle},
	} {
		if _, err := conn.Write(pgwire.AppendQuery(nil, tt.sql)); err != nil {
			t.Fatal(err)
		}
		for {
			typ, body, err := r.ReadMessage()
			if err != nil {
				t.Fatal(err)
			}
			if typ != pgwire.SrvReadyForQuery {
				continue
			}
			if body[0] != tt.want {
				t.Errorf("%s: status %c, want %c", tt.sql, body[0], tt.want)
			}
			break
		}
	}
}
