package proxytest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// StartStandby makes a hot standby that streams from s; it is gone when the test ends.
func (s *Server) StartStandby(t testing.TB) *Server {
	t.Helper()
	n := &Server{t: t, bin: s.bin, Port: freePort(t), cred: s.cred}
	dir, err := os.MkdirTemp("/tmp", "hf-standby-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if s.cred != nil {
		if err := os.Chown(dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	n.dir = filepath.Join(dir, "data")
	t.Cleanup(n.Kill)
	n.run("pg_basebackup", "-D", n.dir, "-R", "-X", "stream", "-c", "fast", "-d", fmt.Sprintf(
		"host=127.0.0.1 port=%d user=postgres password='%s' sslmode=disable", s.Port, Password))
	n.setPort()
	n.Start()
	return n
}

// Follow waits until a standby has replayed what s has written by now.
func (s *Server) Follow(standby *Server) {
	s.t.Helper()
	lsn := s.Exec("SELECT pg_current_wal_lsn()")[0][0]
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		ok := standby.Exec("SELECT pg_last_wal_replay_lsn() >= '" + lsn + "'")[0][0]
		switch {
		case ok == "t":
			return
		case time.Now().After(deadline):
			s.t.Fatal("the standby did not follow")
		}
	}
}

// Promote makes a standby a primary.
func (s *Server) Promote() {
	s.t.Helper()
	s.run("pg_ctl", "-D", s.dir, "-w", "-t", "30", "promote")
}

// Rejoin starts a primary that was stopped, and all of whose WAL the standby that was promoted has,
// as a standby of that one.
func (s *Server) Rejoin(primary *Server) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = fmt.Fprintf(f, "primary_conninfo = 'host=127.0.0.1 port=%d user=postgres "+
		"password=''%s'' sslmode=disable'\n", primary.Port, Password)
	if err := errors.Join(err, f.Close()); err != nil {
		s.t.Fatal(err)
	}
	signal := filepath.Join(s.dir, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o644); err != nil {
		s.t.Fatal(err)
	}
	if s.cred != nil { // the server removes it when it is promoted
		if err := os.Chown(signal, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.Start()
}
