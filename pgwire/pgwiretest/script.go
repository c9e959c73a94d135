package pgwiretest

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"

	"holdfast/pgwire"
)

// Peer is the server's end of a connection, as the steps of a script see it.
type Peer struct {
	Conn   net.Conn
	Reader *pgwire.Reader
}

// Step is one step of a script. An error ends the script and fails the test.
type Step func(p *Peer) error

// scriptTimeout bounds a whole script, so that a test whose client waits for more ends.
const scriptTimeout = 10 * time.Second

// Serve runs the steps in a goroutine and returns the client's end. The server's end is closed
// when the script has ended; the test's cleanup closes the client's end and waits for the script.
func Serve(t testing.TB, steps ...Step) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	deadline := time.Now().Add(scriptTimeout)
	_ = client.SetDeadline(deadline)
	_ = server.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		defer server.Close()
		done <- run(server, steps)
	}()
	t.Cleanup(func() {
		_ = client.Close()
		if err := <-done; err != nil {
			t.Errorf("script: %v", err)
		}
	})
	return client
}

func run(conn net.Conn, steps []Step) error {
	p := &Peer{Conn: conn, Reader: pgwire.NewReader(conn, 1<<20)}
	for i, step := range steps {
		if err := step(p); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

// ExpectStartup reads a StartupMessage that has exactly these parameters.
func ExpectStartup(params ...pgwire.Param) Step {
	return func(p *Peer) error {
		st, err := pgwire.ReadStartup(p.Reader)
		if err != nil {
			return err
		}
		if fmt.Sprint(st.Params) != fmt.Sprint(params) {
			return fmt.Errorf("parameters %v, want %v", st.Params, params)
		}
		return nil
	}
}

// Expect reads a message of that type.
func Expect(typ byte) Step {
	return Answer(typ, func([]byte) ([]byte, error) { return nil, nil })
}

// ExpectBody reads a message of that type and body.
func ExpectBody(typ byte, body []byte) Step {
	return Answer(typ, func(got []byte) ([]byte, error) {
		if !bytes.Equal(got, body) {
			return nil, fmt.Errorf("body %q, want %q", got, body)
		}
		return nil, nil
	})
}

// Answer reads a message of that type and sends what answer makes of its body.
func Answer(typ byte, answer func(body []byte) ([]byte, error)) Step {
	return func(p *Peer) error {
		got, body, err := p.Reader.ReadMessage()
		if err != nil {
			return err
		}
		if got != typ {
			return fmt.Errorf("message %q, want %q", got, typ)
		}
		reply, err := answer(body)
		if err != nil || len(reply) == 0 {
			return err
		}
		_, err = p.Conn.Write(reply)
		return err
	}
}

// Send sends bytes as they are.
func Send(b []byte) Step {
	return func(p *Peer) error {
		_, err := p.Conn.Write(b)
		return err
	}
}

// Close closes the connection, which the end of a script does too.
func Close() Step {
	return func(p *Peer) error { return p.Conn.Close() }
}
