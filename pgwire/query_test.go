package pgwire_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/pgwire/pgwiretest"
)

// query runs SELECT 1 against a server that answers with these bytes.
func query(t *testing.T, answer []byte) ([][][]byte, error) {
	t.Helper()
	conn := pgwiretest.Serve(t,
		pgwiretest.ExpectBody(pgwire.CliQuery, []byte("SELECT 1\x00")), pgwiretest.Send(answer))
	return pgwire.SimpleQuery(conn, pgwire.NewReader(conn, 1<<20), "SELECT 1")
}

func TestSimpleQuery(t *testing.T) {
	b := pgwire.AppendRowDescription(nil, "a", "b")
	b = pgwire.AppendNotice(b, pgwire.NewError("00000", "a notice"))
	b = pgwire.AppendDataRow(b, []byte("x"), nil)
	b = pgwire.AppendDataRow(b, []byte{}, []byte("y"))
	b = pgwire.AppendCommandComplete(b, "SELECT 2")
	got, err := query(t, pgwire.AppendReadyForQuery(b, 'I'))
	want := [][][]byte{{[]byte("x"), nil}, {{}, []byte("y")}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestSimpleQueryError: an ERROR is returned when the connection is ready again.
func TestSimpleQueryError(t *testing.T) {
	e := pgwire.NewError("42P01", "no such table")
	conn := pgwiretest.Serve(t, pgwiretest.Expect(pgwire.CliQuery),
		pgwiretest.Send(pgwire.AppendReadyForQuery(pgwire.AppendError(nil, e), 'E')),
		pgwiretest.Expect(pgwire.CliQuery),
		pgwiretest.Send(pgwire.AppendReadyForQuery(nil, 'I')))
	r := pgwire.NewReader(conn, 1<<20)
	_, err := pgwire.SimpleQuery(conn, r, "SELECT 1")
	wantCode(t, err, "42P01")
	if rows, err := pgwire.SimpleQuery(conn, r, "ROLLBACK"); err != nil || rows != nil {
		t.Errorf("after an error: %v %v", rows, err)
	}
}

// TestSimpleQueryFatal: nothing is waited for behind a FATAL.
func TestSimpleQueryFatal(t *testing.T) {
	for _, severity := range []string{"FATAL", "PANIC"} {
		e := pgwire.NewError(pgwire.CodeAdminShutdown, "terminating connection")
		e.Severity = severity
		_, err := query(t, pgwire.AppendError(nil, e))
		wantCode(t, err, pgwire.CodeAdminShutdown)
	}
}

func TestSimpleQueryRefuses(t *testing.T) {
	_, err := query(t, pgwire.AppendMessage(nil, 'D', []byte("\x00\x01\xff\xff\xff\xfe")))
	wantCode(t, err, pgwire.CodeProtocolViolation)
	if _, ok := err.(*pgwire.Error); ok {
		t.Error("the connection counts as ready again, though more may come")
	}
	row := pgwire.AppendDataRow(nil, bytes.Repeat([]byte("x"), 1<<19))
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		_, _ = io.CopyN(io.Discard, server, int64(len(pgwire.AppendQuery(nil, "SELECT 1"))))
		_, _ = server.Write(bytes.Repeat(row, 34)) // to its end, or that of the client
	}()
	_, err = pgwire.SimpleQuery(client, pgwire.NewReader(client, 1<<20), "SELECT 1")
	wantCode(t, err, pgwire.CodeProgramLimit)
	if _, ok := err.(*pgwire.Error); ok {
		t.Error("the connection counts as ready again, though rows are left")
	}
	_, err = query(t, pgwire.AppendMessage(nil, 'E', []byte("S")))
	wantCode(t, err, pgwire.CodeProtocolViolation)
	if _, err = query(t, []byte("D\x00\x00")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("truncated: %v", err)
	}
	for _, typ := range []byte("GHW") { // the server would wait for data that never comes
		_, err = query(t, pgwire.AppendMessage(nil, typ, []byte("\x00\x00\x00")))
		wantCode(t, err, pgwire.CodeFeatureNotSupported)
	}
}

// TestSimpleQueryIsBounded: rows without an end, of many bytes or of none.
func TestSimpleQueryIsBounded(t *testing.T) {
	for name, row := range map[string][]byte{
		"large": pgwire.AppendDataRow(nil, make([]byte, 1<<19)),
		"empty": bytes.Repeat(pgwire.AppendDataRow(nil), 1<<14),
	} {
		t.Run(name, func(t *testing.T) {
			conn := pgwiretest.Serve(t, pgwiretest.Expect(pgwire.CliQuery), sendForever(row))
			_, err := pgwire.SimpleQuery(conn, pgwire.NewReader(conn, 1<<20), "SELECT 1")
			wantCode(t, err, pgwire.CodeProgramLimit)
		})
	}
}

// sendForever sends b until the client is gone.
func sendForever(b []byte) pgwiretest.Step {
	return func(p *pgwiretest.Peer) error {
		for {
			if _, err := p.Conn.Write(b); errors.Is(err, io.ErrClosedPipe) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
}

// cancel sends a CancelRequest to a server that follows the steps.
func cancel(ctx context.Context, t *testing.T, steps ...pgwiretest.Step) error {
	t.Helper()
	conn := pgwiretest.Serve(t, steps...)
	return pgwire.SendCancel(ctx, "db:5432", 7, []byte("a longer key"),
		func(_ context.Context, network, addr string) (net.Conn, error) {
			if network != "tcp" || addr != "db:5432" {
				t.Errorf("dialed %s %s", network, addr)
			}
			return conn, nil
		})
}

func expectCancel(p *pgwiretest.Peer) error {
	st, err := pgwire.ReadStartup(p.Reader)
	if err == nil && (st.Kind != pgwire.StartupCancel || st.CancelPID != 7 ||
		string(st.CancelKey) != "a longer key") {
		err = errors.New("no such cancel request")
	}
	return err
}

// TestSendCancel waits until the server has hung up, which is when it has taken notice.
func TestSendCancel(t *testing.T) {
	closed := false
	err := cancel(t.Context(), t, expectCancel, func(p *pgwiretest.Peer) error {
		time.Sleep(20 * time.Millisecond)
		closed = true
		return p.Conn.Close()
	})
	if err != nil || !closed {
		t.Errorf("closed %v, %v", closed, err)
	}
}

// TestSendCancelObeysContext: a server that does not hang up holds nobody longer than the
// context. Only its deadline was looked at once.
func TestSendCancelObeysContext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	start := time.Now()
	wait := func(p *pgwiretest.Peer) error {
		stop()
		_, _ = p.Conn.Read(make([]byte, 1)) // until the client hangs up
		return nil
	}
	if err := cancel(ctx, t, expectCancel, wait); err == nil {
		t.Error("no error though the server did not take notice")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	ctx, stop = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if err := cancel(ctx, t, expectCancel, func(p *pgwiretest.Peer) error {
		_, _ = p.Conn.Read(make([]byte, 1))
		return nil
	}); err == nil || !strings.Contains(err.Error(), "wait for the server") {
		t.Errorf("deadline: %v", err)
	}
}

func TestSendCancelDialError(t *testing.T) {
	want := errors.New("no route")
	err := pgwire.SendCancel(t.Context(), "db:5432", 7, nil,
		func(context.Context, string, string) (net.Conn, error) { return nil, want })
	if !errors.Is(err, want) {
		t.Error(err)
	}
}
