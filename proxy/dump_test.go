package proxy_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// dumpSetup is what psql makes to be dumped: DIR is where its files are. \watch ends by itself when
// its statement fails, which all versions of psql know; that it counts, only newer ones.
const dumpSetup = `
CREATE SCHEMA shop;
CREATE TABLE shop.item (id int PRIMARY KEY, name text NOT NULL, price numeric(10,2));
CREATE TABLE shop.sale (id serial PRIMARY KEY, item int REFERENCES shop.item, at timestamptz
  DEFAULT '2026-11-29 12:00+00', note bytea);
CREATE INDEX ON shop.sale (item);
CREATE VIEW shop.dear AS SELECT * FROM shop.item WHERE price > 500;
CREATE FUNCTION shop.total(text) RETURNS numeric LANGUAGE plpgsql STABLE AS $$BEGIN
  RETURN (SELECT sum(price) FROM shop.item WHERE name LIKE $1); END$$;
\copy shop.item FROM 'DIR/rows'
INSERT INTO shop.sale (item, note) SELECT id, decode(md5(name), 'hex') FROM shop.item;
\copy (SELECT * FROM shop.item ORDER BY id) TO 'DIR/rows.out'
\lo_import 'DIR/large' 'by lo_import'
\lo_export :LASTOID 'DIR/large.out'
BEGIN;
SELECT lo_create(0) AS made \gset
SELECT lo_open(:made, x'60000'::int) AS fd \gset
SELECT lowrite(:fd, 'by lowrite');
SELECT lo_lseek(:fd, 3, 0);
SELECT convert_from(loread(:fd, 100), 'UTF8');
COMMIT;
CREATE SEQUENCE shop.turns;
SELECT 'turn', 12 / (4 - nextval('shop.turns')) \watch 0.05
SELECT 'total', shop.total('item%');
`

// psql's own commands, and pg_dump and pg_restore with connections side by side, through the proxy:
// what was dumped and restored is dumped as it was.
func TestDumpAndRestore(t *testing.T) {
	r := newRig(t, nil)
	r.server.Exec("CREATE DATABASE copy OWNER app")
	r.server.Exec("CREATE DATABASE again OWNER app")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	var rows strings.Builder
	for i := range 20000 {
		rows.WriteString(strings.Join([]string{strconv.Itoa(i), "item " + strconv.Itoa(i) + "\\tä",
			strconv.Itoa(i%1000) + ".50"}, "\t") + "\n")
	}
	large := strings.Repeat("\x00large object\xff", 300_000)
	for name, text := range map[string]string{"rows": rows.String(), "large": large} {
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(stdin, name string, args ...string) string {
		t.Helper()
		cmd := r.tool(ctx, name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		var said, failed bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &failed
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s%s", name, err, said.String(), failed.String())
		}
		return said.String() + failed.String()
	}
	dsn := func(database string) string {
		return strings.Replace(r.dsn(""), "dbname=app", "dbname="+database, 1)
	}
	said := run(strings.ReplaceAll(dumpSetup, "DIR", dir), "psql", "-X", "-A", "-t", "-d", dsn("app"))
	for want, n := range map[string]int{"COPY 20000\n": 2, "lo_import ": 1, "lo_export\n": 1,
		"lowrite\n": 1, "turn|": 3, "turn|12\n": 1, "division by zero": 1, "total|10000000.00\n": 1,
		"ERROR": 1} {
		if got := strings.Count(said, want); got != n {
			t.Errorf("psql says %q %d times, not %d:\n%s", want, got, n, said)
		}
	}
	for name, want := range map[string]string{"rows.out": rows.String(), "large.out": large} {
		if got, err := os.ReadFile(path(name)); err != nil || string(got) != want {
			t.Errorf("%s: %v, %d bytes of %d", name, err, len(got), len(want))
		}
	}
	plain := func(database string) string {
		return unkeyed(run("", "pg_dump", "-d", dsn(database)))
	}
	first := plain("app")
	for _, want := range []string{"by lo_import", "shop.dear", "shop.total", "lowrite(0,", "19999\t"} {
		if !strings.Contains(first, want) {
			t.Errorf("the dump has no %s", want)
		}
	}
	run("", "pg_dump", "-d", dsn("app"), "-Fc", "-b", "-f", path("custom"))
	run("", "pg_dump", "-d", dsn("app"), "-Fd", "-j", "2", "-f", path("directory"))
	run("", "pg_restore", "-d", dsn("copy"), "-j", "2", "--exit-on-error", path("custom"))
	run("", "pg_restore", "-d", dsn("again"), "-j", "2", "--exit-on-error", path("directory"))
	for _, database := range []string{"copy", "again"} {
		if got := plain(database); got != first {
			t.Errorf("%s is dumped otherwise: %d bytes, not %d", database, len(got), len(first))
		}
	}
}

// unkeyed leaves out the lines of a dump that have a random key in them (CVE-2025-8714).
func unkeyed(dump string) string {
	var out []string
	for _, line := range strings.SplitAfter(dump, "\n") {
		if !strings.HasPrefix(line, `\restrict `) && !strings.HasPrefix(line, `\unrestrict `) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}
