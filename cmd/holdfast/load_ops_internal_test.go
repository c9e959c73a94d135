package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// TestTally: an increment that was done twice, or not at all, shows in the next answer.
func TestTally(t *testing.T) {
	const ack, refused, doubt = OutcomeAcknowledged, OutcomeRefused, OutcomeInDoubt
	type step struct {
		o Outcome
		n int64
	}
	for name, tt := range map[string]struct {
		steps []step
		wrong bool
	}{
		"one by one":            {[]step{{ack, 1}, {ack, 2}, {refused, 0}, {ack, 3}}, false},
		"twice":                 {[]step{{ack, 1}, {ack, 3}}, true},
		"lost":                  {[]step{{ack, 1}, {ack, 1}}, true},
		"refused and done":      {[]step{{ack, 1}, {refused, 0}, {ack, 3}}, true},
		"in doubt, done":        {[]step{{ack, 1}, {doubt, 0}, {ack, 3}}, false},
		"in doubt, not done":    {[]step{{ack, 1}, {doubt, 0}, {ack, 2}}, false},
		"in doubt, done twice":  {[]step{{ack, 1}, {doubt, 0}, {ack, 4}}, true},
		"doubt ends with a row": {[]step{{doubt, 0}, {ack, 1}, {ack, 3}}, true},
		"the first is not one":  {[]step{{ack, 2}}, true},
	} {
		var c tally
		var wrong error
		for _, s := range tt.steps {
			err := c.counted(s.o, s.n, nil)
			wrong = errors.Join(wrong, err)
		}
		if (wrong != nil) != tt.wrong {
			t.Errorf("%s: %v", name, wrong)
		}
	}
}

// TestCodeOf: what is counted under which word.
func TestCodeOf(t *testing.T) {
	for want, err := range map[string]error{
		"":                   nil,
		"40001":              fmt.Errorf("x: %w", &pgconn.PgError{Code: "40001"}),
		"rolled back":        errTakenBack,
		"COMMIT rolled back": pgx.ErrTxCommitRollback,
		"connection lost":    io.ErrUnexpectedEOF,
	} {
		if got := codeOf(err); got != want {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
	}
}

// TestLoadOpsHaveNames: each kind has its own line in the report, and fits into a string.
func TestLoadOpsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for _, op := range loadOps {
		if seen[op.kind] {
			t.Errorf("%q is there twice", op.kind)
		}
		seen[op.kind] = true
	}
	got := newCommand(insertSQL, 7, -1, "transfer, one string").literal()
	if want := "INSERT INTO demo.ledger VALUES (7, -1, 'transfer, one string')"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestCutConnections cuts what goes to one address, from another descriptor of the same process,
// and nothing else.
func TestCutConnections(t *testing.T) {
	dial := func() (net.Conn, net.Conn, string) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = client.Close(), server.Close() })
		return client, server, l.Addr().String()
	}
	client, server, addr := dial()
	other, otherServer, _ := dial()
	n, err := cutConnections(os.Getpid(), addr)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip(err)
	}
	if err != nil || n != 1 {
		t.Fatalf("%d connections were cut, %v; want 1", n, err)
	}
	for _, c := range []net.Conn{client, server} {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read on a cut connection: %v, want its end", err)
		}
	}
	if _, err := other.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	_ = otherServer.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := otherServer.Read(make([]byte, 1)); err != nil {
		t.Errorf("read on the other connection: %v", err)
	}
}
