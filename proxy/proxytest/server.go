package proxytest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// Password is that of every role of a Server.
const Password = "secret of the test"

// Server is a real PostgreSQL server in a directory of its own, with the look-up functions that
// the agent makes. The test owns it.
type Server struct {
	t    testing.TB
	bin  string
	dir  string
	Port int
	cred *syscall.Credential
}

// BinDir finds the newest PostgreSQL, or skips the test; where PostgreSQL is required it fails.
func BinDir(t testing.TB) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		msg := "PostgreSQL is not installed (package postgresql)"
		if os.Getenv("HOLDFAST_REQUIRE_POSTGRES") != "" || os.Getenv("CI") != "" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	sort.Strings(found)
	return filepath.Dir(found[len(found)-1])
}

// StartServer makes and starts a server; it is gone when the test ends.
func StartServer(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, bin: BinDir(t), Port: freePort(t)}
	dir, err := os.MkdirTemp("/tmp", "hf-proxy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatalf("running as root needs the user postgres: %v", err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	s.dir = filepath.Join(dir, "data")
	pw := filepath.Join(dir, "pw")
	if err := os.WriteFile(pw, []byte(Password), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	if made := template.path(); made != "" {
		s.run("cp", "-a", made, s.dir)
		s.setPort()
		s.Start()
		return s
	}
	s.run("initdb", "-D", s.dir, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", pw, "-N")
	// Where a row of a scan without ORDER BY comes is a matter of what autovacuum has freed before,
	// and conversations are compared to the byte.
	conf := "\nautovacuum=off\nlisten_addresses='127.0.0.1'\ninclude='port.conf'\nfsync=off\n" +
		"unix_socket_directories=''\nrestart_after_crash=off\nmax_prepared_transactions=5\n" +
		"log_min_messages=fatal\ndynamic_shared_memory_type=mmap\n"
	f, err := os.OpenFile(filepath.Join(s.dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(conf); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	s.setPort()
	s.Start()
	s.setup()
	s.Stop("fast")
	template.keep(s)
	s.Start()
	return s
}

// setPort writes the file that says where the server listens.
func (s *Server) setPort() {
	s.t.Helper()
	text := fmt.Sprintf("port=%d\n", s.Port)
	if err := os.WriteFile(filepath.Join(s.dir, "port.conf"), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// template is a stopped server with all that StartServer makes, copied for each further one: a
// copy takes a tenth of the time.
var template templateDir

type templateDir struct {
	mu  sync.Mutex
	dir string
}

func (d *templateDir) path() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dir
}

// keep copies a stopped server; without a copy the next one is made anew.
func (d *templateDir) keep(s *Server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, err := os.MkdirTemp("/tmp", "hf-template-")
	if err != nil {
		s.t.Fatal(err)
	}
	if s.cred != nil {
		if err := os.Chown(dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.run("cp", "-a", s.dir, filepath.Join(dir, "data"))
	d.dir = filepath.Join(dir, "data")
}

// RemoveTemplate removes what StartServer keeps for the next one; TestMain calls it at the end.
func RemoveTemplate() {
	template.mu.Lock()
	defer template.mu.Unlock()
	if template.dir != "" {
		_ = os.RemoveAll(filepath.Dir(template.dir))
		template.dir = ""
	}
}

// freePort is a port on which nobody listens, below those that connections come from (Linux:
// 32768): one of these may be taken before a server listens on it.
func freePort(t testing.TB) int {
	var err error
	for range 100 {
		port := 20000 + rand.IntN(12000)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal(err)
	return 0
}

func (s *Server) run(tool string, args ...string) {
	s.t.Helper()
	path := filepath.Join(s.bin, tool)
	if tool == "cp" {
		path = tool
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setsid: true}
	out, err := os.CreateTemp("", "hf-out-")
	if err != nil {
		s.t.Fatal(err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		s.t.Fatalf("%s: %v\n%s", tool, err, text)
	}
}

// Start starts the server and waits until it takes connections.
func (s *Server) Start() {
	s.t.Helper()
	s.run("pg_ctl", "-D", s.dir, "-w", "-t", "30", "-l", "/dev/null", "start")
}

// Stop stops it in that mode.
func (s *Server) Stop(mode string) {
	s.t.Helper()
	s.run("pg_ctl", "-D", s.dir, "-w", "-t", "30", "-m", mode, "stop")
}

// Pid is the postmaster's, 0 if there is none.
func (s *Server) Pid() int {
	b, err := os.ReadFile(filepath.Join(s.dir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, _ := strconv.Atoi(first)
	return pid
}

// Kill ends the postmaster with SIGKILL and waits until its children are gone too.
func (s *Server) Kill() {
	pid := s.Pid()
	if pid == 0 {
		return
	}
	if p, err := os.FindProcess(pid); err == nil {
		_ = p.Kill()
	}
	for i := 0; i < 500; i++ {
		left := s.processes()
		if len(left) == 0 {
			break
		}
		if i > 20 {
			for _, p := range left {
				if child, err := os.FindProcess(p); err == nil {
					_ = child.Signal(syscall.SIGQUIT)
				}
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	pidFile := filepath.Join(s.dir, "postmaster.pid")
	freeMemory(pidFile)
	_ = os.Remove(pidFile)
}

// processes are those that work in the data directory.
func (s *Server) processes() []int {
	var out []int
	dirs, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, d := range dirs {
		if to, err := os.Readlink(d); err == nil && to == s.dir {
			pid, _ := strconv.Atoi(strings.Split(d, "/")[2])
			out = append(out, pid)
		}
	}
	return out
}

// freeMemory frees the System V segment that a killed server has left: its key and id are the
// seventh line of postmaster.pid (miscadmin.h).
func freeMemory(pidFile string) {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) < 7 {
		return
	}
	if f := strings.Fields(lines[6]); len(f) == 2 {
		if id, err := strconv.Atoi(f[1]); err == nil {
			_, _ = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		}
	}
}

// SetHBA replaces the rules about who may connect and how.
func (s *Server) SetHBA(rules string) {
	s.t.Helper()
	err := os.WriteFile(filepath.Join(s.dir, "pg_hba.conf"), []byte(rules), 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	const loaded = "SELECT pg_conf_load_time()"
	before := s.Exec(loaded)[0][0]
	s.run("pg_ctl", "-D", s.dir, "reload")
	for deadline := time.Now().Add(10 * time.Second); s.Exec(loaded)[0][0] == before; {
		if time.Now().After(deadline) {
			s.t.Fatal("the rules were not read")
		}
	}
}

// Exec runs statements as superuser on a connection of its own and returns the last result.
func (s *Server) Exec(sql string) [][]string {
	s.t.Helper()
	return s.ExecIn("postgres", sql)
}

// ExecIn is Exec in a database.
func (s *Server) ExecIn(database, sql string) [][]string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := pgconn.Connect(ctx, fmt.Sprintf(
		"host=127.0.0.1 port=%d user=postgres dbname=%s password='%s' sslmode=disable",
		s.Port, database, Password))
	if err != nil {
		s.t.Fatalf("connect to server: %v", err)
	}
	defer c.Close(ctx)
	res, err := c.Exec(ctx, sql).ReadAll()
	if err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	var rows [][]string
	if len(res) == 0 {
		return nil
	}
	for _, r := range res[len(res)-1].Rows {
		var row []string
		for _, c := range r {
			row = append(row, string(c))
		}
		rows = append(rows, row)
	}
	return rows
}

// Incarnation is what the lock would say of this start of the server.
func (s *Server) Incarnation() string {
	return s.Exec("SELECT (extract(epoch FROM pg_postmaster_start_time())*1000000)::int8")[0][0]
}

// NextXID takes an id: every older transaction of an earlier start is below it or lost.
func (s *Server) NextXID() uint64 {
	n, _ := strconv.ParseUint(s.Exec("SELECT pg_current_xact_id()")[0][0], 10, 64)
	return n
}

// setup makes what the agent makes at bootstrap.
func (s *Server) setup() {
	for _, stmt := range []string{
		`CREATE ROLE holdfast_lookup LOGIN PASSWORD '` + Password + `' IN ROLE pg_monitor`,
		`CREATE SCHEMA holdfast`,
		`GRANT USAGE ON SCHEMA holdfast TO holdfast_lookup`,
		`CREATE FUNCTION holdfast.user_secret(name text) RETURNS text LANGUAGE sql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$SELECT rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin$$`,
		`CREATE FUNCTION holdfast.end_backend(pid int, started timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$BEGIN
  FOR i IN 1..500 LOOP
    PERFORM pg_stat_clear_snapshot();
    PERFORM pg_terminate_backend(a.pid) FROM pg_stat_activity a
      WHERE a.pid = $1 AND a.backend_start = $2 AND a.backend_type = 'client backend';
    IF NOT FOUND THEN RETURN true; END IF;
    PERFORM pg_sleep(0.01);
  END LOOP;
  RETURN false;
END$$`,
		`CREATE ROLE app LOGIN PASSWORD '` + Password + `'`,
		`CREATE ROLE clerk`,
		`GRANT clerk TO app`,
		`CREATE DATABASE app OWNER app`,
	} {
		s.Exec(stmt)
	}
}
