package election

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"holdfast/pgwire"
)

// pgConnConfig makes a connection's configuration from explicit fields only: nothing of the
// environment (PGOPTIONS, PGHOST, ...) may change where or as whom the agent logs in.
func pgConnConfig(host string, port uint16, role, password string) (*pgconn.Config, error) {
	cfg, err := pgconn.ParseConfig("host=/ port=1 user=u dbname=postgres sslmode=disable " +
		"passfile=/dev/null target_session_attrs=any connect_timeout=5")
	if err != nil {
		return nil, fmt.Errorf("connection settings (is a PG* variable set?): %w", err)
	}
	cfg.Host, cfg.Port, cfg.User, cfg.Password = host, port, role, password
	cfg.Fallbacks, cfg.ValidateConnect, cfg.TLSConfig = nil, nil, nil
	cfg.RuntimeParams = map[string]string{"application_name": "holdfast agent"}
	cfg.MaxProtocolMessageBodyLen = 16 << 20
	return cfg, nil
}

// connect opens a control connection.
func (a *PostgresAgent) connect(ctx context.Context) (*pgconn.PgConn, error) {
	cfg, err := a.controlConfig()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout)
	defer cancel()
	c, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("control connection: %w", err)
	}
	return c, nil
}

// controlConfig is that of a control connection: the server's own socket, the superuser. Its
// commits never wait for standbys (they may be what the agent is about to re-point), and it leaves
// no SQL in logs.
func (a *PostgresAgent) controlConfig() (*pgconn.Config, error) {
	dir, port := a.controlAddress()
	cfg, err := pgConnConfig(dir, port, a.cfg.Superuser, a.secrets.superuser)
	if err != nil {
		return nil, err
	}
	for k, v := range map[string]string{"synchronous_commit": "local", "log_statement": "none",
		"log_min_duration_statement": "-1", "log_min_error_statement": "panic",
		"statement_timeout": "0", "lock_timeout": "0", "search_path": "pg_catalog",
		"idle_in_transaction_session_timeout": "0", "default_transaction_read_only": "off"} {
		cfg.RuntimeParams[k] = v
	}
	return cfg, nil
}

func pgClose(c *pgconn.PgConn) {
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Close(ctx)
}

func (a *PostgresAgent) closeConn() {
	pgClose(a.conn)
	a.conn = nil
}

// exec runs SQL on the kept connection of the holder of ops, bounded by QueryTimeout. A dead
// connection is opened again before, never after, the text was sent.
func (a *PostgresAgent) exec(ctx context.Context, sql string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout)
	defer cancel()
	if a.conn != nil && (a.conn.IsClosed() || a.conn.Ping(ctx) != nil) {
		a.closeConn()
	}
	if a.conn == nil {
		c, err := a.connect(ctx)
		if err != nil {
			return nil, err
		}
		a.conn = c
		// It is consistent, and from now on others can log in, and ALTER SYSTEM.
		a.isQuiet, a.unproved, a.scan = false, 0, nil
	}
	return pgQuery(ctx, a.conn, sql)
}

func (a *PostgresAgent) queryRow(ctx context.Context, sql string) ([]string, error) {
	rows, err := a.exec(ctx, sql)
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 {
		return nil, fmt.Errorf("%d rows instead of one", len(rows))
	}
	return rows[0], nil
}

// pgQuery runs a simple query and returns the rows of the last statement that had any; NULL
// becomes the empty string.
func pgQuery(ctx context.Context, c *pgconn.PgConn, sql string) ([][]string, error) {
	results, err := c.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var out [][]string
	for _, r := range results {
		if len(r.FieldDescriptions) == 0 {
			continue
		}
		out = make([][]string, 0, len(r.Rows))
		for _, row := range r.Rows {
			text := make([]string, len(row))
			for i, v := range row {
				text[i] = string(v)
			}
			out = append(out, text)
		}
	}
	return out, nil
}

func pgLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// pgControl is what pg_controldata tells of a data directory.
type pgControl struct {
	systemID   string
	state      string
	checkpoint pgwire.LSN
	timeline   uint32
	minLSN     pgwire.LSN // minimum recovery ending location
	minTL      uint32
	// What follows is of the last checkpoint, and the form of the WAL files. isBackup tells of a
	// copy whose recovery has not come to the end of that backup.
	redo           pgwire.LSN
	nextXid        uint64
	block, segment uint64
	isBackup       bool
	sizes          map[string]int // of standbySizes, as the primary has them
}

// isWhole tells that a server's recovery has come to the end of the backup that it was made from.
func (c pgControl) isWhole() bool { return !c.isBackup && c.minLSN != 0 }

func (a *PostgresAgent) controlData(ctx context.Context) (pgControl, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := a.run(ctx, "pg_controldata", "-D", a.cfg.DataDir)
	if err != nil {
		return pgControl{}, err
	}
	var c pgControl
	var errs []error
	lsn := func(s string) pgwire.LSN {
		l, err := pgwire.ParseLSN(s)
		errs = append(errs, err)
		return l
	}
	tl := func(s string) uint32 {
		n, err := strconv.ParseUint(s, 10, 32)
		errs = append(errs, err)
		return uint32(n)
	}
	for line := range strings.Lines(out) {
		key, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok {
			continue
		}
		c.readWALKey(key, value)
		c.readSizeKey(key, value)
		switch key {
		case "Database system identifier":
			c.systemID = value
		case "Database cluster state":
			c.state = value
		case "Latest checkpoint location":
			c.checkpoint = lsn(value)
		case "Latest checkpoint's TimeLineID":
			c.timeline = tl(value)
		case "Minimum recovery ending location":
			c.minLSN = lsn(value)
		case "Min recovery ending loc's timeline":
			c.minTL = tl(value)
		}
	}
	if err := errors.Join(errs...); err != nil || c.systemID == "" || c.state == "" {
		return pgControl{}, fmt.Errorf("pg_controldata: output not understood: %w", err)
	}
	return c, nil
}

// readWALKey takes what a scan of the WAL files starts from; what is not understood stays 0.
func (c *pgControl) readWALKey(key, value string) {
	switch key {
	case "Latest checkpoint's REDO location":
		c.redo, _ = pgwire.ParseLSN(value)
	case "Latest checkpoint's NextXID":
		c.nextXid = parseFullXid(value)
	case "WAL block size":
		c.block, _ = strconv.ParseUint(value, 10, 32)
	case "Bytes per WAL segment":
		c.segment, _ = strconv.ParseUint(value, 10, 32)
	case "Backup start location":
		c.isBackup = c.isBackup || value != "0/0" && value != "0/00000000"
	case "End-of-backup record required":
		c.isBackup = c.isBackup || value != "no"
	}
}

// parseFullXid reads a transaction id as epoch:id; 0 if it is none.
func parseFullXid(s string) uint64 {
	epoch, xid, _ := strings.Cut(s, ":")
	e, err1 := strconv.ParseUint(epoch, 10, 32)
	x, err2 := strconv.ParseUint(xid, 10, 32)
	if err1 != nil || err2 != nil {
		return 0
	}
	return e<<32 | x
}

// startServer starts the postmaster through pg_ctl, which puts it into a session of its own, and
// waits until it answers, or lets nobody in (errNoLogins). The caller has written the configuration
// and ended the orphans. A server that still recovers when ctx ends or StartTimeout has passed is
// left to go on.
func (a *PostgresAgent) startServer(ctx context.Context) error {
	if pid, _, err := a.postmaster(); err != nil {
		return fmt.Errorf("start: %w", err)
	} else if pid != 0 {
		return a.waitReady(ctx, nil)
	}
	a.closeConn()
	a.verifiedSeq, a.verifiedHBA = "", ""
	a.slotSync, a.waitSlots = false, nil
	a.moveLog()
	offset := int64(0)
	if info, err := os.Stat(a.logFile()); err == nil {
		offset = info.Size()
	}
	a.log.Info("postgres starting", zap.String("data_dir", a.cfg.DataDir))
	failed := make(chan error, 1)
	pgCtl, stopWaiting := context.WithCancel(context.WithoutCancel(ctx))
	a.wg.Add(1)
	go func() { // ends with pg_ctl, at the latest when its own bound has passed
		defer a.wg.Done()
		defer stopWaiting()
		_, err := a.run(pgCtl, "pg_ctl", "start", "-s", "-w",
			"-t", "30", "-D", a.cfg.DataDir, "-l", a.logFile(),
			"-o", "-c restart_after_crash=off -c logging_collector=off")
		if pid, _, _ := a.postmaster(); err != nil && pid == 0 {
			failed <- err
		}
		close(failed)
	}()
	err := a.waitReady(ctx, failed)
	if errors.Is(err, errNoLogins) {
		stopWaiting() // pg_ctl waits for logins; the postmaster is in a session of its own
		a.hurry()
		return err
	}
	if err != nil {
		return fmt.Errorf("start: %w%s", err, pgWithRemedy(a.logSince(offset)))
	}
	a.hurry()
	return nil
}

// waitReady waits until a control connection works, or a standby is known to let nobody in
// (errNoLogins).
func (a *PostgresAgent) waitReady(ctx context.Context, failed <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.StartTimeout)
	defer cancel()
	for {
		now, word, _ := a.postmaster()
		if a.letsNobodyIn(now, word) {
			return errNoLogins
		}
		if word == "ready" || word == "standby" {
			if _, err := a.exec(ctx, "SELECT 1"); err == nil {
				return nil
			} else if pgIsAuthError(err) {
				return fmt.Errorf("%w (is the file superuser in secrets_dir the cluster's?)", err)
			}
		}
		select {
		case err, ok := <-failed:
			if ok {
				return err
			}
			failed = nil
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer yet (state %q): %w", word, ctx.Err())
		}
		if pid, _, err := a.postmaster(); err == nil && pid == 0 && failed == nil {
			return errors.New("the server ended while it was starting")
		}
	}
}

func pgIsAuthError(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && strings.HasPrefix(pe.Code, "28")
}

// logSince gives the last words of the server's log, for an error.
func (a *PostgresAgent) logSince(offset int64) string {
	f, err := os.Open(a.logFile())
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil {
		offset = max(offset, info.Size()-2000)
	}
	b := make([]byte, 2000)
	n, _ := f.ReadAt(b, offset)
	if n == 0 {
		return ""
	}
	return "; server log: " + pgTail(string(b[:n]), 800)
}

// stopServer ends the server: fast within the bound, then immediately. It reports whether the
// stop was clean; orphans are gone when it returns nil. Once begun it goes on though ctx ends: a
// caller that went away is no reason to stop less gently.
func (a *PostgresAgent) stopServer(ctx context.Context, bound time.Duration) (bool, error) {
	ctx = context.WithoutCancel(ctx)
	pid, _, err := a.postmaster()
	if err != nil {
		return false, fmt.Errorf("stop: %w", err)
	}
	if pid == 0 {
		return false, a.endOrphans(ctx)
	}
	walsenders := a.endLogicalWalsenders(ctx)
	a.closeConn()
	a.log.Info("postgres stopping", zap.Int("pid", pid))
	pgSignal(pid, unix.SIGINT, a.cfg.DataDir)
	if a.waitDead(ctx, pid, bound/4) {
		return true, a.endOrphans(ctx)
	}
	a.endWalsenders(pid, walsenders)
	if a.waitDead(ctx, pid, bound-bound/4) {
		return true, a.endOrphans(ctx)
	}
	a.log.Error("fast stop took too long; stopping immediately", zap.Duration("bound", bound))
	pgSignal(pid, unix.SIGQUIT, a.cfg.DataDir)
	if !a.waitDead(ctx, pid, 6*time.Second) { // the server's own bound is 5 s
		return false, fmt.Errorf("stop: postmaster %d does not end (a hung disk?)", pid)
	}
	return false, a.endOrphans(ctx)
}

func (a *PostgresAgent) waitDead(ctx context.Context, pid int, bound time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for {
		if alive, _ := pgProc(pid); !alive {
			return true
		}
		if pauseFor(ctx, 5*time.Millisecond) != nil {
			return false
		}
	}
}

// endWalsenders ends those that are left of a postmaster that stops: one whose standby hangs keeps
// a fast stop waiting (DESIGN 10.11).
func (a *PostgresAgent) endWalsenders(pid int, walsenders []int) {
	for _, p := range walsenders {
		if alive, ppid := pgProc(p); alive && ppid == pid {
			a.log.Warn("walsender keeps the stop waiting; ending it", zap.Int("pid", p))
			pgSignal(p, unix.SIGTERM, a.cfg.DataDir)
		}
	}
}

// endLogicalSQL disconnects logical receivers and lists all walsenders.
const endLogicalSQL = `SELECT r.pid, CASE WHEN l.slot_name IS NOT NULL
	THEN pg_terminate_backend(r.pid) END FROM pg_stat_replication r
	LEFT JOIN pg_replication_slots l ON l.active_pid = r.pid AND l.slot_type = 'logical'`

// endLogicalWalsenders disconnects logical receivers, whose walsenders would wait for them, and
// returns the pids of all walsenders.
func (a *PostgresAgent) endLogicalWalsenders(ctx context.Context) []int {
	rows, err := a.exec(ctx, endLogicalSQL)
	if err != nil {
		return nil
	}
	return walsenderPids(rows)
}

func walsenderPids(rows [][]string) []int {
	var pids []int
	for _, r := range rows {
		if pid, err := strconv.Atoi(r[0]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
