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
	n.CloneOf(s)
	return n
}

// CloneOf makes a server that is down, and whatever it has, a standby of a primary.
func (s *Server) CloneOf(primary *Server) {
	s.t.Helper()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Fatal(err)
	}
	s.run("pg_basebackup", "-D", s.dir, "-R", "-X", "stream", "-c", "fast", "-d", fmt.Sprintf(
		"host=127.0.0.1 port=%d user=postgres password='%s' sslmode=disable", primary.Port, Password))
	s.setPort()
	s.Start()
}

// KillAll ends all processes of the server with SIGKILL, the postmaster first, so that none of them
// does anything more.
func (s *Server) KillAll() {
	pid := s.Pid()
	if pid == 0 {
		return
	}
	for _, id := range append([]int{pid}, s.processes()...) {
		if p, err := os.FindProcess(id); err == nil {
			_ = p.Kill()
		}
	}
	s.Kill() // waits for them, and clears up
}

// Replicate lets commits wait for the standby that streams from s.
func (s *Server) Replicate() {
	s.t.Helper()
	s.Exec("ALTER SYSTEM SET synchronous_standby_names = '*'")
	s.Exec("SELECT pg_reload_conf()")
	const isSync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
	for deadline := time.Now().Add(20 * time.Second); s.Exec(isSync)[0][0] != "1"; {
		if time.Now().After(deadline) {
			s.t.Fatal("no standby streams")
		}
		time.Sleep(5 * time.Millisecond)
	}
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
