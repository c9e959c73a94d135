package proxy_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// A server that lies before a session has begun costs that login an error, within the time that it
// has, and the others nothing.
func TestLyingLogins(t *testing.T) {
	r, s := liarRigWith(t, func(c *proxy.Config) {
		c.HoldTimeout, c.DialTimeout = time.Second, 500*time.Millisecond
	})
	ok, idle := pgwire.AppendAuthOK(nil), pgwire.AppendReadyForQuery(nil, 'I')
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	auth := func(body string) []byte { return pgwire.AppendMessage(nil, 'R', []byte(body)) }
	key := pgwire.AppendBackendKeyData(nil, 1, []byte{1, 2, 3, 4})
	var params []byte
	for i := range 3000 {
		params = pgwire.AppendParameterStatus(params, strings.Repeat("p", i%50+1), "x")
	}
	row := func(cols ...string) []byte {
		var values [][]byte
		for _, c := range cols {
			values = append(values, []byte(c))
		}
		return cat(pgwire.AppendDataRow(nil, values...), pgwire.AppendCommandComplete(nil, "SELECT 1"),
			idle)
	}
	s.logins = map[string][]byte{
		"nothing":           nil,
		"a letter":          {'S'},
		"length 0":          {'R', 0, 0, 0, 0},
		"length 0xffffffff": {'R', 255, 255, 255, 255},
		"1 GB":              {'R', 0x3f, 255, 255, 255},
		"no method":         auth(""),
		"a method of 99":    auth("\x00\x00\x00\x63"),
		"MD5 with no salt":  auth("\x00\x00\x00\x05"),
		"SASL with no end":  auth("\x00\x00\x00\x0aSCRAM-SHA-256"),
		"SASL with nothing": auth("\x00\x00\x00\x0a\x00"),
		"SASL all at once":  cat(auth("\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"), auth("\x00\x00\x00\x0c")),
		"in twice":          cat(ok, ok, key, idle),
		"asks when it is in": cat(ok, auth("\x00\x00\x00\x03"), key,
			idle),
		"rows":        cat(ok, pgwire.AppendDataRow(nil, []byte("x")), idle),
		"half a key":  cat(ok, pgwire.AppendMessage(nil, 'K', []byte("123")), idle),
		"3000 params": cat(ok, params, key, idle),
		"30 MB of params": cat(ok, bytes.Repeat(pgwire.AppendParameterStatus(nil, "p",
			strings.Repeat("x", 3<<20)), 10), key, idle),
		"a status":       cat(ok, key, pgwire.AppendReadyForQuery(nil, 'X')),
		"no status":      cat(ok, key, []byte("Z\x00\x00\x00\x04")),
		"half an error":  []byte("E\x00\x00\x00\x0aMno en"),
		"a text":         []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"in, and no key": cat(ok, idle),
	}
	s.checks = map[string][]byte{
		"no row":        idle,
		"one column":    row("17"),
		"none":          row(),
		"another start": row("18", "f", "1767225600000000", "none"),
		"a standby":     row("17", "t", "1767225600000000", "none"),
		"no number":     row("17", "f", "yesterday", "none"),
		"an error": cat(pgwire.AppendError(nil, &pgwire.Error{
			Severity: "ERROR", Code: "XX000", Message: "x"}), idle),
		"two answers": cat(row("17", "f", "1767225600000000", "none"), row("17", "f", "1", "none")),
		"a huge row":  {'D', 0x3f, 255, 255, 255},
	}
	other := r.connect("")
	var turn sync.Mutex // of those who use it
	try := func(t *testing.T, database string, mayPass bool) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		before := heap()
		c, err := dial(ctx, r.dsn("dbname='"+database+"'"))
		closeConn(c)
		if (err == nil && !mayPass) || ctx.Err() != nil {
			t.Errorf("it came to %v", err)
		}
		if grown := int64(heap()) - int64(before); grown > 16<<20 {
			t.Errorf("memory grew by %d MB", grown>>20)
		}
		if v := exec(t, r.connect(""), "SELECT 7"); v != "7" {
			t.Errorf("another login: %q", v)
		}
		turn.Lock()
		defer turn.Unlock()
		if v := exec(t, other, "SELECT 7"); v != "7" {
			t.Errorf("another session: %q", v)
		}
	}
	for name := range s.logins {
		t.Run(name, func(t *testing.T) { t.Parallel(); try(t, name, false) })
	}
	for name := range s.checks {
		t.Run(name, func(t *testing.T) { t.Parallel(); try(t, name, name == "two answers") })
	}
}
