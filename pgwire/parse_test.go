package pgwire_test

import (
	"bytes"
	"fmt"
	"reflect"
	"runtime"
	"testing"

	"holdfast/pgwire"
)

// parsers has every parser of a body under its message's name; a parser gives what it read.
var parsers = map[string]func(b []byte) (any, error){
	"Query": func(b []byte) (any, error) { v, err := pgwire.ParseQuery(b); return string(v), err },
	"Parse": func(b []byte) (any, error) {
		name, sql, oids, err := pgwire.ParseParse(b)
		return fmt.Sprint(name, " ", string(sql), oids), err
	},
	"BindNames": func(b []byte) (any, error) {
		portal, stmt, err := pgwire.ParseBindNames(b)
		return string(portal) + " " + string(stmt), err
	},
	"Execute": func(b []byte) (any, error) {
		portal, n, err := pgwire.ParseExecute(b)
		return fmt.Sprint(string(portal), " ", n), err
	},
	"Target": func(b []byte) (any, error) {
		kind, name, err := pgwire.ParseTarget(b)
		return string(kind) + string(name), err
	},
	"ParameterStatus": func(b []byte) (any, error) {
		name, value, err := pgwire.ParseParameterStatus(b)
		return name + "=" + value, err
	},
	"BackendKeyData": func(b []byte) (any, error) {
		pid, key, err := pgwire.ParseBackendKeyData(b)
		return fmt.Sprint(pid, key), err
	},
	"CommandTag": func(b []byte) (any, error) {
		v, err := pgwire.ParseCommandTag(b)
		return string(v), err
	},
	"ReadyForQuery": func(b []byte) (any, error) {
		v, err := pgwire.ParseReadyForQuery(b)
		return string(v), err
	},
	"Error":   func(b []byte) (any, error) { v, err := pgwire.ParseError(b); return v, err },
	"DataRow": func(b []byte) (any, error) { v, err := pgwire.ParseDataRow(b); return v, err },
	"FunctionCallResponse": func(b []byte) (any, error) {
		v, err := pgwire.ParseFunctionCallResponse(b)
		return fmt.Sprintf("%s %t", v, v == nil), err
	},
	"NegotiateProtocol": func(b []byte) (any, error) {
		version, opts, err := pgwire.ParseNegotiateProtocol(b)
		return fmt.Sprint(version, opts), err
	},
	"SASLInitial": func(b []byte) (any, error) {
		mech, data, err := pgwire.ParseSASLInitial(b)
		return fmt.Sprintf("%s %q %v", mech, data, data == nil), err
	},
}

// TestParse reads valid bodies. need is how many of a body's bytes the parser needs: with less it
// must say 08P01 (I1).
func TestParse(t *testing.T) {
	body := func(msg []byte) []byte { return msg[pgwire.HeaderLen:] }
	sasl := []byte("SCRAM-SHA-256\x00\x00\x00\x00\x03n,,")
	bind := body(pgwire.AppendBind(nil, "p", "s", "x"))
	for _, c := range []struct {
		parser string
		body   []byte
		need   int
		want   any
	}{
		{"Query", body(pgwire.AppendQuery(nil, "SELECT 1")), 9, "SELECT 1"},
		{"Parse", body(pgwire.AppendParse(nil, "a", "b", []uint32{23, 25})), 14, "a b[23 25]"},
		{"Parse", body(pgwire.AppendParse(nil, "", "", nil)), 4, " []"},
		{"BindNames", bind, 4, "p s"},
		{"Execute", body(pgwire.AppendExecute(nil, "p", 3)), 6, "p 3"},
		{"Target", body(pgwire.AppendDescribe(nil, 'S', "s")), 3, "Ss"},
		{"Target", body(pgwire.AppendClose(nil, 'P', "")), 2, "P"},
		{"ParameterStatus", body(pgwire.AppendParameterStatus(nil, "a", "b")), 4, "a=b"},
		{"BackendKeyData", body(pgwire.AppendBackendKeyData(nil, 1, []byte{1, 2, 3, 4})), 8,
			"1 [1 2 3 4]"},
		{"CommandTag", body(pgwire.AppendCommandComplete(nil, "BEGIN")), 6, "BEGIN"},
		{"ReadyForQuery", []byte("T"), 1, "T"},
		{"Error", body(pgwire.AppendError(nil, fullError())), -1, fullError()},
		{"DataRow", body(pgwire.AppendDataRow(nil, []byte("x"), nil, []byte{})), 15,
			[][]byte{[]byte("x"), nil, {}}},
		{"DataRow", body(pgwire.AppendDataRow(nil)), 2, [][]byte{}},
		{"FunctionCallResponse", []byte("\x00\x00\x00\x0242"), 6, "42 false"},
		{"FunctionCallResponse", []byte("\xff\xff\xff\xff"), 4, " true"},
		{"NegotiateProtocol", body(pgwire.AppendNegotiateProtocol(nil, 7, []string{"o"})), 10,
			"7 [o]"},
		{"SASLInitial", sasl, 21, `SCRAM-SHA-256 "n,," false`},
		{"SASLInitial", []byte("X\x00\xff\xff\xff\xff"), 6, `X "" true`},
	} {
		t.Run(fmt.Sprintf("%s %q", c.parser, c.body), func(t *testing.T) {
			parse := parsers[c.parser]
			got, err := parse(bytes.Clone(c.body))
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Fatalf("parsed %#v, %v; want %#v", got, err, c.want)
			}
			need := c.need
			if need < 0 {
				need = len(c.body)
			}
			for n := range c.body {
				if _, err := parse(c.body[:n:n]); n < need {
					wantCode(t, err, pgwire.CodeProtocolViolation)
				} else if err != nil {
					t.Errorf("%d bytes of %d: %v", n, len(c.body), err)
				}
			}
		})
	}
}

// TestParseLies gives bodies whose lengths and counts do not fit what follows.
func TestParseLies(t *testing.T) {
	for _, c := range []struct{ parser, body string }{
		{"Query", "no end"},
		{"Parse", "a\x00b\x00\xff\xff"},
		{"Parse", "a\x00b\x00\x00\x02\x00\x00\x00\x17"},
		{"Target", "Sname"},
		{"BackendKeyData", "\x00\x00\x00\x01" + string(make([]byte, 257))},
		{"ReadyForQuery", "X"},
		{"ReadyForQuery", "II"},
		{"Error", "Mno end"},
		{"Error", "Mtext\x00"},
		{"FunctionCallResponse", "\x00\x00\x00\x0142"},
		{"FunctionCallResponse", "\xff\xff\xff\xfe"},
		{"FunctionCallResponse", "\xff\xff\xff\xff4"},
		{"DataRow", "\xff\xff"},
		{"DataRow", "\x00\x01\xff\xff\xff\xfe"},
		{"DataRow", "\x00\x01\x80\x00\x00\x00xxxx"},
		{"DataRow", "\x00\x01\x7f\xff\xff\xffxxxx"},
		{"DataRow", "\x00\x02\x00\x00\x00\x04xxxx"},
		{"NegotiateProtocol", "\x00\x00\x00\x00\xff\xff\xff\xff"},
		{"NegotiateProtocol", "\x00\x00\x00\x00\x00\x00\x00\x02a\x00"},
		{"SASLInitial", "X\x00\xff\xff\xff\xffmore"},
		{"SASLInitial", "X\x00\xff\xff\xff\xfexxxx"},
		{"SASLInitial", "X\x00\x00\x00\x00\x01xx"},
	} {
		_, err := parsers[c.parser]([]byte(c.body))
		if err == nil {
			t.Errorf("%s %q: no error", c.parser, c.body)
			continue
		}
		wantCode(t, err, pgwire.CodeProtocolViolation)
	}
}

// TestParseErrorPrefersUntranslatedSeverity: 'S' is in the server's language, 'V' never.
func TestParseErrorPrefersUntranslatedSeverity(t *testing.T) {
	for _, b := range []string{"SFATALE\x00VFATAL\x00\x00", "VFATAL\x00SFATALE\x00\x00"} {
		e, err := pgwire.ParseError([]byte(b))
		if err != nil || e.Severity != "FATAL" {
			t.Errorf("%q: %v %v", b, e, err)
		}
	}
	e, err := pgwire.ParseError([]byte("SFEHLER\x00C42601\x00Mm\x00?unknown\x00\x00"))
	if err != nil || e.Error() != "FEHLER: m (SQLSTATE 42601)" {
		t.Errorf("without 'V': %v %v", e, err)
	}
}

func TestHeader(t *testing.T) {
	for _, c := range []struct {
		b   string
		n   int
		bad bool
	}{
		{"Q\x00\x00\x00\x04", 0, false},
		{"Q\x00\x00\x00\x09", 5, false},
		{"Q\x7f\xff\xff\xff", 1<<31 - 5, false},
		{"Q\x00\x00\x00\x03", 0, true},
		{"Q\x00\x00\x00\x00", 0, true},
		{"Q\x80\x00\x00\x00", 0, true},
		{"Q\xff\xff\xff\xff", 0, true},
	} {
		typ, n, err := pgwire.Header([]byte(c.b))
		if c.bad {
			wantCode(t, err, pgwire.CodeProtocolViolation)
		} else if err != nil || n != c.n || typ != 'Q' {
			t.Errorf("%q: %q %d %v", c.b, typ, n, err)
		}
	}
}

// TestParseMemoryFollowsBytes: a count that nothing follows costs no memory (I3).
func TestParseMemoryFollowsBytes(t *testing.T) {
	for _, c := range []struct{ parser, body string }{
		{"Parse", "a\x00b\x00\xff\xff"},
		{"DataRow", "\xff\xff"},
		{"NegotiateProtocol", "\x00\x00\x00\x00\x7f\xff\xff\xff"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 10 {
			_, _ = parsers[c.parser]([]byte(c.body))
		}
		runtime.ReadMemStats(&after)
		if n := (after.TotalAlloc - before.TotalAlloc) / 10; n > 64<<10 {
			t.Errorf("%s: %d bytes for %d", c.parser, n, len(c.body))
		}
	}
}
