package proxy_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"holdfast/pgwire"
)

const (
	largeStatement = 100 << 20
	largeRow       = 500 << 20
	// largeMemory is what the proxy, and this test beside it, may take meanwhile.
	largeMemory = 8 << 20
)

// largeText is a message whose body has size bytes x between head and tail.
type largeText struct {
	typ        byte
	head, tail []byte
	size       int
}

// sendTo writes it in parts.
func (m largeText) sendTo(w io.Writer) error {
	first := binary.BigEndian.AppendUint32([]byte{m.typ}, uint32(4+len(m.head)+m.size+len(m.tail)))
	_, err := w.Write(append(first, m.head...))
	part := bytes.Repeat([]byte("x"), 1<<20)
	for sent := 0; sent < m.size && err == nil; sent += len(part) {
		_, err = w.Write(part[:min(len(part), m.size-sent)])
	}
	if err == nil {
		_, err = w.Write(m.tail)
	}
	return err
}

// Statements of 100 MB, as a Query and as a Parse, a parameter of 100 MB, and a row of 500 MB pass
// in little memory.
func TestLargeMessages(t *testing.T) {
	r := newRig(t, nil)
	r.bare()
	w := hijack(t, r.connect(""))
	before := heap()
	grown := func(peak uint64) {
		t.Helper()
		if grown := int64(peak) - int64(before); grown > largeMemory {
			t.Errorf("memory grew by %d KB", grown>>10)
		}
	}
	query := largeText{pgwire.CliQuery, []byte("SELECT length('"), []byte("')\x00"), largeStatement}
	parse := largeText{pgwire.CliParse, []byte("\x00SELECT length('"), []byte("')\x00\x00\x00"),
		largeStatement}
	param := binary.BigEndian.AppendUint32([]byte("\x00\x00\x00\x00\x00\x01"), largeStatement)
	bind := largeText{pgwire.CliBind, param, []byte("\x00\x00"), largeStatement}
	run := pgwire.AppendSync(pgwire.AppendExecute(nil, "", 0))
	for name, c := range map[string]struct {
		first  []byte
		large  largeText
		behind []byte
	}{
		"a Query":     {nil, query, nil},
		"a Parse":     {nil, parse, append(pgwire.AppendBind(nil, "", ""), run...)},
		"a parameter": {pgwire.AppendParse(nil, "", "SELECT length($1)", nil), bind, run},
	} {
		t.Run(name, func(t *testing.T) {
			sent := make(chan error, 1)
			go func() {
				_, err := w.c.Write(c.first)
				if err == nil {
					err = c.large.sendTo(w.c)
				}
				if err == nil {
					_, err = w.c.Write(c.behind)
				}
				sent <- err
			}()
			length := ""
			_ = w.c.SetReadDeadline(time.Now().Add(60 * time.Second))
			for typ := byte(0); typ != 'Z'; {
				var body []byte
				var err error
				if typ, body, err = w.r.ReadMessage(); err != nil {
					t.Fatal(err)
				}
				if typ == 'D' {
					length = string(body[6:])
				}
				if typ == 'E' {
					t.Errorf("answered by %q", body)
				}
			}
			grown(heap())
			if err := <-sent; err != nil || length != "104857600" {
				t.Errorf("%q of 104857600 bytes came, %v", length, err)
			}
		})
	}
	t.Run("a row", func(t *testing.T) {
		w.send(pgwire.AppendQuery(nil, "SELECT repeat('x', 500 * 1024 * 1024)"))
		xs, peak := countRow(t, w)
		grown(peak)
		if xs != largeRow {
			t.Errorf("%d bytes of the row came", xs)
		}
	})
}

// countRow reads up to ReadyForQuery, and returns how many x came and the most memory meanwhile.
func countRow(t *testing.T, w *raw) (xs int, peak uint64) {
	t.Helper()
	ready := pgwire.AppendReadyForQuery(nil, pgwire.TxIdle)
	part, n := make([]byte, 64<<10), 0
	var last []byte
	_ = w.c.SetReadDeadline(time.Now().Add(60 * time.Second))
	for next := 0; !bytes.Equal(last, ready); {
		m, err := w.from.Read(part)
		if err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		xs += bytes.Count(part[:m], []byte("x"))
		last = append(last, part[max(0, m-len(ready)):m]...)
		last = last[max(0, len(last)-len(ready)):]
		if n += m; n >= next {
			peak, next = max(peak, heap()), next+50<<20
		}
	}
	return xs, peak
}
