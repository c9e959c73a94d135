package pgwire_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"holdfast/pgwire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wantCode fails the test unless err is an *Error of that SQLSTATE.
func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var e *pgwire.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v, want an *Error of SQLSTATE %s", err, code)
	}
	if e.Code != code {
		t.Fatalf("error is %v, want SQLSTATE %s", e, code)
	}
}

// split takes one message apart.
func split(t testing.TB, msg []byte) (byte, []byte) {
	t.Helper()
	if len(msg) < pgwire.HeaderLen {
		t.Fatalf("message of %d bytes has no header", len(msg))
	}
	typ, n, err := pgwire.Header(msg)
	if err != nil {
		t.Fatal(err)
	}
	if n != len(msg)-pgwire.HeaderLen {
		t.Fatalf("message %q: length says %d, there are %d", typ, n, len(msg)-pgwire.HeaderLen)
	}
	return typ, msg[pgwire.HeaderLen:]
}
