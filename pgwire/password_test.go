package pgwire_test

import (
	"errors"
	"testing"

	"holdfast/pgwire"
)

func TestParsePassword(t *testing.T) {
	for body, want := range map[string]string{
		"secret\x00": "", "": "08P01", "secret": "08P01", "secret\x00more": "08P01",
		"secret\x00\x00": "08P01", "\x00": "28P01",
	} {
		got, err := pgwire.ParsePassword([]byte(body))
		var e *pgwire.Error
		if want == "" && (err != nil || string(got) != "secret") ||
			want != "" && (!errors.As(err, &e) || e.Code != want) {
			t.Errorf("%q: %q, %v", body, got, err)
		}
	}
}

// TestMD5Secrets: what is stored is what PostgreSQL stores, and the answer to a challenge can be
// made of it.
func TestMD5Secrets(t *testing.T) {
	// echo -n secretjoe | md5sum
	const stored = "md5c59ec932d911ffdf487595b5a2adf973"
	made := pgwire.MD5Secret("joe", "secret")
	if made != stored {
		t.Errorf("made %q", made)
	}
	if !pgwire.CheckMD5Secret(made, "joe", []byte("secret")) ||
		pgwire.CheckMD5Secret(made, "joe", []byte("Secret")) ||
		pgwire.CheckMD5Secret(made, "jim", []byte("secret")) {
		t.Error("the check is wrong")
	}
	for _, s := range []string{"", "md5", "md5xyz", stored + "0", "SCRAM-SHA-256$1:a$b:c",
		"md5" + "g6f4ee8beb1ebdc5e4a2ba2bd4fc3a3d"} {
		if pgwire.IsMD5Secret(s) {
			t.Errorf("%q is one", s)
		}
	}
}

// TestCheckPassword: the ClientKey that a password gives is the one that a proof would give away.
func TestCheckPassword(t *testing.T) {
	secret := secretOf(t, "pencil")
	key, err := secret.CheckPassword([]byte("pencil"))
	if err != nil {
		t.Fatal(err)
	}
	cred := pgwire.Credentials{ClientKey: key, ServerKey: secret.ServerKey}
	if _, _, err := exchange(t, cred, pgwire.NewScramServer(secret, true), wire{}); err != nil {
		t.Error(err)
	}
	for _, password := range []string{"", "Pencil", "pencil "} {
		if _, err := secret.CheckPassword([]byte(password)); !errors.Is(err, pgwire.ErrScramFailed) {
			t.Errorf("%q: %v", password, err)
		}
	}
	if _, err := pgwire.NewMockKey("").Secret("u").CheckPassword(nil); err == nil {
		t.Error("the mock secret has a password")
	}
}
