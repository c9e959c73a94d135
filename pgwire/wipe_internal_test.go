package pgwire

import (
	"bytes"
	"strings"
	"testing"

	"github.com/xdg-go/stringprep"
)

// What was read and taken is gone, and what came behind it is not, wherever in the buffer it is.
func TestReaderWipe(t *testing.T) {
	secret := []byte("correct horse battery staple")
	for _, before := range []int{0, 100, readerBytes - 60, 3 * readerBytes} {
		for _, behind := range []int{0, 1, 500} {
			stream := AppendMessage(nil, 'x', make([]byte, before))
			stream = AppendPassword(stream, append(bytes.Clone(secret), 0))
			rest := bytes.Repeat([]byte{'Q'}, behind)
			r := NewReader(bytes.NewReader(append(stream, rest...)), 1<<20)
			if _, _, err := r.ReadMessage(); err != nil {
				t.Fatal(err)
			}
			_, body, err := r.ReadMessage()
			if err != nil || !bytes.Contains(body, secret) {
				t.Fatalf("%q, %v", body, err)
			}
			buffered := bytes.Clone(r.Buffered())
			if before == 0 && !bytes.Contains(r.src.buf, secret) {
				t.Error("the buffer that is looked at is not the reader's")
			}
			r.Wipe()
			for what, b := range map[string][]byte{"the buffer": r.src.buf, "the body": body} {
				if bytes.Contains(b, secret) || bytes.Contains(b, secret[:8]) {
					t.Errorf("%d, %d: the password is in %s", before, behind, what)
				}
			}
			if !bytes.Equal(r.Buffered(), buffered) {
				t.Errorf("%d, %d: what came behind it is %q", before, behind, r.Buffered())
			}
		}
	}
	NewReader(strings.NewReader(""), 1).Wipe() // nothing was read
}

// SASLprep leaves printable ASCII as it is, so that it need not be asked.
func TestPrintableASCIIIsPrepared(t *testing.T) {
	for c := range 128 {
		p := "a" + string(rune(c)) + "b"
		out, err := stringprep.SASLprep.Prepare(p)
		if isPrintableASCII([]byte(p)) && (err != nil || out != p) {
			t.Errorf("%q becomes %q, %v", p, out, err)
		}
	}
	if isPrintableASCII([]byte("pässword")) || isPrintableASCII([]byte{0x7f}) {
		t.Error("it is not")
	}
}

// Keys that were derived for one exchange do not outlive it; those of the caller do.
func TestScramClientWipesWhatItDerives(t *testing.T) {
	cred := Credentials{ClientKey: bytes.Repeat([]byte{1}, 32), ServerKey: bytes.Repeat([]byte{2}, 32)}
	c, first, err := NewScramClient(cred)
	if err != nil {
		t.Fatal(err)
	}
	nonce := string(first[bytes.LastIndex(first, []byte("r="))+2:])
	if _, err := c.Continue([]byte("r=" + nonce + "x,s=c2FsdA==,i=4096")); err != nil {
		t.Fatal(err)
	}
	if cred.ClientKey[0] != 1 || cred.ServerKey[0] != 2 {
		t.Error("the keys of the caller were wiped")
	}
	cred.Wipe()
	zero := make([]byte, 32)
	if !bytes.Equal(cred.ClientKey, zero) || !bytes.Equal(cred.ServerKey, zero) {
		t.Error("Wipe left keys")
	}
}
