package pgwire_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/jackc/pgproto3/v2"

	"holdfast/pgwire"
)

// parsers are all functions that read a body of a peer.
var parsers = map[string]func([]byte) error{
	"query":   func(b []byte) error { _, err := pgwire.ParseQuery(b); return err },
	"parse":   func(b []byte) error { _, _, _, err := pgwire.ParseParse(b); return err },
	"bind":    func(b []byte) error { _, _, err := pgwire.ParseBindNames(b); return err },
	"execute": func(b []byte) error { _, _, err := pgwire.ParseExecute(b); return err },
	"target":  func(b []byte) error { _, _, err := pgwire.ParseTarget(b); return err },
	"status":  func(b []byte) error { _, _, err := pgwire.ParseParameterStatus(b); return err },
	"key":     func(b []byte) error { _, _, err := pgwire.ParseBackendKeyData(b); return err },
	"tag":     func(b []byte) error { _, err := pgwire.ParseCommandTag(b); return err },
	"ready":   func(b []byte) error { _, err := pgwire.ParseReadyForQuery(b); return err },
	"error":   func(b []byte) error { _, err := pgwire.ParseError(b); return err },
	"row":     func(b []byte) error { _, err := pgwire.ParseDataRow(b); return err },
	"version": func(b []byte) error { _, _, err := pgwire.ParseNegotiateProtocol(b); return err },
	"sasl":    func(b []byte) error { _, _, err := pgwire.ParseSASLInitial(b); return err },
}

// samples are whole messages, by the parser that reads their body.
func samples() map[string][]byte {
	e := pgwire.NewError(pgwire.CodeSerializationFailure, "no")
	e.Detail, e.Hint = "Why.", "How."
	return map[string][]byte{
		"query":   pgwire.AppendQuery(nil, "SELECT 1"),
		"parse":   pgwire.AppendParse(nil, "s", "SELECT $1", []uint32{23, 25}),
		"bind":    pgwire.AppendBind(nil, "p", "s", "1", "two"),
		"execute": pgwire.AppendExecute(nil, "p", 7),
		"target":  pgwire.AppendDescribe(nil, 'S', "s"),
		"status":  pgwire.AppendParameterStatus(nil, "TimeZone", "UTC"),
		"key":     pgwire.AppendBackendKeyData(nil, 7, []byte{1, 2, 3, 4}),
		"tag":     pgwire.AppendCommandComplete(nil, "SELECT 1"),
		"ready":   pgwire.AppendReadyForQuery(nil, 'T'),
		"error":   pgwire.AppendError(nil, e),
		"row":     pgwire.AppendDataRow(nil, []byte("a"), nil, []byte("")),
		"version": pgwire.AppendNegotiateProtocol(nil, pgwire.Protocol3, []string{"_pq_.x"}),
	}
}

func TestEveryPrefixIsRefused(t *testing.T) {
	for name, msg := range samples() {
		body := msg[pgwire.HeaderLen:]
		if err := parsers[name](body); err != nil {
			t.Errorf("%s: whole message refused: %v", name, err)
		}
		limit := len(body)
		if name == "bind" {
			limit = len("p\x00s\x00") // of a Bind only the names are read
		}
		for n := range limit {
			err := parsers[name](body[:n])
			var pe *pgwire.Error
			if !errors.As(err, &pe) || pe.Code != pgwire.CodeProtocolViolation {
				t.Errorf("%s cut to %d bytes: %v", name, n, err)
			}
		}
	}
}

// TestAgainstAnotherCodec lets pgproto3 read what is built here.
func TestAgainstAnotherCodec(t *testing.T) {
	s := samples()
	var parse pgproto3.Parse
	if err := parse.Decode(s["parse"][5:]); err != nil || parse.Name != "s" ||
		parse.Query != "SELECT $1" || len(parse.ParameterOIDs) != 2 {
		t.Errorf("Parse: %v %+v", err, parse)
	}
	var bind pgproto3.Bind
	if err := bind.Decode(s["bind"][5:]); err != nil || bind.DestinationPortal != "p" ||
		bind.PreparedStatement != "s" || string(bind.Parameters[1]) != "two" {
		t.Errorf("Bind: %v %+v", err, bind)
	}
	var e pgproto3.ErrorResponse
	if err := e.Decode(s["error"][5:]); err != nil || e.Code != "40001" || e.Detail != "Why." ||
		e.Severity != "ERROR" || e.Hint != "How." {
		t.Errorf("ErrorResponse: %v %+v", err, e)
	}
	var row pgproto3.DataRow
	if err := row.Decode(s["row"][5:]); err != nil || len(row.Values) != 3 ||
		row.Values[1] != nil || string(row.Values[0]) != "a" {
		t.Errorf("DataRow: %v %+v", err, row)
	}
	var desc pgproto3.RowDescription
	out := pgwire.AppendRowDescription(nil, "a", "b")
	if err := desc.Decode(out[5:]); err != nil || len(desc.Fields) != 2 {
		t.Errorf("RowDescription: %v", err)
	}
	want, _ := (&pgproto3.Execute{Portal: "p", MaxRows: 7}).Encode(nil)
	if !bytes.Equal(want, s["execute"]) {
		t.Errorf("Execute: %x, want %x", s["execute"], want)
	}
	want, _ = (&pgproto3.Close{ObjectType: 'P', Name: "x"}).Encode(nil)
	if got := pgwire.AppendClose(nil, 'P', "x"); !bytes.Equal(want, got) {
		t.Errorf("Close: %x, want %x", got, want)
	}
}

func TestHeaderRefusesLies(t *testing.T) {
	for _, n := range [][]byte{{0, 0, 0, 3}, {0xff, 0xff, 0xff, 0xff}, {0x80, 0, 0, 0}} {
		if _, _, err := pgwire.Header(append([]byte{'Q'}, n...)); err == nil {
			t.Errorf("length %x taken", n)
		}
	}
}

func TestReaderBounds(t *testing.T) {
	msg := pgwire.AppendQuery(nil, "SELECT 1")
	r := pgwire.NewReader(bytes.NewReader(append(msg, "rest"...)), 100)
	typ, body, err := r.ReadMessage()
	if err != nil || typ != 'Q' || string(body) != "SELECT 1\x00" {
		t.Fatalf("%c %q %v", typ, body, err)
	}
	if string(r.Buffered()) != "rest" {
		t.Errorf("read ahead: %q", r.Buffered())
	}
	if _, _, err := pgwire.NewReader(bytes.NewReader(msg), 3).ReadMessage(); err == nil {
		t.Error("a message over the limit was read")
	}
	// A length that claims a gigabyte must not be believed before it has arrived.
	lie := []byte{'Q', 0x3f, 0xff, 0xff, 0xff, 'x'}
	n := testing.AllocsPerRun(1, func() {
		_, _, _ = pgwire.NewReader(bytes.NewReader(lie), 1<<30).ReadMessage()
	})
	if n > 50 {
		t.Errorf("%v allocations for a lie", n)
	}
}

func startup(params ...string) []byte {
	var p []pgwire.Param
	for i := 0; i+1 < len(params); i += 2 {
		p = append(p, pgwire.Param{Name: params[i], Value: params[i+1]})
	}
	return pgwire.AppendStartup(nil, pgwire.Protocol3, p)
}

func TestStartup(t *testing.T) {
	read := func(b []byte) (pgwire.Startup, error) {
		return pgwire.ReadStartup(pgwire.NewReader(bytes.NewReader(b), 100))
	}
	st, err := read(startup("user", "a", "database", "d", "user", "b"))
	if u, _ := st.Get("user"); err != nil || u != "b" || st.Negotiate != nil {
		t.Errorf("plain: %v %q", err, u)
	}
	st, err = read(startup("user", "a", "_pq_.thing", "1"))
	if err != nil || st.Negotiate == nil || len(st.Params) != 1 {
		t.Errorf("option: %v %+v", err, st)
	}
	if st, err := read(pgwire.AppendSSLRequest(nil)); err != nil ||
		st.Kind != pgwire.StartupSSL {
		t.Errorf("ssl: %v", err)
	}
	st, err = read(pgwire.AppendCancelRequest(nil, 7, []byte("12345678")))
	if err != nil || st.CancelPID != 7 || string(st.CancelKey) != "12345678" {
		t.Errorf("cancel: %v %+v", err, st)
	}
	for name, b := range map[string][]byte{
		"no user":    startup("database", "d"),
		"short":      {0, 0, 0, 7, 0, 3, 0, 0},
		"huge":       {0, 1, 0, 0, 0, 3, 0, 0},
		"protocol 2": {0, 0, 0, 9, 0, 2, 0, 0, 0},
		"no end":     {0, 0, 0, 12, 0, 3, 0, 0, 'u', 's', 'e', 'r'},
	} {
		if _, err := read(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestLSN(t *testing.T) {
	l, err := pgwire.ParseLSN("16/B374D848")
	if err != nil || l.String() != "16/B374D848" || l != 0x16B374D848 {
		t.Errorf("%v %v", l, err)
	}
	for _, bad := range []string{"", "1", "x/1", "1/x", "123456789/1"} {
		if _, err := pgwire.ParseLSN(bad); err == nil {
			t.Errorf("%q taken", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, msg := range samples() {
		f.Add(msg[pgwire.HeaderLen:])
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, p := range parsers {
			_ = p(b)
		}
	})
}

func FuzzStartup(f *testing.F) {
	f.Add(startup("user", "a"))
	f.Add(pgwire.AppendCancelRequest(nil, 1, []byte{1, 2, 3, 4}))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = pgwire.ReadStartup(pgwire.NewReader(bytes.NewReader(b), 100))
	})
}
