package pgwire_test

import (
	"bytes"
	"errors"
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

// exchange runs both sides against each other.
func exchange(t *testing.T, cred pgwire.Credentials, sc *pgwire.ScramServer) ([]byte, error) {
	t.Helper()
	c, first, err := pgwire.NewScramClient(cred)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := sc.First(first)
	if err != nil {
		return nil, err
	}
	final, err := c.Continue(reply)
	if err != nil {
		return nil, err
	}
	reply, key, err := sc.Final(final)
	if err != nil {
		return nil, err
	}
	return key, c.Finish(reply)
}

func TestScramGivesTheClientKeyAway(t *testing.T) {
	secret := secretOf(t, "pencil")
	key, err := exchange(t, pgwire.Credentials{Password: "pencil"},
		pgwire.NewScramServer("u", secret, true))
	if err != nil {
		t.Fatal(err)
	}
	cred := pgwire.Credentials{ClientKey: key, ServerKey: secret.ServerKey}
	if _, err := exchange(t, cred, pgwire.NewScramServer("u", secret, true)); err != nil {
		t.Errorf("login by ClientKey: %v", err)
	}
	cred.ServerKey = bytes.Repeat([]byte{1}, 32)
	if _, err := exchange(t, cred, pgwire.NewScramServer("u", secret, true)); err == nil {
		t.Error("a server without the secret was trusted")
	}
}

func TestScramRefuses(t *testing.T) {
	secret := secretOf(t, "pencil")
	wrong := pgwire.Credentials{Password: "wrong"}
	for name, ok := range map[string]bool{"wrong password": true, "unknown user": false} {
		_, err := exchange(t, wrong, pgwire.NewScramServer("u", secret, ok))
		if !errors.Is(err, pgwire.ErrScramFailed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Not even the right password of nobody gets in.
	_, err := exchange(t, pgwire.Credentials{Password: "pencil"},
		pgwire.NewScramServer("u", secret, false))
	if err == nil {
		t.Error("an unknown user got in")
	}
}

func TestScramUnknownUserLooksTheSame(t *testing.T) {
	salt := func() []byte {
		sc := pgwire.NewScramServer("nobody", pgwire.ScramSecret{}, false)
		out, err := sc.First([]byte("n,,n=,r=abc"))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Split(out, []byte(","))[1]
	}
	if !bytes.Equal(salt(), salt()) {
		t.Error("the salt of an unknown user changes, which a known one's does not")
	}
}

func TestScramMalformed(t *testing.T) {
	for _, first := range []string{
		"", "n", "n,,", "p=tls-unique,,n=,r=a", "n,a=x,n=,r=a", "x,,n=,r=a", "n,,r=a,n=",
	} {
		sc := pgwire.NewScramServer("u", secretOf(t, "p"), true)
		if _, err := sc.First([]byte(first)); err == nil {
			t.Errorf("%q taken", first)
		}
	}
	sc := pgwire.NewScramServer("u", secretOf(t, "p"), true)
	if _, err := sc.First([]byte("n,,n=,r=abc")); err != nil {
		t.Fatal(err)
	}
	for _, final := range []string{"", "c=biws", "c=biws,r=abc,p=", "c=eSws,r=abc,p=AAAA"} {
		if _, _, err := sc.Final([]byte(final)); err == nil {
			t.Errorf("%q taken", final)
		}
	}
	for _, bad := range []string{"", "md5abc", "SCRAM-SHA-256$0:aa$b:c", "SCRAM-SHA-256$1:x$y:z"} {
		if _, err := pgwire.ParseScramSecret(bad); err == nil {
			t.Errorf("secret %q taken", bad)
		}
	}
}
