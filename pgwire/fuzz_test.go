package pgwire_test

import (
	"bytes"
	"errors"
	"testing"

	"holdfast/pgwire"
)

// isViolation tells whether an error is one that a parser may give (I1).
func isViolation(err error) bool {
	var e *pgwire.Error
	return errors.As(err, &e) && e.Code == pgwire.CodeProtocolViolation
}

// FuzzParse gives a body to every parser, and to the decoders and traces as every type (I1, I2).
func FuzzParse(f *testing.F) {
	for _, c := range append(clientCases(), serverCases()...) {
		f.Add(c.ours[0], c.ours[pgwire.HeaderLen:])
	}
	for _, c := range hostile {
		f.Add(c.typ, []byte(c.body))
	}
	f.Fuzz(func(t *testing.T, typ byte, b []byte) {
		for name, parse := range parsers {
			if _, err := parse(b); err != nil && !isViolation(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, _ = pgwire.DecodeClient(typ, b)
		_, _ = pgwire.DecodeServer(typ, b)
		for _, text := range []string{
			pgwire.TraceClient(typ, b), pgwire.TraceServer(typ, b),
		} {
			if text == "" || bytes.ContainsAny([]byte(text), "\n\x00") {
				t.Errorf("trace is no line: %q", text)
			}
		}
	})
}

// FuzzStartup: a packet that is taken is the same when it is built again from what was read.
func FuzzStartup(f *testing.F) {
	f.Add(packet(3<<16, "user\x00joe\x00database\x00db\x00\x00"))
	f.Add(packet(3<<16|2, "_pq_.a\x001\x00user\x00joe\x00\x00"))
	f.Add(pgwire.AppendCancelRequest(nil, 1, []byte{1, 2, 3, 4}))
	f.Add(pgwire.AppendSSLRequest(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := readStartup(b)
		if err != nil || st.Kind != pgwire.StartupNormal {
			return
		}
		if user, ok := st.Get("user"); !ok || user == "" {
			t.Error("no user, and no error")
		}
		if len(st.Params) > 200 {
			t.Errorf("%d parameters", len(st.Params))
		}
		again, err := readStartup(pgwire.AppendStartup(nil, pgwire.Protocol3, st.Params))
		if err != nil || len(again.Params) != len(st.Params) || again.Negotiate != nil {
			t.Errorf("again: %+v %v", again, err)
		}
		for i := range again.Params {
			if again.Params[i] != st.Params[i] {
				t.Errorf("parameter %d: %v, was %v", i, again.Params[i], st.Params[i])
			}
		}
	})
}

// FuzzReader: the messages that a Reader gives are the bytes of the stream, in order.
func FuzzReader(f *testing.F) {
	f.Add(pgwire.AppendSync(pgwire.AppendQuery(nil, "SELECT 1")))
	f.Add([]byte("Q\x3f\xff\xff\xffxx"))
	f.Add([]byte("Q\x00\x00\x00\x03"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		const limit = 100
		r := pgwire.NewReader(bytes.NewReader(stream), limit)
		var again []byte
		for {
			typ, b, err := r.ReadMessage()
			if err != nil {
				break
			}
			if len(b) > limit {
				t.Fatalf("body of %d bytes", len(b))
			}
			again = pgwire.AppendMessage(again, typ, b)
		}
		if !bytes.HasPrefix(stream, again) {
			t.Errorf("read %q from %q", again, stream)
		}
	})
}

// FuzzScramServer: nobody gets in without the secret, and each message comes once (I7, I8).
func FuzzScramServer(f *testing.F) {
	f.Add([]byte("n,,n=,r=abc"), []byte("c=biws,r=abc,p=AAAA"), true)
	f.Add([]byte("y,,n=,r=abc"), []byte("c=eSws,r=abc,p="), false)
	f.Add([]byte("p=tls-exporter,,n=,r=abc"), []byte(""), true)
	secret := pgwire.ScramSecret{
		Iterations: 4096, Salt: []byte("salt"), StoredKey: make([]byte, 32),
		ServerKey: make([]byte, 32),
	}
	f.Fuzz(func(t *testing.T, first, final []byte, ok bool) {
		sc := pgwire.NewScramServer(secret, ok)
		reply, err := sc.First(first)
		if err == nil {
			nonce, _, _ := bytes.Cut(reply[2:], []byte(","))
			// With the server's nonce a message comes further.
			final = bytes.ReplaceAll(final, []byte("r=abc"), append([]byte("r="), nonce...))
		}
		if _, key, err := sc.Final(final); err == nil || key != nil {
			t.Error("got in without the secret")
		}
		if _, err := sc.First(first); err == nil {
			t.Error("a second first message was taken")
		}
	})
}
