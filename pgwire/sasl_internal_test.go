package pgwire

import (
	"errors"
	"strings"
	"testing"
)

// TestScramClientVector is the example of RFC 7677, section 3. Its user name is in the message,
// where PostgreSQL's clients leave it out, so the client is set up by hand.
func TestScramClientVector(t *testing.T) {
	const nonce = "rOprNGfwEbeRWgbNEkqO"
	c := &ScramClient{
		cred: Credentials{Password: "pencil"}, nonce: nonce, firstBare: "n=user,r=" + nonce,
		bound: "biws",
	}
	const serverFirst = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0," +
		"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
	final, err := c.Continue([]byte(serverFirst))
	if err != nil {
		t.Fatal(err)
	}
	const want = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0," +
		"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
	if string(final) != want {
		t.Errorf("final message\n%s\nwant\n%s", final, want)
	}
	err = c.Finish([]byte("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="))
	if err != nil {
		t.Error(err)
	}
}

// TestScramServerVector is the other side of the same example.
func TestScramServerVector(t *testing.T) {
	salt := []byte("\x5b\x6d\x99\x68\x9d\x12\x35\x8e\xec\xa0\x4b\x14\x12\x36\xfa\x81")
	text, err := BuildScramSecret("pencil", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := ParseScramSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	const nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	s := NewScramServer(secret, true)
	s.stage, s.gs2, s.nonce = 1, "n,,", nonce
	s.firstBare = "n=user,r=rOprNGfwEbeRWgbNEkqO"
	s.first = "r=" + nonce + ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
	reply, key, err := s.Final([]byte("c=biws,r=" + nonce +
		",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="))
	if err != nil || string(reply) != "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" {
		t.Errorf("reply %s, %v", reply, err)
	}
	salted, err := saltPassword([]byte("pencil"), salt, 4096)
	if err != nil || string(key) != string(mac(salted, "Client Key")) {
		t.Errorf("client key %x, %v", key, err)
	}
}

// TestMD5Response is what PostgreSQL's libpq sends for these.
func TestMD5Response(t *testing.T) {
	got := MD5Response(MD5Secret("joe", "secret"), []byte{1, 2, 3, 4})
	// echo -n secretjoe | md5sum, then echo -ne '<that>\1\2\3\4' | md5sum
	if want := "md5850be429f1fe77df3f603ac424abb440"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestScramBinding: both sides must have the same certificate before them, and nobody in between
// may take the stronger mechanism out of the offer.
func TestScramBinding(t *testing.T) {
	text, err := BuildScramSecret("pencil", []byte("salt"), 1)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := ParseScramSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	mine, other := []byte("hash of the certificate"), []byte("hash of another one")
	for _, c := range []struct {
		name           string
		server, client []byte
		offer          string // what arrives at the client, if it is another list
		code           string
	}{
		{"both", mine, mine, "", ""},
		{"server alone", mine, nil, "", ""},
		{"client alone", nil, mine, "", ""},
		{"neither", nil, nil, "", ""},
		{"another certificate", mine, other, "", CodeInvalidAuth},
		{"taken out of the offer", mine, mine, "SCRAM-SHA-256\x00", CodeInvalidAuth},
		{"put into the offer", nil, mine, "SCRAM-SHA-256-PLUS\x00", CodeProtocolViolation},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewScramServer(secret, true)
			s.Bind(c.server)
			offer := c.offer
			if offer == "" {
				offer = strings.Join(s.Mechanisms(), "\x00") + "\x00"
			}
			a := authenticator{opts: LoginOptions{Binding: c.client}}
			mech, gs2, data := a.choose([]byte(offer))
			client, first, err := newScramClient(Credentials{Password: "pencil"}, gs2, data)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Choose(mech)
			var reply []byte
			if err == nil {
				reply, err = s.First(first)
			}
			if err == nil {
				reply, err = client.Continue(reply)
			}
			if err == nil {
				reply, _, err = s.Final(reply)
			}
			if err == nil {
				err = client.Finish(reply)
			}
			var pe *Error
			errors.As(err, &pe)
			if c.code == "" && err != nil || c.code != "" && (pe == nil || pe.Code != c.code) {
				t.Errorf("ends with %v, want %q", err, c.code)
			}
		})
	}
}

// FuzzScramBinding: a client that knows the password gets in if it is bound to this server's
// certificate, or says truly that one of the two cannot be; in no other case.
func FuzzScramBinding(f *testing.F) {
	cert, none := []byte("certificate"), []byte(nil)
	for _, plus := range []bool{false, true} {
		for _, offered := range []bool{false, true} {
			f.Add(plus, offered, "n,,", none)
			f.Add(plus, offered, "y,,", none)
			f.Add(plus, offered, "p=tls-server-end-point,,", cert)
			f.Add(plus, offered, "p=tls-server-end-point,,", cert[1:])
			f.Add(plus, offered, "p=tls-unique,,", cert)
			f.Add(plus, offered, "n,a=joe,", none)
			f.Add(plus, offered, "n,,n=,r=x,", none)
		}
	}
	text, err := BuildScramSecret("secret", []byte("salt"), 1)
	if err != nil {
		f.Fatal(err)
	}
	secret, err := ParseScramSecret(text)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, plus, offered bool, gs2 string, data []byte) {
		s, mech := NewScramServer(secret, true), scramPlain
		if offered {
			s.Bind(cert)
		}
		if plus {
			mech = scramPlus
		}
		c, msg, err := newScramClient(Credentials{Password: "secret"}, gs2, data)
		if err != nil {
			t.Fatal(err)
		}
		if err = s.Choose(mech); err == nil {
			msg, err = s.First(msg)
		}
		if err == nil {
			msg, err = c.Continue(msg)
		}
		if err == nil {
			msg, _, err = s.Final(msg)
		}
		if err == nil {
			err = c.Finish(msg)
		}
		want := plus && offered && gs2 == "p=tls-server-end-point,," && string(data) == string(cert) ||
			!plus && len(data) == 0 && (gs2 == "n,," || gs2 == "y,," && !offered)
		if (err == nil) != want {
			t.Errorf("%s, offered %v, %q with %q: %v", mech, offered, gs2, data, err)
		}
	})
}
