package proxy

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// writePair writes a certificate and its key as new files in the place of old ones.
func writePair(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	pair := testPair(t)
	raw, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for path, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		key:  {Type: "PRIVATE KEY", Bytes: raw},
	} {
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// What the look every ten seconds does: files that are as they were are not read, new ones are, bad
// ones change nothing and are read again when they are mended.
func TestTLSFilesAreLookedAt(t *testing.T) {
	cfg := DefaultConfig()
	dir := t.TempDir()
	cfg.TLS.Mode = TLSAllow
	cfg.TLS.CertFile, cfg.TLS.KeyFile = writePair(t, dir)
	cfg.ServerUsersFile = filepath.Join(dir, "users")
	users := func(text string) {
		if err := os.WriteFile(cfg.ServerUsersFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg.UsersFile = filepath.Join(dir, "secrets")
	secrets := func(text string) {
		if err := os.WriteFile(cfg.UsersFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const md5 = "md50123456789abcdef0123456789abcdef"
	users("a:b\n")
	secrets("a:" + md5 + "\n")
	store, err := newTLSStore(&Proxy{cfg: cfg, log: zap.NewNop(), metrics: newMetrics(nil)})
	if err != nil {
		t.Fatal(err)
	}
	first := store.get()
	if err := store.reload(false); err != nil || store.get() != first {
		t.Errorf("files that did not change: %v", err)
	}
	secrets("a:" + md5 + "\nb:" + md5 + "\n")
	if err := store.reload(false); err != nil || store.get().secrets["b"] != md5 {
		t.Errorf("a new secret: %v", err)
	}
	writePair(t, dir)
	if err := store.reload(false); err != nil || store.get() == first {
		t.Errorf("a new pair: %v", err)
	}
	second := store.get()
	users("a:b\nnonsense with a secret\n")
	for range 2 {
		err := store.reload(false)
		if err == nil || store.get() != second {
			t.Errorf("a bad file: %v", err)
		}
		if err != nil && (strings.Contains(err.Error(), "secret") ||
			!strings.Contains(err.Error(), "line 2")) {
			t.Errorf("the error is %v", err)
		}
	}
	users("a:b\nc\\:d:e:f\nold:md5" + strings.Repeat("0", 32) + "\n")
	if err := store.reload(false); err != nil || store.get().users["c:d"] != "e:f" {
		t.Errorf("mended: %v", err)
	}
	if err := os.Chmod(cfg.TLS.KeyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := store.reload(true); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a key that others can read: %v", err)
	}
}
