package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/proxy/proxytest"
)

var driverChanges = flag.Int("drivers.changes", 4, "changes of the primary under each driver")

// driverRun is what a program that works through the proxy is told. The program works in rounds:
// writes in autocommit, reads of them, transactions, prepared statements, and what pools send.
// It stops at the first round that finds the file stop.
type driverRun struct {
	t                *testing.T
	host, port, stop string
}

func (d *driverRun) isOver() bool {
	_, err := os.Stat(d.stop)
	return err == nil
}

// dsn is the address as URL, without anything that is not a driver's default.
func (d *driverRun) dsn() string {
	return fmt.Sprintf("postgres://app:%s@%s/app",
		strings.ReplaceAll(proxytest.Password, " ", "%20"), net.JoinHostPort(d.host, d.port))
}

func (d *driverRun) environ() []string {
	return append(os.Environ(), "PGHOST="+d.host, "PGPORT="+d.port, "PGUSER=app",
		"PGDATABASE=app", "PGPASSWORD="+proxytest.Password, "HF_STOP="+d.stop)
}

// driverReport is what a program says at its end.
type driverReport struct {
	Version     string
	Rounds      int
	Errors      []driverError
	Connections int // as the driver counts them
}

type driverError struct{ Op, Code, Text string }

// driver is a program, and what it needs beside this repository: empty if nothing is missing.
type driver struct {
	name    string
	missing func(*testing.T) string
	work    func(context.Context, *driverRun) (driverReport, error)
	// isRequired fails where PostgreSQL is required: scripts/setup.sh installs it.
	isRequired bool
	// inProcess ones run with -short too, which the race detector does.
	inProcess bool
}

var drivers = []driver{
	{name: "pgx", missing: nothing, work: workPgx(pgxDefault), inProcess: true},
	{name: "pgx simple", missing: nothing, work: workPgx(pgxSimple), inProcess: true},
	{name: "lib/pq", missing: nothing, work: workLibpq, inProcess: true},
	{name: "psql", missing: nothing, work: workPsql},
	{name: "psycopg2", missing: python("psycopg2"), work: program(debianPython,
		"with_psycopg2.py"), isRequired: true},
	{name: "psycopg3", missing: python("psycopg"), work: program(debianPython,
		"with_psycopg.py"), isRequired: true},
	{name: "asyncpg", missing: python("asyncpg"), work: program(debianPython, "with_asyncpg.py"),
		isRequired: true},
	{name: "node-postgres", missing: noNode, work: workNode},
	{name: "pgjdbc", missing: noJava, work: program("java", "-cp", pgjdbcJar, "Pgjdbc.java")},
}

const (
	debianPython = "/usr/bin/python3"
	pgjdbcJar    = "/usr/share/java/postgresql.jar"
	nodePostgres = "pg@8.23.1"
	driverDir    = "testdata/drivers"
)

// TestDrivers: programs with common drivers at their defaults notice nothing of kills and
// switchovers but time, wherever in the conversation these come.
func TestDrivers(t *testing.T) {
	for i, d := range drivers {
		t.Run(d.name, func(t *testing.T) {
			if testing.Short() && !d.inProcess {
				t.Skip("slow")
			}
			if why := d.missing(t); why != "" {
				if wantsAllDrivers() || d.isRequired && os.Getenv("HOLDFAST_REQUIRE_POSTGRES") != "" {
					t.Fatal(why)
				}
				t.Skip(why)
			}
			testDriver(t, &d, i)
		})
	}
}

func testDriver(t *testing.T, d *driver, seed int) {
	r := newRig(t, nil)
	admin := r.connect("")
	exec(t, admin, "CREATE TABLE ledger (who text, round int, kind text)")
	exec(t, admin, "CREATE INDEX ON ledger (round)")
	exec(t, admin, "CREATE TABLE counter (n int)")
	exec(t, admin, "INSERT INTO counter VALUES (0)")
	host, port, _ := net.SplitHostPort(r.proxy.Addrs()[0].String())
	run := &driverRun{t: t, host: host, port: port, stop: filepath.Join(t.TempDir(), "stop")}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	ended := make(chan struct{})
	var report driverReport
	var err error
	go func() {
		defer close(ended)
		report, err = d.work(ctx, run)
	}()
	defer func() { cancel(); <-ended }()
	// Drivers that prefer TLS may connect twice at first: without a certificate it is refused.
	r.strike(&fault{name: "nothing"}, 20, true, ended)
	before := r.count("connections_total", "")
	for n := range *driverChanges {
		// The numbers reach every message of every kind of round, in some order.
		at := (seed*131 + n*173) % 397
		f := []*fault{faultCrash, faultSwitchover, faultCut, faultStop}[n%4]
		r.strike(f, at, n%3 != 2, ended)
	}
	// Some rounds more, so that what the last change has spoiled is seen.
	r.strike(&fault{name: "nothing"}, 1500, true, ended)
	if err := os.WriteFile(run.stop, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range report.Errors {
		t.Errorf("%s: SQLSTATE %q: %s", e.Op, e.Code, e.Text)
	}
	if n := r.count("connections_total", "") - before; report.Connections != 1 || n != 0 {
		t.Errorf("%d connections as the driver sees it, want 1; the proxy saw %v more",
			report.Connections, n)
	}
	got := exec(t, admin, `SELECT concat_ws(' ', (SELECT string_agg(concat(kind, ' ', n, ' ', d),
		' ' ORDER BY kind) FROM (SELECT kind, count(*) n, count(DISTINCT round) d FROM ledger
		WHERE round BETWEEN 1 AND `+fmt.Sprint(report.Rounds)+` GROUP BY kind) k),
		(SELECT n FROM counter), (SELECT count(*) FROM ledger))`)
	all, named := report.Rounds, report.Rounds/4
	want := fmt.Sprintf("p %d %d s %d %d t %d %d %d %d", named, named, all, all, all, all, all,
		all+all+named)
	if got != want {
		t.Errorf("the ledger has %q, want %q", got, want)
	}
	t.Logf("%s: %d changes, %d rounds, %d errors, %d connection; %v restored, %v replayed",
		report.Version, *driverChanges, report.Rounds, len(report.Errors), report.Connections,
		r.count("sessions_restored_total", ""), r.count("replays_total", "begun"))
}

// strike lets a fault come at the message with that number from now, and waits until it is over.
func (r *rig) strike(f *fault, at int, toward bool, ended <-chan struct{}) {
	r.t.Helper()
	c := &cutter{at: at, toward: toward, cuts: f.cuts, hit: make(chan struct{})}
	r.line.Watch(c.watch(true), c.watch(false))
	select {
	case <-c.hit:
	case <-ended: // what it says is judged by whoever waits for it
	}
	r.line.Watch(nil, nil)
	if f.happens != nil {
		f.happens(r)
	}
}

// program runs a program of testdata/drivers.
func program(name string, args ...string) func(context.Context, *driverRun) (driverReport, error) {
	return func(ctx context.Context, d *driverRun) (driverReport, error) {
		return runProgram(ctx, d, nil, name, args...)
	}
}

func runProgram(ctx context.Context, d *driverRun, env []string, name string, args ...string,
) (driverReport, error) {
	var report driverReport
	cmd := osexec.CommandContext(ctx, name, args...)
	cmd.Dir = driverDir
	cmd.Env = append(append(d.environ(), "PYTHONDONTWRITEBYTECODE=1"), env...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	if err != nil {
		var ee *osexec.ExitError
		if errors.As(err, &ee) {
			return report, fmt.Errorf("%s: %w\n%s", name, err, ee.Stderr)
		}
		return report, fmt.Errorf("%s: %w", name, err)
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return report, fmt.Errorf("%s said %.500q: %w", name, out, err)
	}
	return report, nil
}

func nothing(*testing.T) string { return "" }

// wantsAllDrivers is how `make drivers` asks for those too that need the network or a JDK.
func wantsAllDrivers() bool { return os.Getenv("HOLDFAST_DRIVERS") == "all" }

func python(module string) func(*testing.T) string {
	return func(*testing.T) string {
		out, err := osexec.Command(debianPython, "-c", "import "+module).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("Debian's python3-%s is not installed ('make setup' does it): %v %s",
				module, err, out)
		}
		return ""
	}
}

func noJava(*testing.T) string {
	if _, err := os.Stat(pgjdbcJar); err != nil {
		return "Debian's libpostgresql-jdbc-java is not installed ('make drivers' does it)"
	}
	if _, err := osexec.LookPath("javac"); err != nil {
		return "no JDK is installed ('make drivers' does it)"
	}
	return ""
}

// noNode: a plain `go test` takes nothing from the network.
func noNode(*testing.T) string {
	if !wantsAllDrivers() {
		return "the npm package pg is fetched only by 'make drivers'"
	}
	for _, tool := range []string{"node", "npm"} {
		if _, err := osexec.LookPath(tool); err != nil {
			return tool + " is not installed ('make drivers' does it)"
		}
	}
	return ""
}

func workNode(ctx context.Context, d *driverRun) (driverReport, error) {
	dir := d.t.TempDir()
	out, err := osexec.CommandContext(ctx, "npm", "install", "--no-audit", "--no-fund",
		"--prefix", dir, nodePostgres).CombinedOutput()
	if err != nil {
		return driverReport{}, fmt.Errorf("npm install %s: %w\n%s", nodePostgres, err, out)
	}
	return runProgram(ctx, d, []string{"NODE_PATH=" + filepath.Join(dir, "node_modules")}, "node",
		"node_postgres.js")
}
