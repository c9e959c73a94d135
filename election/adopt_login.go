package election

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// controlAddress is where the agent reaches its server: the directory of the socket and the port.
// A running server is asked for them by its postmaster.pid, since one that was adopted has its own
// until it is restarted.
func (a *PostgresAgent) controlAddress() (dir string, port uint16) {
	_, text, _ := net.SplitHostPort(a.cfg.Listen)
	dir = a.cfg.socketDir()
	b, err := os.ReadFile(pgPostmasterFile(a.cfg.DataDir))
	if lines := strings.Split(string(b), "\n"); err == nil && len(lines) > 4 {
		if s := strings.TrimSpace(lines[4]); filepath.IsAbs(s) {
			dir, text = s, strings.TrimSpace(lines[3])
		}
	}
	n, _ := strconv.ParseUint(text, 10, 16)
	return dir, uint16(n)
}

// login opens the adoption's session: as the agent will, or, before that works, as the
// administrator. The session is read-only until Apply.
func (d *Adoption) login(ctx context.Context) error {
	a := d.a
	a.closeConn()
	cfg, err := a.controlConfig()
	if err != nil {
		return err
	}
	cfg.RuntimeParams["application_name"] = "holdfast adopt"
	cfg.RuntimeParams["default_transaction_read_only"] = "on"
	try := func(c *pgconn.Config) error {
		ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout)
		defer cancel()
		conn, err := pgconn.ConnectConfig(ctx, c)
		if err == nil {
			a.conn = conn
		}
		return err
	}
	own := try(cfg)
	if own == nil {
		return nil
	}
	admin := cfg.Copy()
	if d.cfg.AdminRole != "" {
		admin.User = d.cfg.AdminRole
	}
	admin.Password = d.cfg.AdminPassword
	admin.DialFunc = a.dialAsAccount
	if err := try(admin); err != nil {
		var pe *pgconn.PgError
		if errors.As(err, &pe) && pe.Code == "42501" { // of the session's settings
			return fmt.Errorf("role %s is no superuser: name one with --admin", admin.User)
		}
		return fmt.Errorf("log in at %s: as %s with the file superuser of secrets_dir: %w; as %s: "+
			"%w (name a superuser with --admin and --admin-password-file, or let account %s in by "+
			"the socket with method peer)", admin.Host, cfg.User, own, admin.User, err, a.cfg.OSUser)
	}
	return nil
}

// dialAsAccount connects to a socket as PostgreSQL's account, which pg_hba.conf's method peer lets
// in. Credentials belong to a thread in Linux, and the kernel takes them at connect: the thread has
// that account's for this call alone.
func (a *PostgresAgent) dialAsAccount(ctx context.Context, network, addr string) (net.Conn, error) {
	if network != "unix" || a.account.cred == nil {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		conn, err := dialUnixAs(a.account.uid, addr)
		if setThreadUser(0) == nil {
			runtime.UnlockOSThread() // else the thread ends with this goroutine
		}
		done <- result{conn, err}
	}()
	r := <-done // a socket of this host answers or refuses at once
	return r.conn, r.err
}

// setThreadUser sets the effective user of this thread, which must be locked. The real and saved
// ones stay root's, so there is a way back.
func setThreadUser(uid int) error {
	const keep = ^uintptr(0)
	_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep)
	if errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	return nil
}

func dialUnixAs(uid int, addr string) (net.Conn, error) {
	if err := setThreadUser(uid); err != nil {
		return nil, err
	}
	const kind = unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), addr)
	defer func() { _ = f.Close() }()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: addr}); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return net.FileConn(f)
}

func deviceOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return uint64(st.Dev), nil
}
