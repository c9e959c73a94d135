package pgwire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"holdfast/pgwire"
)

// packet is a first packet with any code and a length that is true.
func packet(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(b, code), body...)
}

func readStartup(b []byte) (pgwire.Startup, error) {
	return pgwire.ReadStartup(pgwire.NewReader(bytes.NewReader(b), 1<<20))
}

const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSS    = 80877104
)

func TestReadStartup(t *testing.T) {
	user := []pgwire.Param{{Name: "user", Value: "joe"}}
	negotiate := func(version uint32, opts ...string) []byte {
		return pgwire.AppendNegotiateProtocol(nil, version, opts)
	}
	for _, c := range []struct {
		name   string
		packet []byte
		want   pgwire.Startup
	}{
		{"ssl", pgwire.AppendSSLRequest(nil), pgwire.Startup{Kind: pgwire.StartupSSL}},
		{"gss", packet(codeGSS, ""), pgwire.Startup{Kind: pgwire.StartupGSS}},
		{
			"plain", packet(3<<16, "user\x00joe\x00\x00"),
			pgwire.Startup{Protocol: 3 << 16, Params: user},
		},
		{
			"3.2", packet(3<<16|2, "user\x00joe\x00\x00"),
			pgwire.Startup{Protocol: 3<<16 | 2, Params: user},
		},
		{
			"3.9999", packet(3<<16|9999, "user\x00joe\x00\x00"),
			pgwire.Startup{
				Protocol: 3<<16 | 2, Params: user, Negotiate: negotiate(pgwire.Protocol32),
			},
		},
		{
			"options", packet(3<<16, "_pq_.a\x001\x00user\x00joe\x00_pq_.b\x00\x00\x00"),
			pgwire.Startup{
				Protocol: 3 << 16, Params: user,
				Negotiate: negotiate(pgwire.Protocol3, "_pq_.a", "_pq_.b"),
			},
		},
		{
			"empty value", packet(3<<16, "user\x00joe\x00options\x00\x00\x00"),
			pgwire.Startup{
				Protocol: 3 << 16, Params: append(user[:1:1], pgwire.Param{Name: "options"}),
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readStartup(c.packet)
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("read %+v, %v\nwant %+v", got, err, c.want)
			}
		})
	}
}

// TestReadStartupCancel: a key has 4 bytes in 3.0 and up to 256 in 3.2.
func TestReadStartupCancel(t *testing.T) {
	for n := range 300 {
		key := bytes.Repeat([]byte{byte(n)}, n)
		st, err := readStartup(pgwire.AppendCancelRequest(nil, 7, key))
		if n < 4 || n > 256 {
			if !errors.Is(err, pgwire.ErrStartupLength) {
				t.Errorf("key of %d bytes: %v", n, err)
			}
			continue
		}
		if err != nil || st.Kind != pgwire.StartupCancel || st.CancelPID != 7 ||
			!bytes.Equal(st.CancelKey, key) {
			t.Errorf("key of %d bytes: %+v %v", n, st, err)
		}
	}
}

// TestReadStartupCopiesKey: the key outlives the reader's buffer.
func TestReadStartupCopiesKey(t *testing.T) {
	stream := pgwire.AppendCancelRequest(nil, 7, []byte("key!"))
	stream = pgwire.AppendQuery(stream, "overwrites the buffer")
	r := pgwire.NewReader(bytes.NewReader(stream), 1<<20)
	st, err := pgwire.ReadStartup(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.ReadMessage(); err != nil || string(st.CancelKey) != "key!" {
		t.Errorf("key %q, %v", st.CancelKey, err)
	}
}

func TestReadStartupRefuses(t *testing.T) {
	lie := func(n uint32, rest string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, n), rest...)
	}
	var many strings.Builder
	for i := range 201 {
		fmt.Fprintf(&many, "p%d\x00v\x00", i)
	}
	for _, c := range []struct {
		name   string
		packet []byte
		code   string
	}{
		{"length 0", lie(0, "\x00\x03\x00\x00"), ""},
		{"length 4", lie(4, "\x00\x03\x00\x00"), ""},
		{"length 7", lie(7, "\x00\x03\x00\x00"), ""},
		{"length over PostgreSQL's limit", lie(10001, "\x00\x03\x00\x00"), ""},
		{"length negative", lie(0xffffffff, "\x00\x03\x00\x00"), ""},
		{"http", []byte("GET / HTTP/1.1\r\n\r\n"), ""},
		{"tls", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc"), ""},
		{"ssl with a body", packet(codeSSL, "x"), "08P01"},
		{"gss with a body", packet(codeGSS, "x"), "08P01"},
		{"cancel without a key", packet(codeCancel, "\x00\x00\x00\x07"), ""},
		{"protocol 2", packet(2<<16, "user\x00joe\x00\x00"), "0A000"},
		{"protocol 4", packet(4<<16, "user\x00joe\x00\x00"), "0A000"},
		{"no body", packet(3<<16, ""), "08P01"},
		{"no terminator", packet(3<<16, "user\x00joe\x00"), "08P01"},
		{"name without an end", packet(3<<16, "user"), "08P01"},
		{"value without an end", packet(3<<16, "user\x00joe"), "08P01"},
		{"name without a value", packet(3<<16, "user\x00\x00"), "08P01"},
		{"bytes behind", packet(3<<16, "user\x00joe\x00\x00x"), "08P01"},
		{"no user", packet(3<<16, "database\x00db\x00\x00"), "28000"},
		{"empty user", packet(3<<16, "user\x00\x00\x00"), "28000"},
		{"last user is empty", packet(3<<16, "user\x00joe\x00user\x00\x00\x00"), "28000"},
		{"no parameters", packet(3<<16, "\x00"), "28000"},
		{"201 parameters", packet(3<<16, many.String()+"\x00"), "08P01"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, err := readStartup(c.packet)
			if err == nil {
				t.Fatalf("read %+v", st)
			}
			if c.code != "" {
				wantCode(t, err, c.code)
			} else if !errors.Is(err, pgwire.ErrStartupLength) { // nothing is answered to it
				t.Error(err)
			}
		})
	}
}

// TestReadStartupTakesLastDuplicate: like PostgreSQL, so that proxy and server agree on the user.
func TestReadStartupTakesLastDuplicate(t *testing.T) {
	st, err := readStartup(packet(3<<16, "user\x00a\x00database\x00d\x00user\x00b\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	if user, ok := st.Get("user"); user != "b" || !ok {
		t.Errorf("user %q", user)
	}
	if v, ok := st.Get("none"); v != "" || ok {
		t.Errorf("a parameter that is missing: %q", v)
	}
}

func TestParseStartupTakesWholePacketsOnly(t *testing.T) {
	want := []pgwire.Param{{Name: "user", Value: "u"}, {Name: "database", Value: "d"}}
	packet := pgwire.AppendStartup(nil, pgwire.Protocol3, want)
	st, err := pgwire.ParseStartup(packet)
	if err != nil || !slices.Equal(st.Params, want) || st.Kind != pgwire.StartupNormal {
		t.Errorf("got %+v, %v", st, err)
	}
	for name, p := range map[string][]byte{
		"empty": nil, "part": packet[:len(packet)-1], "more": append(slices.Clone(packet), 0),
		"ssl":    pgwire.AppendSSLRequest(nil),
		"cancel": pgwire.AppendCancelRequest(nil, 1, []byte{1, 2, 3, 4}),
	} {
		if _, err := pgwire.ParseStartup(p); err == nil {
			t.Errorf("%s was taken for a startup message", name)
		}
	}
}
