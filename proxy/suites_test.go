package proxy_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/proxy"
)

var suitesDir = flag.String("suites.dir", "",
	"directory with drivers' own tests, as scripts/suites.sh makes it")

// suite is the tests of a driver, or of PostgreSQL itself: the results are those of a direct
// connection, or there is a reason.
type suite struct {
	name string
	dir  string // below that of all suites; empty is the name
	// hba are the rules by which logins are checked: pg_hba.conf of the server without a proxy, and
	// those of the proxy with one. None is trust.
	hba []string
	// tls are the server's certificate, its key, and the authority of clients, in the directory.
	tls [3]string
	// inner lets the proxy use TLS to the server as well: some tests ask pg_stat_ssl, which tells of
	// the server's own connection.
	inner bool
	// setup is SQL that psql runs in the database postgres first, directly.
	setup string
	// run runs the tests; what they print is judged by parse.
	run   func(*suiteRun) []byte
	parse func([]byte) map[string]string
	// differs has what is expected to differ, and why.
	differs map[string]string
}

// suiteRun is one of the two runs of a suite: directly, or through the proxy.
type suiteRun struct {
	t          *testing.T
	dir        string // of the suite
	host, port string
	isBounded  bool // nothing that depends on time
}

const (
	passed  = "passed"
	failed  = "failed"
	skipped = "skipped"
)

// TestSuites: what the authors of drivers test has the same results through the proxy as without
// it. Without a directory it is the one suite that takes seconds and comes with a Go module.
func TestSuites(t *testing.T) {
	if testing.Short() {
		t.Skip("slow, and other programs than the race detector looks at")
	}
	isBounded := *suitesDir == ""
	if isBounded {
		*suitesDir = t.TempDir()
		out, err := osexec.Command("../scripts/suites.sh", *suitesDir, "libpq").CombinedOutput()
		if err != nil {
			t.Fatalf("scripts/suites.sh: %v\n%s", err, out)
		}
		defer func() { *suitesDir = "" }()
	}
	for i := range suites {
		s := &suites[i]
		if isBounded && s.name != "libpq" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			dir, err := filepath.Abs(filepath.Join(*suitesDir, cmp.Or(s.dir, s.name)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); err != nil {
				t.Skipf("it could not be fetched: %v", err)
			}
			directly := s.results(t, &suiteRun{dir: dir, isBounded: isBounded}, false)
			through := s.results(t, &suiteRun{dir: dir, isBounded: isBounded}, true)
			s.compare(t, directly, through)
		})
	}
}

// results runs the suite on a new server.
func (s *suite) results(t *testing.T, run *suiteRun, through bool) (out map[string]string) {
	dir := run.dir
	name := map[bool]string{false: "directly", true: "through"}[through]
	t.Run(name, func(t *testing.T) {
		tls := s.tls
		for i := range tls {
			if tls[i] != "" {
				tls[i] = filepath.Join(dir, tls[i])
			}
		}
		hba := s.hba
		if hba == nil {
			hba = []string{"host all all all trust", "host replication all all trust"}
		}
		r := newRig(t, func(c *proxy.Config) {
			c.HBA = hba
			if tls[0] != "" {
				c.TLS.Mode, c.TLS.CertFile, c.TLS.KeyFile = proxy.TLSAllow, tls[0], tls[1]
				c.TLS.ClientCAFile = tls[2]
				if s.inner {
					c.ServerTLS.Mode = proxy.SSLRequire
				}
			}
		})
		run.t = t
		to := fmt.Sprintf("127.0.0.1:%d", r.server.Port)
		trust := "host all all all trust\nhost replication all all trust\n"
		r.server.SetHBA(trust)
		run.host, run.port, _ = net.SplitHostPort(to)
		if s.setup != "" {
			run.command(nil, "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-f",
				filepath.Join(dir, s.setup), "postgres")
		}
		if tls[0] != "" && (!through || s.inner) {
			r.server.UseTLS(tls[0], tls[1], tls[2])
		}
		r.bare()
		if through {
			to = r.proxy.Addrs()[0].String()
		} else {
			r.server.SetHBA(strings.Join(hba, "\n") + "\nhost all postgres all trust\n")
		}
		run.host, run.port, _ = net.SplitHostPort(to)
		text := s.run(run)
		out = s.parse(text)
		counts := make(map[string]int)
		for _, result := range out {
			counts[result]++
		}
		t.Logf("%d tests: %v", len(out), counts)
		log := filepath.Join(dir, "holdfast-"+name+".log")
		if err := os.WriteFile(log, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if counts[passed] == 0 {
			t.Errorf("none passed; see %s\n%.2000s", log, text)
		}
	})
	return out
}

// compare tells what differs without a reason, and which reasons are void.
func (s *suite) compare(t *testing.T, directly, through map[string]string) {
	names := maps.Clone(directly)
	maps.Copy(names, through)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, b := directly[name], through[name]
		why, isKnown := s.differs[name]
		switch {
		case a == b && isKnown:
			t.Logf("%s: does not differ here, though it may: %s", name, why)
		case a != b && isKnown:
			t.Logf("%s: %s directly, %s through: %s", name, a, b, why)
		case a != b:
			t.Errorf("%s: %q directly, %q through the proxy", name, a, b)
		}
	}
}

// command runs a program in the suite's directory with PostgreSQL's environment variables, and
// returns what it prints; that it fails is no matter, its results tell.
func (r *suiteRun) command(env []string, name string, args ...string) []byte {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := osexec.CommandContext(ctx, name, args...)
	cmd.Dir = r.dir
	cmd.Env = append(append(os.Environ(), "PGHOST="+r.host, "PGPORT="+r.port, "PGUSER=postgres",
		"PGDATABASE=postgres", "PYTHONDONTWRITEBYTECODE=1"), env...)
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	var ee *osexec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &ee) {
		r.t.Fatalf("%s: %v", name, err)
	}
	if ctx.Err() != nil {
		r.t.Errorf("%s took too long", name)
	}
	return out.Bytes()
}

// dsn is the address with these options.
func (r *suiteRun) dsn(options string) string {
	return fmt.Sprintf("host=%s port=%s %s", r.host, r.port, options)
}

// parseLines reads results of which each is on a line: form has the groups name and result, and
// words says what results are called.
func parseLines(form string, words map[string]string) func([]byte) map[string]string {
	re := regexp.MustCompile("(?m)" + form)
	name, result := re.SubexpIndex("name"), re.SubexpIndex("result")
	return func(text []byte) map[string]string {
		out := make(map[string]string)
		for _, m := range re.FindAllSubmatch(text, -1) {
			if word, ok := words[string(m[result])]; ok {
				out[string(m[name])] = word
			}
		}
		return out
	}
}
