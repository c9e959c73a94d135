package pgwire_test

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"

	"github.com/jackc/pgproto3/v2"

	"holdfast/pgwire"
)

// encoder is what pgproto3's messages have in common.
type encoder interface {
	Encode(dst []byte) ([]byte, error)
}

// oracleCase is a message of ours beside the same one of pgproto3.
type oracleCase struct {
	name   string
	ours   []byte
	theirs encoder
}

func clientCases() []oracleCase {
	return []oracleCase{
		{"query", pgwire.AppendQuery(nil, "SELECT 1"), &pgproto3.Query{String: "SELECT 1"}},
		{"empty query", pgwire.AppendQuery(nil, ""), &pgproto3.Query{}},
		{
			"parse", pgwire.AppendParse(nil, "s1", "SELECT $1", []uint32{23, 25}),
			&pgproto3.Parse{Name: "s1", Query: "SELECT $1", ParameterOIDs: []uint32{23, 25}},
		},
		{
			"bind", pgwire.AppendBind(nil, "p", "s1", "a", ""),
			&pgproto3.Bind{
				DestinationPortal: "p", PreparedStatement: "s1",
				Parameters: [][]byte{[]byte("a"), {}}, ResultFormatCodes: []int16{},
			},
		},
		{
			"describe", pgwire.AppendDescribe(nil, 'S', "s1"),
			&pgproto3.Describe{ObjectType: 'S', Name: "s1"},
		},
		{
			"execute", pgwire.AppendExecute(nil, "p", 7),
			&pgproto3.Execute{Portal: "p", MaxRows: 7},
		},
		{
			"close", pgwire.AppendClose(nil, 'P', "p"),
			&pgproto3.Close{ObjectType: 'P', Name: "p"},
		},
		{
			"function call", pgwire.AppendFunctionCall(nil, 5060),
			&pgproto3.FunctionCall{
				Function: 5060, ArgFormatCodes: []uint16{}, Arguments: [][]byte{},
			},
		},
		{"sync", pgwire.AppendSync(nil), &pgproto3.Sync{}},
		{"flush", pgwire.AppendFlush(nil), &pgproto3.Flush{}},
		{"terminate", pgwire.AppendTerminate(nil), &pgproto3.Terminate{}},
		{
			"sasl", pgwire.AppendPassword(nil, []byte("c=biws")),
			&pgproto3.SASLResponse{Data: []byte("c=biws")},
		},
	}
}

func authCases() []oracleCase {
	return []oracleCase{
		{"auth ok", pgwire.AppendAuthOK(nil), &pgproto3.AuthenticationOk{}},
		{
			"cleartext", pgwire.AppendAuthCleartext(nil),
			&pgproto3.AuthenticationCleartextPassword{},
		},
		{
			"md5", pgwire.AppendAuthMD5(nil, [4]byte{1, 2, 3, 4}),
			&pgproto3.AuthenticationMD5Password{Salt: [4]byte{1, 2, 3, 4}},
		},
		{
			"sasl", pgwire.AppendAuthSASL(nil, "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"),
			&pgproto3.AuthenticationSASL{
				AuthMechanisms: []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"},
			},
		},
		{
			"sasl continue", pgwire.AppendAuthSASLContinue(nil, []byte("r=x")),
			&pgproto3.AuthenticationSASLContinue{Data: []byte("r=x")},
		},
		{
			"sasl final", pgwire.AppendAuthSASLFinal(nil, []byte("v=x")),
			&pgproto3.AuthenticationSASLFinal{Data: []byte("v=x")},
		},
	}
}

func serverCases() []oracleCase {
	col := pgproto3.FieldDescription{
		Name: []byte("a"), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1,
	}
	return append(authCases(), []oracleCase{
		{
			"parameter", pgwire.AppendParameterStatus(nil, "TimeZone", "UTC"),
			&pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"},
		},
		{
			"key", pgwire.AppendBackendKeyData(nil, 7, []byte{1, 2, 3, 4}),
			&pgproto3.BackendKeyData{ProcessID: 7, SecretKey: 0x01020304},
		},
		{
			"ready", pgwire.AppendReadyForQuery(nil, pgwire.TxFailed),
			&pgproto3.ReadyForQuery{TxStatus: 'E'},
		},
		{
			"complete", pgwire.AppendCommandComplete(nil, "INSERT 0 1"),
			&pgproto3.CommandComplete{CommandTag: []byte("INSERT 0 1")},
		},
		{
			"columns", pgwire.AppendRowDescription(nil, "a"),
			&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{col}},
		},
		{
			"row", pgwire.AppendDataRow(nil, []byte("x"), nil, []byte{}),
			&pgproto3.DataRow{Values: [][]byte{[]byte("x"), nil, {}}},
		},
		{"error", pgwire.AppendError(nil, fullError()), fullErrorResponse()},
		{
			"notice", pgwire.AppendNotice(nil, pgwire.NewError("00000", "note")),
			&pgproto3.NoticeResponse{
				Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "00000", Message: "note",
			},
		},
	}...)
}

func fullError() *pgwire.Error {
	return &pgwire.Error{
		Severity: "ERROR", Code: "23505", Message: "m", Detail: "d", Hint: "h", Position: "1",
		Internal: "2", Query: "q", Where: "w", Schema: "s", Table: "t", Column: "c",
		DataType: "dt", Constraint: "n", File: "f", Line: "3", Routine: "r",
	}
}

func fullErrorResponse() *pgproto3.ErrorResponse {
	return &pgproto3.ErrorResponse{
		Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "23505", Message: "m",
		Detail: "d", Hint: "h", Position: 1, InternalPosition: 2, InternalQuery: "q",
		Where: "w", SchemaName: "s", TableName: "t", ColumnName: "c", DataTypeName: "dt",
		ConstraintName: "n", File: "f", Line: 3, Routine: "r",
	}
}

// TestAppendAgainstOracle: our bytes are pgproto3's bytes, and decode to its values (I5).
func TestAppendAgainstOracle(t *testing.T) {
	check := func(t *testing.T, c oracleCase, decode func(byte, []byte) (encoder, error)) {
		theirs, err := c.theirs.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(c.ours, theirs) {
			t.Errorf("ours   %q\ntheirs %q", c.ours, theirs)
		}
		typ, body := split(t, c.ours)
		got, err := decode(typ, body)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, c.theirs) {
			t.Errorf("decoded %#v, want %#v", got, c.theirs)
		}
	}
	for _, c := range clientCases() {
		t.Run("client "+c.name, func(t *testing.T) {
			check(t, c, func(typ byte, b []byte) (encoder, error) {
				return pgwire.DecodeClient(typ, b)
			})
		})
	}
	for _, c := range serverCases() {
		t.Run("server "+c.name, func(t *testing.T) {
			check(t, c, func(typ byte, b []byte) (encoder, error) {
				return pgwire.DecodeServer(typ, b)
			})
		})
	}
}

// TestAppendUntypedAgainstOracle: the packets that have no type byte.
func TestAppendUntypedAgainstOracle(t *testing.T) {
	startup := &pgproto3.StartupMessage{
		ProtocolVersion: pgproto3.ProtocolVersionNumber,
		Parameters:      map[string]string{"user": "joe"},
	}
	for _, c := range []oracleCase{
		{
			"startup",
			pgwire.AppendStartup(nil, pgwire.Protocol3, []pgwire.Param{{"user", "joe"}}),
			startup,
		},
		{"ssl", pgwire.AppendSSLRequest(nil), &pgproto3.SSLRequest{}},
		{
			"cancel", pgwire.AppendCancelRequest(nil, 7, []byte{0, 0, 0, 9}),
			&pgproto3.CancelRequest{ProcessID: 7, SecretKey: 9},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			theirs, err := c.theirs.Encode(nil)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(c.ours, theirs) {
				t.Errorf("ours   %q\ntheirs %q", c.ours, theirs)
			}
		})
	}
}

// TestAppendNegotiateProtocol has no oracle: pgproto3 does not know the message. libpq reads a
// whole version where the manual says minor version.
func TestAppendNegotiateProtocol(t *testing.T) {
	opts := []string{"_pq_.a", "_pq_.b"}
	typ, body := split(t, pgwire.AppendNegotiateProtocol(nil, pgwire.Protocol3, opts))
	if typ != 'v' || binary.BigEndian.Uint32(body) != 3<<16 {
		t.Fatalf("type %q, body %q", typ, body)
	}
	version, got, err := pgwire.ParseNegotiateProtocol(body)
	if err != nil || version != pgwire.Protocol3 || !reflect.DeepEqual(got, opts) {
		t.Errorf("parsed %x %q %v", version, got, err)
	}
}

// TestAppendKeepsPrefix: dst is appended to, not written over, and its length is not counted.
func TestAppendKeepsPrefix(t *testing.T) {
	for _, c := range append(clientCases(), serverCases()...) {
		_, body := split(t, c.ours)
		msg := pgwire.AppendMessage([]byte("before"), c.ours[0], body)
		if want := "before" + string(c.ours); string(msg) != want {
			t.Errorf("%s: %q, want %q", c.name, msg, want)
		}
	}
	two := pgwire.AppendSync(pgwire.AppendQuery(nil, "x"))
	if string(two) != "Q\x00\x00\x00\x06x\x00S\x00\x00\x00\x04" {
		t.Errorf("two messages: %q", two)
	}
}

// TestAppendDoesNotAllocate: I6.
func TestAppendDoesNotAllocate(t *testing.T) {
	buf := make([]byte, 0, 4096)
	oids := []uint32{23}
	params := []pgwire.Param{{Name: "user", Value: "joe"}, {Name: "database", Value: "db"}}
	e, row := fullError(), [][]byte{[]byte("x"), nil}
	key, opts := []byte{1, 2, 3, 4}, []string{"_pq_.a"}
	for name, appendTo := range map[string]func(b []byte) []byte{
		"startup": func(b []byte) []byte {
			return pgwire.AppendStartup(b, pgwire.Protocol3, params)
		},
		"ssl":    pgwire.AppendSSLRequest,
		"cancel": func(b []byte) []byte { return pgwire.AppendCancelRequest(b, 1, key) },
		"query":  func(b []byte) []byte { return pgwire.AppendQuery(b, "SELECT 1") },
		"parse":  func(b []byte) []byte { return pgwire.AppendParse(b, "s", "SELECT", oids) },
		"bind":   func(b []byte) []byte { return pgwire.AppendBind(b, "", "s", "1", "2") },
		"execute": func(b []byte) []byte {
			return pgwire.AppendSync(pgwire.AppendExecute(b, "", 0))
		},
		"auth": func(b []byte) []byte { return pgwire.AppendAuthMD5(b, [4]byte{1}) },
		"key":  func(b []byte) []byte { return pgwire.AppendBackendKeyData(b, 1, key) },
		"negotiate": func(b []byte) []byte {
			return pgwire.AppendNegotiateProtocol(b, pgwire.Protocol3, opts)
		},
		"columns": func(b []byte) []byte { return pgwire.AppendRowDescription(b, "a", "b") },
		"row":     func(b []byte) []byte { return pgwire.AppendDataRow(b, row...) },
		"error":   func(b []byte) []byte { return pgwire.AppendError(b, e) },
		"ready":   func(b []byte) []byte { return pgwire.AppendReadyForQuery(b, 'I') },
	} {
		var out []byte
		if n := testing.AllocsPerRun(100, func() { out = appendTo(buf[:0]) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if len(out) == 0 || &out[0] != &buf[:1][0] {
			t.Errorf("%s: not in the buffer that was given", name)
		}
	}
}
