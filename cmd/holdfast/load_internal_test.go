package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"pgregory.net/rapid"
)

func TestCommitClockGap(t *testing.T) {
	c := NewCommitClock()
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	if got, _ := c.gapLocked(0, ms(100)); got != 0 {
		t.Errorf("a clock without commits has a gap of %v", got)
	}
	for _, at := range []int{10, 20, 30, 530, 540, 550} {
		c.recordLocked(ms(at))
	}
	for _, tt := range []struct{ from, to, want int }{
		{0, 550, 500},      // the whole
		{100, 200, 500},    // within the gap
		{0, 25, 10},        // before it
		{530, 550, 10},     // after it
		{540, 900, 350},    // since the last
		{600, 700, 150},    // all after the last
		{0, 31, 500},       // reaches into it
		{529, 10000, 9450}, // the longer of two
	} {
		if got, _ := c.gapLocked(ms(tt.from), ms(tt.to)); got != ms(tt.want) {
			t.Errorf("gap of %d..%d is %v, want %d ms", tt.from, tt.to, got, tt.want)
		}
	}
	got := c.Since(c.start.Add(ms(550)), ms(100), 6)
	if want := []int{3, 0, 0, 0, 0, 3}; !reflect.DeepEqual(got, want) {
		t.Errorf("Since = %v, want %v", got, want)
	}
}

// TestCommitClockAgainstPlain compares with a search over all pairs.
func TestCommitClockAgainstPlain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCommitClock()
		var times []time.Duration
		at := time.Duration(0)
		for _, d := range rapid.SliceOfN(rapid.IntRange(0, 20), 1, 30).Draw(t, "steps") {
			at += time.Duration(d)
			times = append(times, at)
			c.recordLocked(at)
		}
		from := time.Duration(rapid.IntRange(0, 300).Draw(t, "from"))
		to := from + time.Duration(rapid.IntRange(0, 300).Draw(t, "length"))
		want := max(0, to-at)
		for i := 1; i < len(times); i++ {
			if times[i] > from && times[i-1] < to {
				want = max(want, times[i]-times[i-1])
			}
		}
		if got, _ := c.gapLocked(from, to); got != want {
			t.Fatalf("gap of %d..%d over %v is %d, want %d", from, to, times, got, want)
		}
	})
}

func TestOutcomeOf(t *testing.T) {
	pg := func(severity, code string) error {
		return fmt.Errorf("wrapped: %w", &pgconn.PgError{Severity: severity, Code: code})
	}
	for name, tt := range map[string]struct {
		err  error
		want Outcome
	}{
		"none":            {nil, OutcomeAcknowledged},
		"40001":           {pg("ERROR", "40001"), OutcomeRefused},
		"57014":           {pg("ERROR", "57014"), OutcomeRefused},
		"25P02":           {pg("ERROR", "25P02"), OutcomeRefused},
		"rolled back":     {pgx.ErrTxCommitRollback, OutcomeRefused},
		"08007":           {pg("ERROR", "08007"), OutcomeInDoubt},
		"session ended":   {pg("FATAL", "57P01"), OutcomeInDoubt},
		"connection lost": {io.ErrUnexpectedEOF, OutcomeInDoubt},
		"anything else":   {errors.New("conn closed"), OutcomeInDoubt},
	} {
		if got := outcomeOf(tt.err); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

func TestDSNQuotes(t *testing.T) {
	cfg, err := pgx.ParseConfig(dsn("127.0.0.1:6432", "us er", "p@ss/w:rd", "data"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.User != "us er" || cfg.Password != "p@ss/w:rd" || cfg.Host != "127.0.0.1" ||
		cfg.Port != 6432 || cfg.Database != "data" {
		t.Errorf("%+v", cfg.Config)
	}
}

// TestLoadIgnoresPGVariables: what the user has set for databases of his own is none of the load's.
func TestLoadIgnoresPGVariables(t *testing.T) {
	for name, value := range map[string]string{
		"PGSSLMODE": "require", "PGOPTIONS": "-c search_path=x", "PGAPPNAME": "mine",
		"PGTARGETSESSIONATTRS": "standby", "PGSERVICE": "none", "PGPASSFILE": "/none",
	} {
		t.Setenv(name, value)
	}
	t.Setenv("NOTPG", "stays")
	if err := forgetPGVariables(); err != nil {
		t.Fatal(err)
	}
	cfg, err := pgx.ParseConfig(dsn("127.0.0.1:6432", "u", "p", "d"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.TLSConfig != nil || len(cfg.Fallbacks) > 0 || cfg.ValidateConnect != nil ||
		len(cfg.RuntimeParams) > 0 {
		t.Errorf("of the environment came %+v", cfg.Config)
	}
	if os.Getenv("NOTPG") != "stays" {
		t.Error("another variable is gone")
	}
	// A session without TLS, whatever pgx's own default is.
	t.Setenv("PGSSLMODE", "require")
	if cfg, err = pgx.ParseConfig(dsn("127.0.0.1:6432", "u", "p", "d")); err != nil ||
		cfg.TLSConfig != nil {
		t.Errorf("TLS %v, %v", cfg.TLSConfig, err)
	}
}

// TestCheckParent: a directory that PostgreSQL's account cannot enter is refused with a remedy.
func TestCheckParent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root runs PostgreSQL as another user")
	}
	if _, _, err := lookupAccount("postgres"); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "holdfast-parent")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	inner := filepath.Join(dir, "tmp")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := checkParent(inner); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("below a private directory: %v", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := checkParent(inner); err != nil {
		t.Errorf("below one that may be passed: %v", err)
	}
}
