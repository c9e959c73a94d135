package pgwire_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgproto3/v2"

	"holdfast/pgwire"
)

// hostile has bodies that make the decoders of pgproto3 panic.
var hostile = []struct {
	name   string
	typ    byte
	server bool
	body   string
	decode func(b []byte) error
}{
	{"query", 'Q', false, "", new(pgproto3.Query).Decode},
	{"copy fail", 'f', false, "", new(pgproto3.CopyFail).Decode},
	{
		"bind, negative length", 'B', false, "\x00\x00\x00\x00\x00\x01\xff\xff\xff\xfe\x00\x00",
		new(pgproto3.Bind).Decode,
	},
	{"function call, empty", 'F', false, "", new(pgproto3.FunctionCall).Decode},
	{
		"function call, null", 'F', false, "\x00\x00\x00\x01\x00\x00\x00\x01\xff\xff\xff\xff\x00\x00",
		new(pgproto3.FunctionCall).Decode,
	},
	{"row, negative length", 'D', true, "\x00\x01\xff\xff\xff\xfe", new(pgproto3.DataRow).Decode},
	{"command complete", 'C', true, "", new(pgproto3.CommandComplete).Decode},
	{"notification", 'A', true, "\x00\x00", new(pgproto3.NotificationResponse).Decode},
}

// TestDecodeHostile: bodies that bring pgproto3 down do not reach it (I2).
func TestDecodeHostile(t *testing.T) {
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			if !panics(func() { _ = c.decode([]byte(c.body)) }) {
				t.Error("pgproto3 does not panic: the case shows nothing")
			}
			var err error
			var trace string
			if c.server {
				_, err = pgwire.DecodeServer(c.typ, []byte(c.body))
				trace = pgwire.TraceServer(c.typ, []byte(c.body))
			} else {
				_, err = pgwire.DecodeClient(c.typ, []byte(c.body))
				trace = pgwire.TraceClient(c.typ, []byte(c.body))
			}
			wantCode(t, err, pgwire.CodeProtocolViolation)
			if !strings.HasPrefix(trace, "malformed message") {
				t.Errorf("trace: %s", trace)
			}
		})
	}
}

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return false
}

// TestDecodeEndlessLoop: pgproto3 never comes back from this list of mechanisms.
func TestDecodeEndlessLoop(t *testing.T) {
	for _, list := range []string{
		"", "SCRAM", "\x00SCRAM\x00\x00", "SCRAM\x00", "A\x00\x00B\x00\x00",
	} {
		_, err := pgwire.DecodeServer('R', []byte("\x00\x00\x00\x0a"+list))
		wantCode(t, err, pgwire.CodeProtocolViolation)
	}
}

// TestDecodeTruncated: every prefix of a valid message is an error, never a panic.
func TestDecodeTruncated(t *testing.T) {
	try := func(c oracleCase, decode func(byte, []byte) error) {
		typ, body := split(t, c.ours)
		for n := range body {
			if typ == 'p' || typ == 'R' && n >= 4 && body[3] > 10 {
				continue // any data is valid
			}
			if err := decode(typ, body[:n]); err == nil {
				t.Errorf("%s: %d bytes of %d are no error", c.name, n, len(body))
			}
		}
	}
	for _, c := range clientCases() {
		try(c, func(typ byte, b []byte) error {
			_, err := pgwire.DecodeClient(typ, b)
			return err
		})
	}
	for _, c := range serverCases() {
		try(c, func(typ byte, b []byte) error {
			_, err := pgwire.DecodeServer(typ, b)
			return err
		})
	}
}

func TestTrace(t *testing.T) {
	long := strings.Repeat("x", 200)
	for _, c := range []struct {
		server bool
		msg    []byte
		want   string
	}{
		{false, pgwire.AppendQuery(nil, "SELECT 'é'"), `Query "SELECT 'é'"`},
		{
			false, pgwire.AppendQuery(nil, long),
			`Query "` + long[:120] + `" and 80 bytes more`,
		},
		{false, pgwire.AppendParse(nil, "s", "SELECT $1", []uint32{23}),
			`Parse "s" "SELECT $1" oids=[23]`},
		{false, pgwire.AppendBind(nil, "", "s", "a", "b"),
			`Bind "" "s" ["a" "b"] formats=[] results=[]`},
		{false, pgwire.AppendDescribe(nil, 'P', "p"), `Describe P "p"`},
		{false, pgwire.AppendClose(nil, 'S', "s"), `Close S "s"`},
		{false, pgwire.AppendExecute(nil, "", 5), `Execute "" max=5`},
		{false, pgwire.AppendSync(nil), "Sync"},
		{false, pgwire.AppendPassword(nil, []byte("secret")), "Password 6 bytes"},
		{false, pgwire.AppendMessage(nil, 'd', []byte("abc")), "CopyData 3 bytes"},
		{false, pgwire.AppendMessage(nil, 'f', []byte("no\x00")), `CopyFail "no"`},
		{false, pgwire.AppendMessage(nil, '?', nil), "malformed message of type '?', 0 bytes"},
		{true, pgwire.AppendAuthOK(nil), "AuthenticationOk"},
		{true, pgwire.AppendAuthSASL(nil, "A", "B"), `AuthenticationSASL ["A" "B"]`},
		{true, pgwire.AppendAuthSASLFinal(nil, []byte("v=x")), "AuthenticationSASLFinal"},
		{true, pgwire.AppendParameterStatus(nil, "a", "b"), `ParameterStatus a="b"`},
		{true, pgwire.AppendBackendKeyData(nil, 7, make([]byte, 32)),
			"BackendKeyData 7, key of 32 bytes"},
		{true, pgwire.AppendReadyForQuery(nil, 'I'), "ReadyForQuery I"},
		{true, pgwire.AppendRowDescription(nil, "a", "b"), `RowDescription ["a" "b"]`},
		{true, pgwire.AppendDataRow(nil, []byte("x"), nil), `DataRow ["x" NULL]`},
		{true, pgwire.AppendCommandComplete(nil, "BEGIN"), `CommandComplete "BEGIN"`},
		{true, pgwire.AppendError(nil, pgwire.NewError("40001", "m")),
			`ErrorResponse ERROR 40001 "m"`},
		{true, pgwire.AppendNotice(nil, pgwire.NewError("00000", "m")),
			`NoticeResponse ERROR 00000 "m"`},
		{true, pgwire.AppendNegotiateProtocol(nil, pgwire.Protocol3, []string{"_pq_.x"}),
			`NegotiateProtocolVersion 3.0 ["_pq_.x"]`},
		{true, pgwire.AppendMessage(nil, 'A', []byte("\x00\x00\x00\x07ch\x00load\x00")),
			`NotificationResponse 7 "ch" "load"`},
		{true, pgwire.AppendMessage(nil, 't', []byte("\x00\x01\x00\x00\x00\x17")),
			"ParameterDescription [23]"},
	} {
		trace := pgwire.TraceClient
		if c.server {
			trace = pgwire.TraceServer
		}
		typ, body := split(t, c.msg)
		if got := trace(typ, body); got != c.want {
			t.Errorf("trace\n%s\nwant\n%s", got, c.want)
		}
	}
}

// TestTraceIsBounded: a row of many columns gives a short line.
func TestTraceIsBounded(t *testing.T) {
	row := make([][]byte, 10000)
	for i := range row {
		row[i] = []byte("a value")
	}
	_, body := split(t, pgwire.AppendDataRow(nil, row...))
	if got := pgwire.TraceServer('D', body); len(got) > 1200 {
		t.Errorf("%d bytes", len(got))
	}
}

// TestDecodeKnowsEveryType: each type of messages.go decodes in its plainest form; 'v' has a
// parser only.
func TestDecodeKnowsEveryType(t *testing.T) {
	const count = "\x00\x00"
	for typ, b := range map[byte]string{
		'Q': "\x00", 'P': "\x00\x00" + count, 'B': "\x00\x00" + count + count + count, 'D': "S\x00",
		'E': "\x00\x00\x00\x00\x00", 'C': "P\x00", 'S': "", 'H': "", 'X': "", 'p': "x", 'd': "x",
		'c': "", 'f': "\x00", 'F': "\x00\x00\x00\x01" + count + count + count,
	} {
		msg, err := pgwire.DecodeClient(typ, []byte(b))
		if trace := pgwire.TraceClient(typ, []byte(b)); err != nil || msg == nil ||
			strings.HasPrefix(trace, "malformed") {
			t.Errorf("client %q: %v, %s", typ, err, trace)
		}
	}
	for typ, b := range map[byte]string{
		'R': "\x00\x00\x00\x00", 'S': "\x00\x00", 'K': "12345678", 'Z': "I", 'T': count, 'D': count,
		'C': "\x00", 'I': "", 'E': "\x00", 'N': "\x00", 'A': "1234\x00\x00", '1': "", '2': "", '3': "",
		'n': "", 's': "", 't': count, 'G': "\x00" + count, 'H': "\x00" + count, 'W': "\x00" + count,
		'd': "x", 'c': "", 'V': "\x00\x00\x00\x01x",
	} {
		msg, err := pgwire.DecodeServer(typ, []byte(b))
		if trace := pgwire.TraceServer(typ, []byte(b)); err != nil || msg == nil ||
			strings.HasPrefix(trace, "malformed") {
			t.Errorf("server %q: %v, %s", typ, err, trace)
		}
		if len(b) == 0 {
			_, err := pgwire.DecodeServer(typ, []byte("x"))
			wantCode(t, err, pgwire.CodeProtocolViolation)
		}
	}
}
