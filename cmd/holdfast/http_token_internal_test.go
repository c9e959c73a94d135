package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// What changes something needs the token, on every path that there is; what reads needs none.
func TestHTTPToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "http-token")
	token, err := openToken(path)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := openToken(path); err != nil || again != token || len(token) < 2*tokenBytes {
		t.Errorf("read again: %q, %v; made: %q", again, err, token)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	mux := newHTTPHandler(&fakeController{}, prometheus.NewRegistry())
	ask := func(token, method, path, said string) int {
		r := httptest.NewRequest(method, path, strings.NewReader(`{}`))
		r.Host = "127.0.0.1"
		r.Header.Set("Content-Type", "application/json")
		if said != "" {
			r.Header.Set("Authorization", said)
		}
		w := httptest.NewRecorder()
		needToken(token, mux).ServeHTTP(w, r)
		return w.Code
	}
	for _, path := range []string{
		"/v1/switchover", "/v1/restart", "/v1/reinit", "/v1/failover", "/v1/maintenance",
		"/v1/member/add", "/v1/member/replace", "/v1/member/remove", "/v1/not-there-yet",
	} {
		for _, said := range []string{"", "Bearer", "Bearer ", "Bearer wrong", token, "Basic " + token,
			"bearer " + token, "Bearer " + token + "x"} {
			if got := ask(token, http.MethodPost, path, said); got != http.StatusUnauthorized {
				t.Errorf("%s with %q: %d", path, said, got)
			}
		}
		if got := ask(token, http.MethodPost, path, "Bearer "+token); got == http.StatusUnauthorized {
			t.Errorf("%s with the token: %d", path, got)
		}
		if got := ask("", http.MethodPost, path, "Bearer "); got != http.StatusUnauthorized {
			t.Errorf("%s of a node without a token: %d", path, got)
		}
	}
	for _, path := range []string{"/livez", "/readyz", "/metrics", "/v1/status", "/v1/history",
		"/v1/sessions"} {
		if got := ask(token, http.MethodGet, path, ""); got != http.StatusOK {
			t.Errorf("%s: %d", path, got)
		}
	}
	for _, method := range []string{"PUT", "DELETE", "PATCH", "post"} {
		if got := ask(token, method, "/v1/status", ""); got != http.StatusUnauthorized {
			t.Errorf("%s: %d", method, got)
		}
	}
}

// Files that others could read, or that are none, are refused and not made anew.
func TestHTTPTokenFiles(t *testing.T) {
	dir := t.TempDir()
	for name, make := range map[string]func(path string) error{
		"open to others": func(p string) error { return os.WriteFile(p, []byte("secret\n"), 0o644) },
		"empty":          func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"two lines":      func(p string) error { return os.WriteFile(p, []byte("a\nb\n"), 0o600) },
		"a directory":    func(p string) error { return os.Mkdir(p, 0o700) },
		"a broken link":  func(p string) error { return os.Symlink("nowhere", p) },
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if token, err := openToken(path); err == nil {
			t.Errorf("%s: token %q", name, token)
		}
	}
}

// The commands show the token that their flag, or the environment, names.
func TestCommandsShowTheToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	token, err := openToken(path)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(needToken(token,
		newHTTPHandler(&fakeController{}, prometheus.NewRegistry())))
	defer server.Close()
	command := func(args ...string) (int, string) {
		var out bytes.Buffer
		code := run(t.Context(), args, &out, &out)
		return code, out.String()
	}
	args := []string{"switchover", "--to", "node3", "--url", server.URL}
	if code, out := command(args...); code == 0 || !strings.Contains(out, "--token-file") {
		t.Errorf("without a token: %d, %s", code, out)
	}
	if code, out := command(append(args, "--token-file", path)...); code != 0 {
		t.Errorf("with the flag: %d, %s", code, out)
	}
	if code, out := command(append(args, "--token-file", path+"x")...); code == 0 ||
		!strings.Contains(out, "no such file") {
		t.Errorf("with a file that is not there: %d, %s", code, out)
	}
	t.Setenv(tokenFileEnv, path+"x")
	if code, out := command(args...); code == 0 || !strings.Contains(out, "no such file") {
		t.Errorf("with a file that is not there, by the environment: %d, %s", code, out)
	}
	t.Setenv(tokenFileEnv, path)
	if code, out := command(args...); code != 0 {
		t.Errorf("with the environment: %d, %s", code, out)
	}
}
