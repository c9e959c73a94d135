package pgwire_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"holdfast/pgwire"
	"holdfast/pgwire/pgwiretest"
)

var loginParams = []pgwire.Param{{Name: "user", Value: "joe"}, {Name: "database", Value: "db"}}

// welcome is what a server sends behind AuthenticationOk.
func welcome() []byte {
	b := pgwire.AppendParameterStatus(nil, "server_version", "15.1")
	b = pgwire.AppendNotice(b, pgwire.NewError("00000", "a notice"))
	b = pgwire.AppendParameterStatus(b, "TimeZone", "UTC")
	b = pgwire.AppendBackendKeyData(b, 7, []byte{1, 2, 3, 4})
	return pgwire.AppendReadyForQuery(b, pgwire.TxIdle)
}

func login(t *testing.T, cred pgwire.Credentials, steps ...pgwiretest.Step) (
	pgwire.ServerInfo, error,
) {
	t.Helper()
	steps = append([]pgwiretest.Step{pgwiretest.ExpectStartup(loginParams...)}, steps...)
	conn := pgwiretest.Serve(t, steps...)
	return pgwire.Login(conn, pgwire.NewReader(conn, 1<<16), loginParams, cred)
}

// scramServer answers a client with the steps of SCRAM, of which the last is what it sends behind
// a proof that fits.
func scramServer(secret pgwire.ScramSecret, last func(final []byte) []byte) []pgwiretest.Step {
	s := pgwire.NewScramServer(secret, true)
	return []pgwiretest.Step{
		pgwiretest.Send(pgwire.AppendAuthSASL(nil, "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")),
		pgwiretest.Answer(pgwire.CliPassword, func(b []byte) ([]byte, error) {
			mech, data, err := pgwire.ParseSASLInitial(b)
			if err != nil || mech != "SCRAM-SHA-256" {
				return nil, fmt.Errorf("mechanism %q: %w", mech, err)
			}
			reply, err := s.First(data)
			return pgwire.AppendAuthSASLContinue(nil, reply), err
		}),
		pgwiretest.Answer(pgwire.CliPassword, func(b []byte) ([]byte, error) {
			final, _, err := s.Final(b)
			return last(final), err
		}),
	}
}

func TestLogin(t *testing.T) {
	secret := secretOf(t, "secret")
	key, _, err := exchange(t, pgwire.Credentials{Password: "secret"},
		pgwire.NewScramServer(secret, true), wire{})
	if err != nil {
		t.Fatal(err)
	}
	password := pgwire.Credentials{Password: "secret"}
	byKey := pgwire.Credentials{ClientKey: key, ServerKey: secret.ServerKey}
	ok := pgwiretest.Send(append(pgwire.AppendAuthOK(nil), welcome()...))
	scram := scramServer(secret, func(final []byte) []byte {
		return append(pgwire.AppendAuthOK(pgwire.AppendAuthSASLFinal(nil, final)), welcome()...)
	})
	scram2 := scramServer(secret, func(final []byte) []byte {
		return append(pgwire.AppendAuthOK(pgwire.AppendAuthSASLFinal(nil, final)), welcome()...)
	})
	md5 := []byte("md5850be429f1fe77df3f603ac424abb440\x00")
	for _, c := range []struct {
		name  string
		cred  pgwire.Credentials
		steps []pgwiretest.Step
	}{
		{"trust", pgwire.Credentials{}, []pgwiretest.Step{ok}},
		{"cleartext", password, []pgwiretest.Step{
			pgwiretest.Send(pgwire.AppendAuthCleartext(nil)),
			pgwiretest.ExpectBody(pgwire.CliPassword, []byte("secret\x00")), ok,
		}},
		{"md5", password, []pgwiretest.Step{
			pgwiretest.Send(pgwire.AppendAuthMD5(nil, [4]byte{1, 2, 3, 4})),
			pgwiretest.ExpectBody(pgwire.CliPassword, md5), ok,
		}},
		{"scram by password", password, scram},
		{"scram by key", byKey, scram2},
	} {
		t.Run(c.name, func(t *testing.T) {
			info, err := login(t, c.cred, c.steps...)
			want := pgwire.ServerInfo{
				PID: 7, Key: []byte{1, 2, 3, 4}, TxStatus: pgwire.TxIdle,
				Params: []pgwire.Param{
					{Name: "server_version", Value: "15.1"}, {Name: "TimeZone", Value: "UTC"},
				},
			}
			if err != nil || !reflect.DeepEqual(info, want) {
				t.Errorf("%+v, %v", info, err)
			}
		})
	}
}

// TestLoginRefuses: servers that skip a part of the proof (I9) or of the protocol.
func TestLoginRefuses(t *testing.T) {
	password := pgwire.Credentials{Password: "secret"}
	secret := secretOf(t, "secret")
	send := func(b []byte) []pgwiretest.Step { return []pgwiretest.Step{pgwiretest.Send(b)} }
	scram := func(last func([]byte) []byte) []pgwiretest.Step { return scramServer(secret, last) }
	keys := pgwire.Credentials{ClientKey: make([]byte, 32), ServerKey: make([]byte, 32)}
	for _, c := range []struct {
		name  string
		cred  pgwire.Credentials
		steps []pgwiretest.Step
		want  string
	}{
		{"ready without ok", password, send(welcome()), "before it had authenticated"},
		{
			"ok in place of its proof", password,
			scram(func([]byte) []byte { return pgwire.AppendAuthOK(nil) }), "skipped its part",
		},
		{
			"ready in place of its proof", password,
			scram(func([]byte) []byte { return pgwire.AppendReadyForQuery(nil, 'I') }),
			"before it had authenticated",
		},
		{
			"wrong proof", password,
			scram(func([]byte) []byte { return pgwire.AppendAuthSASLFinal(nil, []byte("v=AAAA")) }),
			"signature is wrong",
		},
		{
			"asks for a second proof", password,
			scram(func([]byte) []byte {
				return pgwire.AppendAuthSASLContinue(nil, []byte("r=x,s=AAAA,i=1"))
			}), "out of order",
		},
		{
			"ok right behind the offer", password,
			[]pgwiretest.Step{
				pgwiretest.Send(pgwire.AppendAuthSASL(nil, "SCRAM-SHA-256")),
				pgwiretest.Answer(pgwire.CliPassword, func([]byte) ([]byte, error) {
					return pgwire.AppendAuthOK(nil), nil
				}),
			}, "skipped its part",
		},
		{
			"asks for a proof behind ok", password,
			send(append(pgwire.AppendAuthSASL(pgwire.AppendAuthOK(nil), "SCRAM-SHA-256"),
				welcome()...)), "after it had authenticated",
		},
		{
			"asks for the password behind ok", password,
			send(append(pgwire.AppendAuthCleartext(pgwire.AppendAuthOK(nil)), welcome()...)),
			"after it had authenticated",
		},
		{"continue first", password, send(pgwire.AppendAuthSASLContinue(nil, []byte("r=x"))),
			"unexpected authentication"},
		{"final first", password, send(pgwire.AppendAuthSASLFinal(nil, []byte("v="))),
			"unexpected authentication"},
		{"other mechanisms", password, send(pgwire.AppendAuthSASL(nil, "SCRAM-SHA-256-PLUS")),
			"does not offer"},
		{"cleartext without a password", keys, send(pgwire.AppendAuthCleartext(nil)), "not known"},
		{"md5 without a password", keys, send(pgwire.AppendAuthMD5(nil, [4]byte{})), "not known"},
		{"scram without a password", pgwire.Credentials{},
			send(pgwire.AppendAuthSASL(nil, "SCRAM-SHA-256")), "not known"},
		{"kerberos", password, send([]byte("R\x00\x00\x00\x08\x00\x00\x00\x02")), "not supported"},
		{"request without a kind", password, send([]byte("R\x00\x00\x00\x06\x00\x00")), "malformed"},
		{"md5 without salt", password, send([]byte("R\x00\x00\x00\x0a\x00\x00\x00\x05xx")),
			"malformed"},
		{"row", password, send(pgwire.AppendDataRow(nil)), "unexpected message"},
		{"malformed error", password, send(pgwire.AppendMessage(nil, 'E', []byte("S"))), "malformed"},
		{"malformed key", password, send(pgwire.AppendMessage(nil, 'K', []byte("S"))), "malformed"},
		{"malformed ready", password,
			send(append(pgwire.AppendAuthOK(nil), "Z\x00\x00\x00\x05?"...)), "malformed"},
		{"over the limit", password, send([]byte("R\x7f\xff\xff\xff")), "over the limit"},
		{"http", password, send([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")), "over the limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := login(t, c.cred, c.steps...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

// TestLoginReturnsServerError as it came, for the caller to pass on.
func TestLoginReturnsServerError(t *testing.T) {
	e := fullError()
	e.Severity, e.Code = "FATAL", "3D000"
	_, err := login(t, pgwire.Credentials{}, pgwiretest.Send(pgwire.AppendError(nil, e)))
	var got *pgwire.Error
	if !errors.As(err, &got) || !reflect.DeepEqual(got, e) {
		t.Errorf("%+v", err)
	}
}

func TestLoginServerHangsUp(t *testing.T) {
	_, err := login(t, pgwire.Credentials{}, pgwiretest.Close())
	if !errors.Is(err, io.EOF) {
		t.Errorf("after the startup: %v", err)
	}
	_, err = login(t, pgwire.Credentials{}, pgwiretest.Send([]byte("R\x00\x00\x00\x08\x00\x00")))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("inside a message: %v", err)
	}
}

// TestLoginBoundsParameters: a server that never stops telling takes no memory for ever.
func TestLoginBoundsParameters(t *testing.T) {
	endless := bytes.Repeat(pgwire.AppendParameterStatus(nil, "a", "b"), 1001)
	_, err := login(t, pgwire.Credentials{},
		pgwiretest.Send(append(pgwire.AppendAuthOK(nil), endless...)))
	if err == nil || !errors.Is(err, pgwire.ErrTooManyParams) {
		t.Errorf("%v", err)
	}
	large := bytes.Repeat(pgwire.AppendParameterStatus(nil, "a", strings.Repeat("b", 60<<10)), 18)
	_, err = login(t, pgwire.Credentials{},
		pgwiretest.Send(append(pgwire.AppendAuthOK(nil), large...)))
	if err == nil || !errors.Is(err, pgwire.ErrParamsTooLarge) {
		t.Errorf("large ones: %v", err)
	}
}
