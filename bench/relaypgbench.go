package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/pgwire"
)

// selectSQL is the statement of pgbench's select-only script.
const selectSQL = "SELECT abalance FROM pgbench_accounts WHERE aid = "

// extendedSelect is what `pgbench -M extended` sends: the statement is parsed each time.
var extendedSelect = script{
	name: "extended select",
	request: pgwire.AppendSync(pgwire.AppendExecute(pgwire.AppendDescribe(pgwire.AppendBind(
		pgwire.AppendParse(nil, "", selectSQL+"$1", nil), "", "", "4711"), 'P', ""), "", 0)),
}

// postgresModes are the modes with a real server. The selects are those of `pgbench -S` with
// its three protocols, sent by our own clients: they stay connected from round to round, and
// take less CPU away from what is measured.
func postgresModes(clients []int, dir string) []relayMode {
	var modes []relayMode
	for _, n := range clients {
		if n > 64 {
			continue // hundreds of busy servers measure the kernel's scheduler
		}
		for _, s := range []script{simpleSelect, extendedSelect, preparedSelect} {
			modes = append(modes, scriptMode("PostgreSQL", s, n))
		}
	}
	return append(modes, scriptMode("PostgreSQL", largeResult, 1),
		pgbenchMode(dir, "tpcb-like, 8 clients", "tx", "", "-c", "8"),
		pgbenchMode(dir, "autocommit write, 8 clients", "tx", writeScript, "-c", "8"),
		pgbenchMode(dir, "logins with SCRAM (pgbench -C -S), 4 clients", "login", "", "-C", "-S",
			"-c", "4"))
}

// writeScript changes one row, outside of a transaction block.
const writeScript = `\set aid random(1, 100000 * :scale)
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
`

// pgbenchRun is rounds of pgbench, which connects anew in each; script is empty for one of its own.
type pgbenchRun struct {
	addr, dir, script string
	args              []string
}

func pgbenchMode(dir, name, unit, script string, args ...string) relayMode {
	return relayMode{name: "PostgreSQL, " + name, unit: unit,
		open: func(_ context.Context, t *target) (worker, error) {
			return pgbenchRun{t.addr, dir, script, args}, nil
		}}
}

func (pgbenchRun) close() {}

// round runs pgbench for d, but at least a second, which is all it can count in.
func (w pgbenchRun) round(ctx context.Context, d time.Duration) (RelayRound, error) {
	dir, err := os.MkdirTemp(w.dir, "pgbench-")
	if err != nil {
		return RelayRound{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	seconds := max(1, int(d.Round(time.Second)/time.Second))
	args := append([]string{"-n", "-l", "--log-prefix", filepath.Join(dir, "log"), "-T",
		strconv.Itoa(seconds)}, w.args...)
	if w.script != "" {
		file := filepath.Join(dir, "script.sql")
		if err := os.WriteFile(file, []byte(w.script), 0o600); err != nil {
			return RelayRound{}, err
		}
		args = append(args, "-f", file)
	}
	out, err := pgbench(ctx, w.addr, args...)
	if err != nil {
		return RelayRound{}, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "log.*"))
	if err != nil || len(logs) == 0 {
		return RelayRound{}, errors.Join(err, errors.New("pgbench wrote no log"))
	}
	f, err := os.Open(logs[0])
	if err != nil {
		return RelayRound{}, err
	}
	defer func() { _ = f.Close() }()
	took, err := readPgbenchLog(f)
	if err != nil {
		return RelayRound{}, err
	}
	tps, err := pgbenchRate(out)
	if err != nil {
		return RelayRound{}, err
	}
	r := RelayRound{Units: float64(len(took)), Seconds: float64(seconds)}
	if tps > 0 {
		r.Seconds = r.Units / tps // without the time that the logins took
	}
	r.latencies(took)
	return r, nil
}

// readPgbenchLog takes the latencies, in nanoseconds, from the log of transactions: client,
// number, microseconds, ...
func readPgbenchLog(in io.Reader) ([]int64, error) {
	var took []int64
	for lines := bufio.NewScanner(in); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 6 {
			return nil, fmt.Errorf("log of pgbench: line %q", lines.Text())
		}
		us, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("log of pgbench: %w", err)
		}
		took = append(took, us*1000)
	}
	return took, nil
}

// pgbenchRate finds the transactions per second in what pgbench prints at its end; where the disk
// has let none through, it prints no rate.
func pgbenchRate(out string) (float64, error) {
	if strings.Contains(out, "actually processed: 0\n") {
		return 0, nil
	}
	_, rest, ok := strings.Cut(out, "tps = ")
	number, _, _ := strings.Cut(rest, " ")
	tps, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || tps <= 0 {
		return 0, fmt.Errorf("pgbench told no rate: %s", out)
	}
	return tps, nil
}
