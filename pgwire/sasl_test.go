package pgwire_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"holdfast/pgwire"
)

func secretOf(t *testing.T, password string) pgwire.ScramSecret {
	t.Helper()
	text, err := pgwire.BuildScramSecret(password, []byte("0123456789abcdef"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	s, err := pgwire.ParseScramSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wire changes the messages of an exchange on their way; nil leaves one as it is.
type wire struct {
	clientFirst, serverFirst, clientFinal, serverFinal func(string) string
}

func pass(change func(string) string, msg []byte) []byte {
	if change == nil {
		return msg
	}
	return []byte(change(string(msg)))
}

// exchange runs both sides against each other. It returns the key that the server learned, and
// whether the error was the server's.
func exchange(t *testing.T, cred pgwire.Credentials, s *pgwire.ScramServer, w wire) (
	key []byte, byServer bool, err error,
) {
	t.Helper()
	c, first, err := pgwire.NewScramClient(cred)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := s.First(pass(w.clientFirst, first))
	if err != nil {
		return nil, true, err
	}
	final, err := c.Continue(pass(w.serverFirst, reply))
	if err != nil {
		return nil, false, err
	}
	reply, key, err = s.Final(pass(w.clientFinal, final))
	if err != nil {
		return nil, true, err
	}
	return key, false, c.Finish(pass(w.serverFinal, reply))
}

// TestScram: by password, then by the ClientKey that the proof gave away.
func TestScram(t *testing.T) {
	for _, password := range []string{
		"pencil", "", "I\u00adX", "päss wörd\u00a0", "\xff\xfe", "a,=b",
	} {
		secret := secretOf(t, password)
		key, _, err := exchange(t, pgwire.Credentials{Password: password},
			pgwire.NewScramServer(secret, true), wire{})
		if err != nil {
			t.Errorf("password %q: %v", password, err)
			continue
		}
		cred := pgwire.Credentials{ClientKey: key, ServerKey: secret.ServerKey}
		again, _, err := exchange(t, cred, pgwire.NewScramServer(secret, true), wire{})
		if err != nil || !bytes.Equal(again, key) {
			t.Errorf("password %q, by ClientKey: %v", password, err)
		}
	}
}

// TestScramPreparesPasswords: SASLprep makes these the same (RFC 4013, section 3).
func TestScramPreparesPasswords(t *testing.T) {
	_, _, err := exchange(t, pgwire.Credentials{Password: "I\u00adX"},
		pgwire.NewScramServer(secretOf(t, "IX"), true), wire{})
	if err != nil {
		t.Error(err)
	}
}

func TestScramRefusesWrongPassword(t *testing.T) {
	secret, mock := secretOf(t, "pencil"), pgwire.NewMockKey("")
	for name, s := range map[string]*pgwire.ScramServer{
		"wrong password": pgwire.NewScramServer(secretOf(t, "other"), true),
		"unknown user":   pgwire.NewScramServer(mock.Secret("u"), false),
		"right password of a user who may not log in": pgwire.NewScramServer(secret, false),
	} {
		key, byServer, err := exchange(t, pgwire.Credentials{Password: "pencil"}, s, wire{})
		if !errors.Is(err, pgwire.ErrScramFailed) || !byServer || key != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestScramUnknownUserLooksTheSame: the shape of an answer and its salt tell nothing (I8).
func TestScramUnknownUserLooksTheSame(t *testing.T) {
	shape := regexp.MustCompile(`^r=abc[A-Za-z0-9+/]{24},s=([A-Za-z0-9+/]{22}==),i=4096$`)
	salt := func(user, shared string, ok bool) string {
		secret := secretOf(t, "p")
		if !ok {
			secret = pgwire.NewMockKey(shared).Secret(user)
		}
		out, err := pgwire.NewScramServer(secret, ok).First([]byte("n,,n=,r=abc"))
		if err != nil {
			t.Fatal(err)
		}
		m := shape.FindStringSubmatch(string(out))
		if m == nil {
			t.Fatalf("%s: %s", user, out)
		}
		return m[1]
	}
	// Each call is an exchange of its own.
	known, again := salt("known", "s", true), salt("known", "s", true)
	if known != again {
		t.Error("the salt of a known user changes")
	}
	nobody, again := salt("nobody", "s", false), salt("nobody", "s", false)
	if nobody != again {
		t.Error("the salt of an unknown user changes, which a known one's does not")
	}
	if nobody == salt("another", "s", false) {
		t.Error("all unknown users have the same salt")
	}
	if nobody == salt("nobody", "t", false) {
		t.Error("the salt has nothing to do with the secret that is shared")
	}
	if one := salt("nobody", "", false); one == salt("nobody", "", false) {
		t.Error("without a secret anybody can know the salt")
	}
}

// TestScramTampered: whatever is changed on the way, one side notices.
func TestScramTampered(t *testing.T) {
	replace := func(from, to string) func(string) string {
		return func(msg string) string {
			out := regexp.MustCompile(from).ReplaceAllString(msg, to)
			if out == msg {
				panic(fmt.Sprintf("%s changes nothing in %s", from, msg))
			}
			return out
		}
	}
	zero := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, c := range map[string]struct {
		w        wire
		byServer bool
	}{
		"channel binding asked for": {wire{clientFirst: replace(`^n`, "p=tls-unique")}, true},
		"unknown flag":              {wire{clientFirst: replace(`^n`, "x")}, true},
		"flag y, then n":            {wire{clientFirst: replace(`^n`, "y")}, true},
		"authorization identity":    {wire{clientFirst: replace(`^n,,`, "n,a=root,")}, true},
		"mandatory extension":       {wire{clientFirst: replace(`n=,`, "m=x,n=,")}, true},
		"empty client nonce":        {wire{clientFirst: replace(`r=.*`, "r=")}, true},
		"another client nonce":      {wire{clientFirst: replace(`r=.`, "r=")}, false},
		"user name added":           {wire{clientFirst: replace(`n=,`, "n=root,")}, true},
		"server's nonce cut":        {wire{serverFirst: replace(`r=(.{24}).*,s`, "r=$1,s")}, false},
		"server's nonce changed":    {wire{serverFirst: replace(`,s=`, "x,s=")}, true},
		"another salt":              {wire{serverFirst: replace(`s=..`, "s=AA")}, true},
		"salt that is no base64":    {wire{serverFirst: replace(`s=`, "s=?")}, false},
		"fewer iterations":          {wire{serverFirst: replace(`i=4096`, "i=1")}, true},
		"no iterations":             {wire{serverFirst: replace(`i=4096`, "i=0")}, false},
		"too many iterations":       {wire{serverFirst: replace(`i=4096`, "i=10000001")}, false},
		"iterations that do not fit": {
			wire{serverFirst: replace(`4096`, "99999999999999999999")}, false,
		},
		"attributes missing":          {wire{serverFirst: replace(`,i=.*`, "")}, false},
		"an error instead":            {wire{serverFirst: replace(`^.*$`, "e=other-error")}, false},
		"binding data of flag y":      {wire{clientFinal: replace(`c=biws`, "c=eSws")}, true},
		"another nonce in the end":    {wire{clientFinal: replace(`r=.`, "r=")}, true},
		"extension in the end":        {wire{clientFinal: replace(`,p=`, ",x=1,p=")}, true},
		"proof of zeroes":             {wire{clientFinal: replace(`p=.*`, "p="+zero)}, true},
		"short proof":                 {wire{clientFinal: replace(`p=.*`, "p=AAAA")}, true},
		"proof that is no base64":     {wire{clientFinal: replace(`p=`, "p=?")}, true},
		"no proof":                    {wire{clientFinal: replace(`,p=.*`, "")}, true},
		"server's proof of zeroes":    {wire{serverFinal: replace(`v=.*`, "v="+zero)}, false},
		"empty proof of the server":   {wire{serverFinal: replace(`v=.*`, "v=")}, false},
		"no proof of the server":      {wire{serverFinal: replace(`.*`, "")}, false},
		"error in place of the proof": {wire{serverFinal: replace(`v=.*`, "e=invalid-proof")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := pgwire.NewScramServer(secretOf(t, "pencil"), true)
			_, byServer, err := exchange(t, pgwire.Credentials{Password: "pencil"}, s, c.w)
			if err == nil || byServer != c.byServer {
				t.Errorf("by the server: %v, error: %v", byServer, err)
			}
		})
	}
}

// TestScramFlagY: a client that could bind, but thinks that the server cannot, is right here.
func TestScramFlagY(t *testing.T) {
	s := pgwire.NewScramServer(secretOf(t, "pencil"), true)
	_, _, err := exchange(t, pgwire.Credentials{Password: "pencil"}, s, wire{
		clientFirst: func(m string) string { return "y" + m[1:] },
		clientFinal: func(m string) string { return strings.Replace(m, "biws", "eSws", 1) },
	})
	// The proof covers the binding data, so a proxy of it cannot make the change.
	if !errors.Is(err, pgwire.ErrScramFailed) {
		t.Errorf("changed on the way: %v", err)
	}
	s = pgwire.NewScramServer(secretOf(t, "pencil"), true)
	if _, err := s.First([]byte("y,,n=,r=abc")); err != nil {
		t.Errorf("flag y: %v", err)
	}
}

// TestScramOrder: each message once, and nothing after an error (I7).
func TestScramOrder(t *testing.T) {
	server := func() *pgwire.ScramServer { return pgwire.NewScramServer(secretOf(t, "p"), true) }
	s := server()
	if _, _, err := s.Final([]byte("c=,r=,p=" + strings.Repeat("A", 43) + "=")); err == nil ||
		!strings.Contains(err.Error(), "order") {
		t.Errorf("final message first: %v", err)
	}
	s = server()
	if _, err := s.First([]byte("bad")); err == nil {
		t.Error("bad first message")
	}
	if _, err := s.First([]byte("n,,n=,r=abc")); err == nil {
		t.Error("a first message after a bad one")
	}
	s = server()
	c, first, err := pgwire.NewScramClient(pgwire.Credentials{Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Finish([]byte("v=")); err == nil {
		t.Error("the end before the beginning")
	}
	reply, err := s.First(first)
	if err != nil {
		t.Fatal(err)
	}
	final, err := c.Continue(reply)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Continue(reply); err == nil {
		t.Error("the client proved itself twice")
	}
	if _, _, err := s.Final(append(bytes.Clone(final[:len(final)-44]),
		base64.StdEncoding.EncodeToString(make([]byte, 32))...)); err == nil {
		t.Error("a wrong proof")
	}
	if _, _, err := s.Final(final); err == nil {
		t.Error("a second guess for the same nonce")
	}
}

// TestScramClientKeyNeedsServerKey: HMAC under an empty key is no proof; anyone can make it (I9).
func TestScramClientKeyNeedsServerKey(t *testing.T) {
	key := make([]byte, 32)
	for _, cred := range []pgwire.Credentials{
		{ClientKey: key},
		{ClientKey: key, ServerKey: key[:31]},
		{ClientKey: key[:31], ServerKey: key},
		{ClientKey: []byte{}, ServerKey: key},
	} {
		if _, _, err := pgwire.NewScramClient(cred); err == nil {
			t.Errorf("keys of %d and %d bytes", len(cred.ClientKey), len(cred.ServerKey))
		}
	}
	secret := secretOf(t, "p")
	right, _, err := exchange(t, pgwire.Credentials{Password: "p"},
		pgwire.NewScramServer(secret, true), wire{})
	if err != nil {
		t.Fatal(err)
	}
	_, byServer, err := exchange(t, pgwire.Credentials{ClientKey: right, ServerKey: key},
		pgwire.NewScramServer(secret, true), wire{})
	if err == nil || byServer {
		t.Errorf("a server with another ServerKey: %v", err)
	}
}

func TestParseScramSecret(t *testing.T) {
	good, err := pgwire.BuildScramSecret("p", []byte("salt"), 5000)
	if err != nil || !strings.HasPrefix(good, "SCRAM-SHA-256$5000:c2FsdA==$") {
		t.Fatalf("%s %v", good, err)
	}
	if s, err := pgwire.ParseScramSecret(good); err != nil || s.Iterations != 5000 ||
		string(s.Salt) != "salt" {
		t.Errorf("%+v %v", s, err)
	}
	for name, text := range map[string]string{
		"empty":               "",
		"md5":                 "md53175bce1d3201d16594cebf9d7eb3f9d",
		"other method":        strings.Replace(good, "SHA-256", "SHA-512", 1),
		"no iterations":       strings.Replace(good, "5000", "", 1),
		"zero iterations":     strings.Replace(good, "5000", "0", 1),
		"negative iterations": strings.Replace(good, "5000", "-5", 1),
		"too many iterations": strings.Replace(good, "5000", "10000001", 1),
		"no salt":             strings.Replace(good, "c2FsdA==", "", 1),
		"bad salt":            strings.Replace(good, "c2FsdA==", "?", 1),
		"no server key":       good[:strings.LastIndex(good, ":")],
		"short server key":    good[:strings.LastIndex(good, ":")] + ":AAAA",
		"more":                good + "$x",
	} {
		if s, err := pgwire.ParseScramSecret(text); err == nil {
			t.Errorf("%s: %+v", name, s)
		} else if strings.Contains(err.Error(), "5000") {
			t.Errorf("%s: the error shows the secret", name)
		}
	}
}
