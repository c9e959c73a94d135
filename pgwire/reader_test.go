package pgwire_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"

	"holdfast/pgwire"
)

func TestReader(t *testing.T) {
	stream := pgwire.AppendSync(pgwire.AppendQuery(nil, "SELECT 1"))
	stream = pgwire.AppendQuery(stream, string(bytes.Repeat([]byte("x"), 200_000)))
	for name, in := range map[string]io.Reader{
		"whole":    bytes.NewReader(stream),
		"one byte": iotest.OneByteReader(bytes.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			r := pgwire.NewReader(in, 1<<20)
			var got []string
			for {
				typ, b, err := r.ReadMessage()
				if err != nil {
					if !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("end of the stream: %v", err)
					}
					break
				}
				got = append(got, string(typ)+string(b[:min(len(b), 8)]))
			}
			want := []string{"QSELECT 1", "S", "Qxxxxxxxx"}
			if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
				t.Errorf("read %q, want %q", got, want)
			}
		})
	}
}

// TestReaderLimit: the limit is on the body, and the error comes before the body is read.
func TestReaderLimit(t *testing.T) {
	msg := pgwire.AppendMessage(nil, 'd', make([]byte, 100))
	if _, b, err := pgwire.NewReader(bytes.NewReader(msg), 100).ReadMessage(); err != nil ||
		len(b) != 100 {
		t.Errorf("at the limit: %d %v", len(b), err)
	}
	_, _, err := pgwire.NewReader(bytes.NewReader(msg[:5]), 99).ReadMessage()
	wantCode(t, err, pgwire.CodeProtocolViolation)
	_, _, err = pgwire.NewReader(bytes.NewReader([]byte("Q\xff\xff\xff\xff")), 99).ReadMessage()
	wantCode(t, err, pgwire.CodeProtocolViolation)
}

// TestReaderTruncatedIsNoCleanEnd: a message without its body is not the end between two
// messages (I4). It once was when not one byte of the body had come.
func TestReaderTruncatedIsNoCleanEnd(t *testing.T) {
	msg := pgwire.AppendQuery(nil, "SELECT 1")
	for n := 1; n < len(msg); n++ {
		_, _, err := pgwire.NewReader(bytes.NewReader(msg[:n]), 1<<20).ReadMessage()
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes of %d: %v", n, len(msg), err)
		}
	}
	st := pgwire.AppendStartup(nil, pgwire.Protocol3, []pgwire.Param{{Name: "user", Value: "a"}})
	for n := 1; n < len(st); n++ {
		_, err := pgwire.ReadStartup(pgwire.NewReader(bytes.NewReader(st[:n]), 1<<20))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("startup, %d bytes of %d: %v", n, len(st), err)
		}
	}
}

// TestReaderMemoryFollowsBytes: a claim of 1 GB costs nothing (I3).
func TestReaderMemoryFollowsBytes(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	in := bytes.NewReader([]byte("Q\x3f\xff\xff\xff some bytes"))
	if _, _, err := pgwire.NewReader(in, 1<<30).ReadMessage(); err == nil {
		t.Fatal("no error")
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
}

func TestReaderBuffered(t *testing.T) {
	stream := append(pgwire.AppendSync(nil), "rest"...)
	r := pgwire.NewReader(bytes.NewReader(stream), 100)
	if _, _, err := r.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	if got := string(r.Buffered()); got != "rest" {
		t.Errorf("buffered %q", got)
	}
}
