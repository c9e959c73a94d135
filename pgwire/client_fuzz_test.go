package pgwire_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"regexp"
	"testing"
	"time"

	"holdfast/pgwire"
)

// lyingConn is a connection to a server that says what a test has; what is written to it passes
// through saw, which may change what the server goes on to say.
type lyingConn struct {
	rest []byte
	saw  func(c *lyingConn, b []byte)
	read int
}

var _ net.Conn = (*lyingConn)(nil)

func (c *lyingConn) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	// A message at a time: the next may depend on what is written in answer to this one.
	next := c.rest
	if len(next) >= pgwire.HeaderLen {
		if _, n, err := pgwire.Header(next); err == nil {
			next = next[:min(len(next), pgwire.HeaderLen+n)]
		}
	}
	n := copy(b, next)
	c.rest = c.rest[n:]
	c.read += n
	return n, nil
}

func (c *lyingConn) Write(b []byte) (int, error) {
	if c.saw != nil {
		c.saw(c, b)
	}
	return len(b), nil
}

func (*lyingConn) Close() error                     { return nil }
func (*lyingConn) LocalAddr() net.Addr              { return nil }
func (*lyingConn) RemoteAddr() net.Addr             { return nil }
func (*lyingConn) SetDeadline(time.Time) error      { return nil }
func (*lyingConn) SetReadDeadline(time.Time) error  { return nil }
func (*lyingConn) SetWriteDeadline(time.Time) error { return nil }

// clientNonce finds the client's nonce in its first message.
var clientNonce = regexp.MustCompile(`n=,r=([A-Za-z0-9+/]{24})$`)

// manyRounds is a request for so many rounds that an input takes seconds; their bound is
// TestScramTampered's.
var manyRounds = regexp.MustCompile(`i=\+?0*[0-9]{5}`)

// putNonce lets a server name the client's nonce, for which the text NONCE stands, of its length.
func putNonce(c *lyingConn, b []byte) {
	if m := clientNonce.FindSubmatch(b); m != nil {
		c.rest = bytes.ReplaceAll(c.rest, nonceHere, m[1])
	}
}

var nonceHere = []byte("NONCE-of-24-bytes-is-her")

// fuzzCredentials are those of a proxy: a password, the keys of a client's own proof, a secret of
// the method md5, all of them, and none.
func fuzzCredentials() []pgwire.Credentials {
	key := bytes.Repeat([]byte{7}, 32)
	md5 := pgwire.MD5Secret("joe", "secret")
	return []pgwire.Credentials{
		{Password: "secret"}, {ClientKey: key, ServerKey: key}, {MD5: md5},
		{Password: "secret", ClientKey: key, ServerKey: key, MD5: md5}, {},
	}
}

// said are the kinds of the authentication requests that a server made, in order.
func said(stream []byte) (kinds []byte) {
	r := pgwire.NewReader(bytes.NewReader(stream), 1<<16)
	for {
		switch typ, b, err := r.ReadMessage(); {
		case err != nil:
			return kinds
		case typ == pgwire.SrvAuth && len(b) >= 4:
			kinds = append(kinds, b[3])
		}
	}
}

// FuzzLogin: whatever a server says, a login ends; it succeeds behind an AuthenticationOk only, and
// never where a proof was begun, since a server that does not know the secret cannot end one.
func FuzzLogin(f *testing.F) {
	salted := append(append([]byte("r="), nonceHere...), "x,s=c2FsdA==,i=1"...)
	offer := pgwire.AppendAuthSASL(nil, "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256")
	asked := pgwire.AppendAuthSASLContinue(offer, salted)
	proof := []byte("v=" + base64.StdEncoding.EncodeToString(make([]byte, 32)))
	ok := append(pgwire.AppendAuthOK(nil), welcome()...)
	fatal := pgwire.NewError(pgwire.CodeInvalidAuth, "no")
	for i := range fuzzCredentials() {
		c := uint8(i)
		for _, b := range [][]byte{
			ok, welcome(), asked, append(asked[:len(asked):len(asked)], ok...),
			append(pgwire.AppendAuthSASLFinal(asked[:len(asked):len(asked)], proof), ok...),
			append(pgwire.AppendAuthCleartext(nil), ok...),
			append(pgwire.AppendAuthMD5(nil, [4]byte{1, 2, 3, 4}), ok...),
			append(pgwire.AppendAuthOK(nil), append(asked, welcome()...)...),
			pgwire.AppendError(nil, fatal), pgwire.AppendNegotiateProtocol(nil, 3<<16, nil),
		} {
			f.Add(c, b)
		}
	}
	creds := fuzzCredentials()
	f.Fuzz(func(t *testing.T, how uint8, server []byte) {
		if len(server) > 64<<10 || manyRounds.Match(server) {
			return
		}
		opts := pgwire.LoginOptions{Protocol: pgwire.Protocol3}
		if how >= 128 {
			opts = pgwire.LoginOptions{Protocol: 3<<16 | 2, Binding: []byte("certificate")}
		}
		conn := &lyingConn{rest: server, saw: putNonce}
		r := pgwire.NewReader(conn, 1<<16)
		info, err := pgwire.LoginWith(conn, r, loginParams, creds[int(how)%len(creds)], opts)
		size := 0
		for _, p := range info.Params {
			size += len(p.Name) + len(p.Value)
		}
		if size+len(info.Key) > len(server) {
			t.Errorf("%d bytes became %+v", len(server), info)
		}
		if err != nil {
			return
		}
		kinds := said(server[:conn.read-len(r.Buffered())])
		if !bytes.Contains(kinds, []byte{0}) || bytes.Contains(kinds, []byte{10}) {
			t.Errorf("logged in by the authentication requests %v", kinds)
		}
	})
}

// FuzzScramClient: a server that does not know the secret proves nothing, and gets one proof.
func FuzzScramClient(f *testing.F) {
	for how := range uint8(2) {
		f.Add(how, append(append([]byte("r="), nonceHere...), "x,s=c2FsdA==,i=1"...), []byte("v="))
		f.Add(how, append(append([]byte("r="), nonceHere...), ",s=c2FsdA==,i=1"...), []byte("v=AA=="))
		f.Add(how, append(append([]byte("r="), nonceHere...), "x,s=,i=4096,e=x"...), []byte("e=no"))
		f.Add(how, append([]byte("e="), nonceHere...), []byte("v=AAAA\n"))
	}
	creds := fuzzCredentials()
	f.Fuzz(func(t *testing.T, how uint8, first, final []byte) {
		if manyRounds.Match(first) {
			return
		}
		c, own, err := pgwire.NewScramClient(creds[how%2])
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Finish(final); err == nil {
			t.Fatal("a server proved itself before it was asked to")
		}
		nonce := clientNonce.FindSubmatch(own)[1]
		first = bytes.ReplaceAll(first, nonceHere, nonce)
		proof, err := c.Continue(first)
		if (err == nil) != (len(proof) > 0) || err == nil && !bytes.Contains(first, nonce) {
			t.Errorf("%q to %q, %v", proof, first, err)
		}
		if c.Finish(final) == nil {
			t.Errorf("a server proved itself with %q", final)
		}
		if _, again := c.Continue(first); err == nil && again == nil {
			t.Error("a second proof was given")
		}
	})
}

// FuzzSimpleQuery: whatever a server says, a query ends, within its bound, and its rows count only
// if the server was ready behind them and told no error.
func FuzzSimpleQuery(f *testing.F) {
	row := pgwire.AppendDataRow(pgwire.AppendRowDescription(nil, "a", "b"), []byte("x"), nil)
	ready := pgwire.AppendReadyForQuery(pgwire.AppendCommandComplete(nil, "SELECT 1"), 'I')
	bad := pgwire.AppendError(nil, pgwire.NewError("42P01", "no"))
	f.Add(append(row[:len(row):len(row)], ready...))
	f.Add(append(bad[:len(bad):len(bad)], ready...))
	f.Add(append(append(row[:len(row):len(row)], bad...), ready...))
	f.Add(pgwire.AppendMessage(nil, 'D', []byte("\x00\x01\xff\xff\xff\xfe")))
	f.Add(pgwire.AppendMessage(nil, 'G', []byte{0, 0, 0}))
	f.Add(append(pgwire.AppendNotice(pgwire.AppendDataRow(nil), pgwire.NewError("0", "x")), 'Z'))
	f.Fuzz(func(t *testing.T, server []byte) {
		conn := &lyingConn{rest: server}
		r := pgwire.NewReader(conn, 1<<16)
		rows, err := pgwire.SimpleQuery(conn, r, "SELECT 1")
		var wrong *pgwire.Error
		if err != nil {
			if rows != nil || !errors.As(err, &wrong) && !errors.Is(err, io.EOF) &&
				!errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v, and rows %q", err, rows)
			}
			return
		}
		again, want := pgwire.NewReader(bytes.NewReader(server), 1<<16), 0
		for {
			typ, b, err := again.ReadMessage()
			if err != nil || typ == pgwire.SrvError {
				t.Fatalf("rows %q of %q", rows, server)
			}
			if typ == pgwire.SrvReadyForQuery {
				break
			}
			if cols, err := pgwire.ParseDataRow(b); typ == pgwire.SrvDataRow && (err != nil ||
				want >= len(rows) || len(cols) != len(rows[want])) {
				t.Fatalf("row %d of %q is not %q", want, rows, cols)
			} else if typ == pgwire.SrvDataRow {
				want++
			}
		}
		if want != len(rows) {
			t.Errorf("%d rows of %d", len(rows), want)
		}
	})
}
