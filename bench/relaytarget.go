package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// target is one way from the clients to the server. Its process, if it has one, is ours; stop
// waits for it.
type target struct {
	Name    string
	Version string
	addr    string
	cmd     *exec.Cmd
	// isForeign tells that somebody else ends the process.
	isForeign bool
}

// cpu is what the kernel has accounted to all threads of the target's process; 0 for none.
func (t *target) cpu() (time.Duration, error) {
	if t.cmd == nil {
		return 0, nil
	}
	return processCPU(t.cmd.Process.Pid)
}

// processCPU reads the CPU clock of another process (clock_getcpuclockid(3)), which has
// nanoseconds where /proc/PID/stat has ticks.
func processCPU(pid int) (time.Duration, error) {
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// memory is the resident set now and its peak, in bytes.
func (t *target) memory() (now, peak int64, err error) {
	if t.cmd == nil {
		return 0, 0, nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", t.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			now = kib << 10
		case "VmHWM":
			peak = kib << 10
		}
	}
	return now, peak, nil
}

func (t *target) stop() error {
	if t.cmd == nil || t.isForeign {
		return nil
	}
	return stopProcess(t.cmd)
}

// stopProcess asks a process to end and makes it.
func stopProcess(cmd *exec.Cmd) error {
	_ = cmd.Process.Signal(unix.SIGTERM)
	kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil // that it was ended is no error
	}
	return err
}

// start runs a program of ours that prints its address.
func start(name string, args ...string) (*exec.Cmd, string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	// Ctrl-C is ours to pass on, and nothing outlives us.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", fmt.Errorf("start %s: %w", name, err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("start %s: %w", name, err), stopProcess(cmd))
	}
	return cmd, strings.TrimSpace(line), nil
}

// startForeign runs a program of others as nobody and waits until it listens.
func startForeign(ctx context.Context, addr, dir, name string, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	log, err := os.Create(filepath.Join(dir, filepath.Base(name)+".log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := asNobody(cmd, dir); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	for range 100 {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = conn.Close()
			return cmd, nil
		}
		if ctx.Err() != nil {
			break
		}
		time.Sleep(50 * time.Millisecond) // it tells nobody when it listens
	}
	text, _ := os.ReadFile(log.Name())
	return nil, errors.Join(fmt.Errorf("%s does not listen: %s", name, text), stopProcess(cmd))
}

// asNobody keeps a foreign program from being root; the directory becomes its own.
func asNobody(cmd *exec.Cmd, dir string) error {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		return err
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		return errors.Join(err, os.Chown(path, int(uid), int(gid)))
	})
}

// freeAddr is an address on which nobody listens now, below the ports that connections come from.
func freeAddr() (string, error) {
	var err error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", err
}

// startHAProxy runs HAProxy in TCP mode.
func startHAProxy(ctx context.Context, dir string, o *origin) (*target, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(`global
    maxconn 9950
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    maxconn 9950
listen bench
    bind %s
    server one %s
`, addr, o.addr)
	path := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	cmd, err := startForeign(ctx, addr, dir, "haproxy", "-db", "-f", path)
	if err != nil {
		return nil, err
	}
	return &target{Name: "HAProxy", Version: versionOf("haproxy", "-v"), addr: addr,
		cmd: cmd}, nil
}

// startPgBouncer runs PgBouncer with session pooling. It has the very secret that the server has,
// so that it logs in to the server with the keys of its client: with a plain password it would
// work out a secret for each login, which takes it ten times as long.
func startPgBouncer(ctx context.Context, dir string, o *origin) (*target, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	host, port, _ := net.SplitHostPort(addr)
	serverHost, serverPort, _ := net.SplitHostPort(o.addr)
	users := filepath.Join(dir, "users.txt")
	conf := fmt.Sprintf(`[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = %s
listen_port = %s
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
pool_mode = session
max_client_conn = 9950
default_pool_size = 9950
logfile =
pidfile =
log_connections = 0
log_disconnections = 0
ignore_startup_parameters = extra_float_digits
`, serverHost, serverPort, host, port, users)
	path := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	line := fmt.Sprintf("\"%s\" \"%s\"\n", benchUser, o.secret)
	if err := os.WriteFile(users, []byte(line), 0o600); err != nil {
		return nil, err
	}
	cmd, err := startForeign(ctx, addr, dir, "pgbouncer", path)
	if err != nil {
		return nil, err
	}
	return &target{Name: "PgBouncer", Version: versionOf("pgbouncer", "--version"),
		addr: addr, cmd: cmd}, nil
}

// versionOf is the first line that a program says about itself.
func versionOf(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	line, _, _ = strings.Cut(line, " - ")
	return strings.TrimSpace(line)
}
