package pgwire

import "testing"

// TestScramClientVector is the example of RFC 7677, section 3. Its user name is in the message,
// where PostgreSQL's clients leave it out, so the client is set up by hand.
func TestScramClientVector(t *testing.T) {
	const nonce = "rOprNGfwEbeRWgbNEkqO"
	c := &ScramClient{
		cred: Credentials{Password: "pencil"}, nonce: nonce, firstBare: "n=user,r=" + nonce,
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
	s := NewScramServer("user", secret, true)
	s.stage, s.gs2, s.nonce = 1, "n,,", nonce
	s.firstBare = "n=user,r=rOprNGfwEbeRWgbNEkqO"
	s.first = "r=" + nonce + ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
	reply, key, err := s.Final([]byte("c=biws,r=" + nonce +
		",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="))
	if err != nil || string(reply) != "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" {
		t.Errorf("reply %s, %v", reply, err)
	}
	salted, err := saltPassword("pencil", salt, 4096)
	if err != nil || string(key) != string(mac(salted, "Client Key")) {
		t.Errorf("client key %x, %v", key, err)
	}
}

// TestMD5Response is what PostgreSQL's libpq sends for these.
func TestMD5Response(t *testing.T) {
	got := md5Response("joe", "secret", []byte{1, 2, 3, 4})
	// echo -n secretjoe | md5sum, then echo -ne '<that>\1\2\3\4' | md5sum
	if want := "md5850be429f1fe77df3f603ac424abb440"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
