package proxy_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"holdfast/proxy/proxytest"
)

// whyRules is the price of guarding the commit of a Query: docs/security.md.
const whyRules = "rows of a rule are not shown for a single write with commit_guard: all"

var suites = []suite{
	{
		name: "pgx", setup: "holdfast.sql", run: runPgx, parse: parseGo, inner: true,
		tls: [3]string{"certs/localhost.crt", "certs/localhost.key", "certs/ca.pem"},
		hba: []string{
			"host all pgx_md5 all md5", "host all pgx_scram all scram-sha-256",
			"host all pgx_pw all password", "hostssl all pgx_ssl all scram-sha-256",
			"hostssl all pgx_sslcert all cert", "host all postgres all trust",
		},
		differs: map[string]string{
			"pgconn TestConnectProtocolVersion32": "the proxy speaks 3.2 itself, whatever the server does",
			"pgconn":                              "the one above",
		},
	},
	{
		name: "libpq", setup: "holdfast.sql", run: runLibpq, parse: parseGo,
		tls: [3]string{"testdata/ssl/server.crt", "testdata/ssl/server.key", "testdata/ssl/root.crt"},
		hba: []string{
			"host all pqgomd5 all md5", "host all pqgopassword all password",
			"host all pqgoscram all scram-sha-256",
			"hostnossl all pqgossl all reject", "hostnossl all pqgosslcert all reject",
			"hostssl all pqgossl all trust", "hostssl all pqgosslcert all cert",
			"host all all all trust",
		},
	},
	{
		name: "psycopg2", setup: "holdfast.sql",
		run: func(r *suiteRun) []byte {
			return r.command([]string{"PSYCOPG2_TESTDB=psycopg2_test", "PSYCOPG2_TESTDB_USER=postgres",
				"PSYCOPG2_TESTDB_HOST=" + r.host, "PSYCOPG2_TESTDB_PORT=" + r.port}, debianPython, "-c",
				"import tests; tests.unittest.main(defaultTest='tests.test_suite')", "-v")
		},
		parse: parseLines(`^(?P<name>\S+ \(\S+\))(?:\n.*)? \.\.\. (?P<result>ok|FAIL|ERROR|skipped)`,
			map[string]string{"ok": passed, "FAIL": failed, "ERROR": failed, "skipped": skipped}),
	},
	{
		name: "psycopg3",
		run: func(r *suiteRun) []byte {
			return r.command(nil, debianPython, "-m", "pytest", "-v", "-o", "filterwarnings=default",
				"-m", "not slow and not timing and not crdb and not dns and not mypy",
				"--ignore=tests/pool", "--ignore=tests/crdb", "tests",
				"--test-dsn", r.dsn("user=postgres dbname=postgres"))
		},
		parse: parsePytest,
	},
	{
		name: "asyncpg",
		run: func(r *suiteRun) []byte {
			return r.command(nil, debianPython, "-m", "pytest", "-v", "tests")
		},
		parse: parsePytest,
		differs: map[string]string{
			"tests/test_execute.py::TestExecuteMany::" +
				"test_executemany_server_failure_during_writes": "how much a client has written before an " +
				"error comes depends on the sockets between",
		},
	},
	{
		name: "node-postgres", run: runNodePostgres,
		tls: [3]string{"holdfast/tls/localhost.crt", "holdfast/tls/localhost.key", "holdfast/tls/ca.pem"},
		parse: parseLines(`^(?P<result>0|255|1|124) (?P<name>\S+-tests.js( binary)?)$`,
			map[string]string{"0": passed, "1": failed, "255": failed, "124": failed}),
	},
	{
		name: "dbdpg", run: runDBDPg,
		parse: parseLines(`^(?P<result>ok|not ok) (?P<name>.*)$`,
			map[string]string{"ok": passed, "not ok": failed}),
	},
	{
		name: "pg_regress", dir: "postgresql/src/test/regress",
		run:   runPgRegress("pg_regress", "parallel_schedule", "regression"),
		parse: parsePgRegress,
		differs: map[string]string{
			"rules": whyRules,
			"portals": "a guarded EXECUTE goes by the extended protocol, so that its own portal is in " +
				"pg_cursors while it runs",
		},
	},
	{
		name: "isolation", dir: "postgresql/src/test/isolation",
		run:   runPgRegress("pg_isolation_regress", "isolation_schedule", "isolation_regression"),
		parse: parsePgRegress,
	},
	{
		name: "libpq_pipeline", dir: "postgresql/src/test/modules/libpq_pipeline",
		run: runLibpqPipeline,
		parse: parseLines(`^(?P<result>0|1) (?P<name>\S+)$`,
			map[string]string{"0": passed, "1": failed}),
	},
}

var parsePytest = parseLines(
	`^(?P<name>\S+::.*?) (?P<result>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b`,
	map[string]string{"PASSED": passed, "FAILED": failed, "ERROR": failed, "SKIPPED": skipped,
		"XFAIL": skipped, "XPASS": passed})

var parsePgRegress = parseLines(`^(?:test)?\s*(?P<name>\S+)\s+\.\.\. (?P<result>ok|FAILED)`,
	map[string]string{"ok": passed, "FAILED": failed})

// parseGo reads `go test -json`. Names have parts that are made up for each run.
func parseGo(text []byte) map[string]string {
	words := map[string]string{"pass": passed, "fail": failed, "skip": skipped}
	random := regexp.MustCompile(`/tmp/[^'_ ]*`)
	out := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		var e struct{ Action, Package, Test string }
		if json.Unmarshal([]byte(line), &e) != nil || words[e.Action] == "" {
			continue
		}
		_, pkg, _ := strings.Cut(strings.TrimPrefix(e.Package, "github.com/"), "/")
		pkg = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(pkg, "pgx/v5"), "pq"), "/")
		out[strings.TrimSpace(pkg+" "+random.ReplaceAllString(e.Test, "/tmp"))] = words[e.Action]
	}
	return out
}

func runPgx(r *suiteRun) []byte {
	certs := filepath.Join(r.dir, "certs")
	tls := fmt.Sprintf("host=localhost port=%s dbname=pgx_test sslmode=verify-full sslrootcert=%s",
		r.port, certs+"/ca.pem")
	scram := tls + " user=pgx_ssl password=secret"
	user := func(name string) string {
		return r.dsn("user=" + name + " password=secret dbname=pgx_test sslmode=disable")
	}
	return r.command([]string{
		"PGX_TEST_DATABASE=" + r.dsn("user=postgres dbname=pgx_test sslmode=disable"),
		"PGX_TEST_TCP_CONN_STRING=" + r.dsn("user=postgres dbname=pgx_test sslmode=disable"),
		"PGX_TEST_MD5_PASSWORD_CONN_STRING=" + user("pgx_md5"),
		"PGX_TEST_PLAIN_PASSWORD_CONN_STRING=" + user("pgx_pw"),
		"PGX_TEST_SCRAM_PASSWORD_CONN_STRING=" + user("pgx_scram"),
		"PGX_TEST_SCRAM_PLUS_CONN_STRING=" + scram + " channel_binding=require",
		"PGX_TEST_TLS_CONN_STRING=" + scram,
		"PGX_TEST_TLS_CLIENT_CONN_STRING=" + tls + " user=pgx_sslcert sslcert=" + certs +
			"/pgx_sslcert.crt sslkey=" + certs + "/pgx_sslcert.key",
		"PGX_SSL_PASSWORD=certpw",
	}, "go", "test", "-json", "-count=1", "-p", "1", "./...")
}

// runLibpq leaves out, where it is bounded, connections that are to be made or lost within a time:
// a listener has 100 ms to log in, or the whole run ends.
func runLibpq(r *suiteRun) []byte {
	args := []string{"test", "-json", "-count=1", "-p", "1"}
	if r.isBounded {
		args = append(args, "-skip", "Listener|SSL|Connect|Reconnect|Timeout|Context|Cancel|Network|"+
			"BadConn|Dial|Service|Startup|Runtime|Open|Close|Protocol")
	}
	return r.command([]string{"PGDATABASE=pqgo", "PGUSER=pqgo"}, "go", append(args, "./...")...)
}

// runNodePostgres runs each program of the tests, and prints how it ended.
func runNodePostgres(r *suiteRun) []byte {
	pg := filepath.Join(r.dir, "holdfast/node_modules/pg")
	var files []string
	err := filepath.WalkDir(filepath.Join(pg, "test/integration"),
		func(path string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(path, "-tests.js") {
				files = append(files, strings.TrimPrefix(path, pg+"/"))
			}
			return err
		})
	if err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(files)
	script := "cd holdfast/node_modules/pg\n" +
		"node script/create-test-tables.js postgres:// >/dev/null\n"
	for _, f := range files {
		for _, mode := range []string{"", " binary"} {
			script += fmt.Sprintf("timeout 60 node %s postgres://%s 2>&1; c=$?; echo; "+
				"echo $c '%s%s'\n", f, mode, f, mode)
		}
	}
	tls := filepath.Join(r.dir, "holdfast/tls")
	return r.command([]string{"PGTESTNOSSL=", "NODE_EXTRA_CA_CERTS=" + tls + "/ca.pem",
		"TEST_TIMEOUT=20000"}, "bash", "-c", script)
}

func runDBDPg(r *suiteRun) []byte {
	_ = os.Remove(filepath.Join(r.dir, "README.testdatabase"))
	script := `for f in t/0[1-9]*.t t/[1-9]*.t; do
		timeout 300 perl -It/lib $f 2>&1 | sed -E "s#^((not )?ok) [0-9]+#\1 $f#"; done`
	return r.command([]string{"DBI_USER=postgres",
		fmt.Sprintf("DBI_DSN=dbi:Pg:host=%s;port=%s;dbname=postgres", r.host, r.port)},
		"bash", "-c", script)
}

// runPgRegress runs one of PostgreSQL's own drivers of tests, for an installed server.
func runPgRegress(program, schedule, database string) func(*suiteRun) []byte {
	return func(r *suiteRun) []byte {
		out, err := os.MkdirTemp("/tmp", "hf-regress-")
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { _ = os.RemoveAll(out) })
		script := fmt.Sprintf(`umask 000; chmod 777 %[1]s
			mkdir -p %[1]s/{results,testtablespace,sql,expected}
			./%[2]s --host %[3]s --port %[4]s --user postgres --bindir=%[5]s --inputdir=. \
			--outputdir=%[1]s --dlpath="$PWD" --max-concurrent-tests=20 --schedule=%[6]s \
			--dbname=%[7]s; cat %[1]s/regression.diffs`,
			out, program, r.host, r.port, proxytest.BinDir(r.t), schedule, database)
		return r.command(nil, "bash", "-c", script)
	}
}

func runLibpqPipeline(r *suiteRun) []byte {
	script := fmt.Sprintf(`for t in $(./libpq_pipeline tests); do
		./libpq_pipeline -r 1000 $t '%s' >/dev/null 2>&1; echo $? $t; done`,
		r.dsn("user=postgres dbname=postgres"))
	return r.command(nil, "bash", "-c", script)
}
