package proxy_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/lib/pq" // registers itself as "postgres"

	"holdfast/proxy/proxytest"
)

// errorsMax is how many errors a program reports before it gives up.
const errorsMax = 20

// goWork is what the programs in Go share.
type goWork struct {
	report driverReport
	me     string
	err    error // the first of this round
}

// do keeps the first error of a round; after one the rest of the round is left out.
func (w *goWork) do(op string, work func() error) {
	if w.err != nil {
		return
	}
	if w.err = work(); w.err != nil {
		var told interface{ SQLState() string } // pgx's errors and lib/pq's have it
		e := driverError{Op: op, Text: w.err.Error()}
		if errors.As(w.err, &told) {
			e.Code = told.SQLState()
		}
		w.report.Errors = append(w.report.Errors, e)
	}
}

func (w *goWork) want(op string, want any, ask func(any) error) {
	w.do(op, func() error {
		var got string
		if err := ask(&got); err != nil {
			return err
		}
		if got != fmt.Sprint(want) {
			return fmt.Errorf("got %q, want %v", got, want)
		}
		return nil
	})
}

// rounds runs rounds until the run is over.
func (w *goWork) rounds(d *driverRun, round func(n int)) {
	for !d.isOver() && len(w.report.Errors) < errorsMax {
		w.err = nil
		if round(w.report.Rounds + 1); w.err == nil {
			w.report.Rounds++
		}
	}
}

// moduleVersion is what go.mod says: the build information of a test names no modules.
func moduleVersion(path string) string {
	text, _ := os.ReadFile("../go.mod")
	_, after, _ := strings.Cut(string(text), "\t"+path+" ")
	version, _, _ := strings.Cut(after, "\n")
	return version
}

// pgxDefault is pgx as it comes: extended protocol, statements cached by name on the server.
func pgxDefault(*pgxpool.Config) string { return "RESET ALL" }

// pgxSimple is what people use behind other poolers; nothing is kept, so that DISCARD ALL may be
// sent.
func pgxSimple(c *pgxpool.Config) string {
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	return "DISCARD ALL"
}

func workPgx(mode func(*pgxpool.Config) string) func(context.Context, *driverRun) (driverReport,
	error) {
	return func(ctx context.Context, d *driverRun) (driverReport, error) {
		w := &goWork{me: "me-0"}
		cfg, err := pgxpool.ParseConfig(d.dsn())
		if err != nil {
			return w.report, err
		}
		cfg.MaxConns = 1
		reset := mode(cfg)
		w.report.Version = fmt.Sprintf("pgx %s, %s", moduleVersion("github.com/jackc/pgx/v5"),
			cfg.ConnConfig.DefaultQueryExecMode)
		pool, err := pgxpool.NewWithConfig(ctx, cfg)
		if err != nil {
			return w.report, err
		}
		defer pool.Close()
		pids := map[uint32]bool{}
		if err := pgxExec(ctx, pool, "SET app.me = 'me-0'"); err != nil {
			return w.report, err
		}
		w.rounds(d, func(n int) { w.pgxRound(ctx, pool, n, reset, pids) })
		w.report.Connections = max(len(pids), int(pool.Stat().NewConnsCount()))
		return w.report, nil
	}
}

func pgxExec(ctx context.Context, pool *pgxpool.Pool, sql string, args ...any) error {
	_, err := pool.Exec(ctx, sql, args...)
	return err
}

func (w *goWork) pgxRound(ctx context.Context, pool *pgxpool.Pool, n int, reset string,
	pids map[uint32]bool,
) {
	run := func(op, sql string, args ...any) {
		w.do(op, func() error { return pgxExec(ctx, pool, sql, args...) })
	}
	ask := func(sql string, args ...any) func(any) error {
		return func(to any) error { return pool.QueryRow(ctx, sql, args...).Scan(to) }
	}
	w.want("setting", w.me, ask("SELECT current_setting('app.me', true)"))
	run("autocommit", "INSERT INTO ledger VALUES ('it', $1, 's')", n)
	w.want("select", 1, ask("SELECT count(*)::text FROM ledger WHERE round = $1 AND kind = 's'", n))
	w.do("transaction", func() error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			pids[tx.Conn().PgConn().PID()] = true
			if _, err := tx.Exec(ctx, "INSERT INTO ledger VALUES ('it', $1, 't')", n); err != nil {
				return err
			}
			var got int
			err := tx.QueryRow(ctx, "UPDATE counter SET n = n + 1 RETURNING n").Scan(&got)
			if err == nil && got != n {
				return fmt.Errorf("the counter is %d, want %d", got, n)
			}
			return err
		})
	})
	if n%3 == 0 {
		w.do("validation", func() error { return pool.Ping(ctx) })
	}
	if n%4 == 0 { // a batch: one Sync for two statements, one of them described before
		w.do("batch", func() error {
			b := &pgx.Batch{}
			const insert = "INSERT INTO ledger VALUES ('it', $1, 'p')"
			b.Queue(insert, n) // in the simple protocol it is one string of several statements
			b.Queue("SELECT count(*) FROM ledger WHERE round = $1", n)
			b.Queue("SELECT count(*) FROM counter")
			return pool.SendBatch(ctx, b).Close()
		})
	}
	if n%5 == 0 {
		w.do("rollback", func() error {
			tx, err := pool.Begin(ctx)
			if err != nil {
				return err
			}
			_, err = tx.Exec(ctx, "INSERT INTO ledger VALUES ('it', $1, 'x')", n)
			return errors.Join(err, tx.Rollback(ctx))
		})
	}
	if n%7 == 0 {
		w.me = fmt.Sprintf("me-%d", n)
		run("reset", reset)
		run("set", fmt.Sprintf("SET app.me = '%s'", w.me))
	}
}

// workLibpq uses lib/pq through database/sql, whose pool has one connection.
func workLibpq(ctx context.Context, d *driverRun) (driverReport, error) {
	w := &goWork{me: "me-0"}
	w.report.Version = "lib/pq " + moduleVersion("github.com/lib/pq")
	// lib/pq's own default is sslmode=require, and the proxy of this test has no certificate.
	db, err := sql.Open("postgres", d.dsn()+"?sslmode=disable")
	if err != nil {
		return w.report, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	const insert = "INSERT INTO ledger VALUES ('it', $1, 'p')"
	ins, err := db.PrepareContext(ctx, insert)
	if err != nil {
		return w.report, err
	}
	if _, err := db.ExecContext(ctx, "SET app.me = 'me-0'"); err != nil {
		return w.report, err
	}
	w.rounds(d, func(n int) {
		w.sqlRound(ctx, db, n)
		if n%4 == 0 {
			w.do("prepared", func() error { _, err := ins.ExecContext(ctx, n); return err })
		}
		if n%7 == 0 && w.err == nil {
			w.me = fmt.Sprintf("me-%d", n)
			w.do("close", ins.Close)
			w.do("reset", func() error { _, err := db.ExecContext(ctx, "DISCARD ALL"); return err })
			w.do("prepare", func() (err error) { ins, err = db.PrepareContext(ctx, insert); return })
			w.do("set", func() error {
				_, err := db.ExecContext(ctx, fmt.Sprintf("SET app.me = '%s'", w.me))
				return err
			})
		}
	})
	w.report.Connections = 1 // it does not tell; the proxy's count decides
	return w.report, nil
}

// sqlRound is a round through database/sql.
func (w *goWork) sqlRound(ctx context.Context, db *sql.DB, n int) {
	ask := func(sql string, args ...any) func(any) error {
		return func(to any) error { return db.QueryRowContext(ctx, sql, args...).Scan(to) }
	}
	w.want("setting", w.me, ask("SELECT current_setting('app.me', true)"))
	w.do("autocommit", func() error {
		_, err := db.ExecContext(ctx, "INSERT INTO ledger VALUES ('it', $1, 's')", n)
		return err
	})
	w.want("select", 1, ask("SELECT count(*) FROM ledger WHERE round = $1 AND kind = 's'", n))
	inTx := func(kind string, end func(*sql.Tx) error) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO ledger VALUES ('it', $1, $2)", n, kind)
		if err == nil && kind == "t" {
			var got int
			err = tx.QueryRowContext(ctx, "UPDATE counter SET n = n + 1 RETURNING n").Scan(&got)
			if err == nil && got != n {
				err = fmt.Errorf("the counter is %d, want %d", got, n)
			}
		}
		if err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return end(tx)
	}
	w.do("transaction", func() error { return inTx("t", (*sql.Tx).Commit) })
	if n%3 == 0 {
		w.do("validation", func() error { return db.PingContext(ctx) })
	}
	if n%5 == 0 {
		w.do("rollback", func() error { return inTx("x", (*sql.Tx).Rollback) })
	}
}

// psqlRound is what psql is given for a round; it answers "round N" or what it did not expect.
func psqlRound(n int) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("INSERT INTO ledger VALUES ('it', %d, 's');", n)
	p("SELECT 'select', count(*) FROM ledger WHERE round = %d AND kind = 's';", n)
	p("BEGIN; INSERT INTO ledger VALUES ('it', %d, 't');", n)
	p("UPDATE counter SET n = n + 1 RETURNING 'counter', n;\nCOMMIT;")
	if n%3 == 0 { // several statements in one Query
		p(`SELECT 'one', 1\; SELECT 'two', 2;`)
	}
	if n%4 == 0 {
		p("EXECUTE ins(%d);", n)
	}
	if n%5 == 0 {
		p("BEGIN; INSERT INTO ledger VALUES ('it', %d, 'x'); ROLLBACK;", n)
	}
	p("SELECT 'setting', current_setting('app.me', true);")
	if n%7 == 0 {
		p("DISCARD ALL;\n" + psqlBegin)
	}
	p(`\echo round`)
	return b.String()
}

const psqlBegin = "SET app.me = 'me';\n" +
	"PREPARE ins(int) AS INSERT INTO ledger VALUES ('it', $1, 'p');"

// workPsql gives psql one round after the other.
func workPsql(ctx context.Context, d *driverRun) (driverReport, error) {
	report := driverReport{Connections: 1}
	cmd := osexec.CommandContext(ctx, filepath.Join(proxytest.BinDir(d.t), "psql"), "-XAtq",
		"-F", " ", "-v", "VERBOSITY=verbose")
	cmd.Env = d.environ()
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return report, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return report, err
	}
	if err := cmd.Start(); err != nil {
		return report, err
	}
	lines := bufio.NewScanner(out)
	_, err = fmt.Fprintln(in, psqlBegin+"\n\\echo psql :VERSION_NAME")
	if err == nil && lines.Scan() {
		report.Version = lines.Text()
	}
	for n := 1; err == nil && !d.isOver() && len(report.Errors) < errorsMax; n++ {
		want := fmt.Sprintf("select 1 counter %d ", n)
		if n%3 == 0 {
			want += "one 1 two 2 "
		}
		want += "setting me round"
		var got []string
		if _, err = fmt.Fprint(in, psqlRound(n)); err != nil {
			break
		}
		for lines.Scan() {
			got = append(got, lines.Text())
			if lines.Text() == "round" {
				break
			}
		}
		if s := strings.Join(got, " "); s != want {
			report.Errors = append(report.Errors, driverError{"round", "", fmt.Sprintf(
				"%d: got %q, want %q", n, s, want)})
		}
		report.Rounds = n
	}
	_ = in.Close() // it may be closed already
	if err = errors.Join(err, cmd.Wait()); err != nil {
		return report, fmt.Errorf("%w\n%s", err, said.String())
	}
	for line := range strings.Lines(said.String()) {
		if !strings.HasPrefix(line, "NOTICE") && !strings.HasPrefix(line, "LOCATION") {
			report.Errors = append(report.Errors, driverError{"psql", "", line})
		}
	}
	return report, err
}
