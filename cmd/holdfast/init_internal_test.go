package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// initIn runs `holdfast init` and returns what it printed.
func initIn(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	args = append([]string{"init", "--dir", dir}, args...)
	if code := run(t.Context(), args, &out, &errs); code != 0 {
		return out.String(), fmt.Errorf("exit code %d: %s", code, &errs)
	}
	return out.String(), nil
}

// contents are the files below a directory, with their modes.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, pattern := range []string{"*", "*/*", ".*"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			info, err := os.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().IsRegular() {
				b, err := os.ReadFile(p)
				if err != nil {
					t.Fatal(err)
				}
				files[strings.TrimPrefix(p, dir+"/")] = info.Mode().String() + string(b)
			}
		}
	}
	return files
}

func mustInit(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := initIn(t, dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestInitRefuses: what no node could be called by makes nothing at all.
func TestInitRefuses(t *testing.T) {
	long := strings.Repeat("x", 55)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "at least one --node"},
		{[]string{"--node", "ca"}, "name of the CA's files"},
		{[]string{"--node", "a;b"}, "not allowed"},
		{[]string{"--node", ".."}, "not allowed"},
		{[]string{"--node", "=10.0.0.1"}, "not allowed"},
		{[]string{"--node", long}, "1 to 54"},
		{[]string{"--node", "n=!!,  ,x y"}, `"!!" is neither`},
		{[]string{"--node", "n=10.0.0.1,"}, `"" is neither`},
		{[]string{"--node", "n=10.0.0.1:7400"}, "no port"},
		{[]string{"--node", "n", "--cluster", "a b"}, "--cluster"},
		{[]string{"--node", "good", "--node", "bad name"}, "not allowed"},
	} {
		dir := filepath.Join(t.TempDir(), "new")
		_, err := initIn(t, dir, tt.args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: want %q: %v", tt.args, tt.want, err)
		}
		if exists(dir) {
			t.Errorf("%q: the directory was made", tt.args)
		}
	}
	mustInit(t, t.TempDir(), "--node", long[:54])
}

// TestInitRepeats: what is there stays as it is and is said to be kept; one that is not what was
// asked for is an error with a remedy.
func TestInitRepeats(t *testing.T) {
	dir := t.TempDir()
	out := mustInit(t, dir, "--node", "node1=10.0.0.1, host1.example")
	for _, want := range []string{"made " + dir + "/ca.crt", "made " + dir + "/node1.crt",
		"made " + dir + "/secrets/lookup"} {
		if !strings.Contains(out, want) {
			t.Errorf("nothing says %q:\n%s", want, out)
		}
	}
	before := contents(t, dir)
	for name, want := range map[string]string{"ca.crt": "-rw-r--r--", "ca.key": "-rw-------",
		"node1.crt": "-rw-r--r--", "node1.key": "-rw-------", "secrets/lookup": "-rw-------"} {
		if !strings.HasPrefix(before[name], want) {
			t.Errorf("%s is %.10q, want %q", name, before[name], want)
		}
	}
	out = mustInit(t, dir, "--node", "node1=10.0.0.1,host1.example", "--node", "node2")
	if !strings.Contains(out, "kept "+dir+"/node1.crt") || strings.Contains(out, "made "+dir+"/ca") {
		t.Errorf("the second time:\n%s", out)
	}
	_, err := initIn(t, dir, "--node", "node1=10.9.9.9", "--node", "node3")
	if err == nil || !strings.Contains(err.Error(), "does not name 10.9.9.9: remove") {
		t.Errorf("another address: %v", err)
	}
	after := contents(t, dir)
	for name := range before {
		if before[name] != after[name] {
			t.Errorf("%s was changed", name)
		}
	}
	if len(after) != len(before)+4 {
		t.Errorf("files before %d, after %d, want node2's and node3's more", len(before), len(after))
	}
}

// TestInitGoesOn: whatever a full disk or Ctrl-C left, repeating it makes the rest.
func TestInitGoesOn(t *testing.T) {
	dir := t.TempDir()
	mustInit(t, dir, "--node", "node1")
	for name, text := range map[string]string{"secrets/rewind": "", "secrets/lookup": "mine\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"node1.crt", "ca.crt", "ca.key"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	mustInit(t, dir, "--node", "node1")
	got := contents(t, dir)
	for _, name := range []string{"ca.crt", "ca.key", "node1.crt", "node1.key"} {
		if got[name] == "" {
			t.Errorf("%s was not made", name)
		}
	}
	if len(got["secrets/rewind"]) < 30 || !strings.HasSuffix(got["secrets/lookup"], "mine\n") {
		t.Errorf("an empty password %q, one of the user's %q", got["secrets/rewind"],
			got["secrets/lookup"])
	}
	if len(got) != 4+len(secretNames) {
		t.Errorf("something else is there: %v", slices.Sorted(maps.Keys(got)))
	}
}

// TestInitBesideACopiedCA: for a sidecar's certificate the CA is copied to some directory; new
// passwords there would be none of the cluster's.
func TestInitBesideACopiedCA(t *testing.T) {
	whole, copied := t.TempDir(), t.TempDir()
	mustInit(t, whole, "--node", "node1")
	take := func(name string) {
		b, err := os.ReadFile(filepath.Join(whole, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	take("ca.crt")
	if _, err := initIn(t, copied, "--node", "app-1"); err == nil ||
		!strings.Contains(err.Error(), "put the key here") {
		t.Errorf("without the key: %v", err)
	}
	take("ca.key")
	out := mustInit(t, copied, "--node", "app-1=10.1.0.1")
	if exists(filepath.Join(copied, "secrets")) || !strings.Contains(out, "not made: ") {
		t.Errorf("passwords beside a copied CA:\n%s", out)
	}
	mustInit(t, copied, "--node", "app-1", "--secrets")
	if !exists(filepath.Join(copied, "secrets", "lookup")) {
		t.Error("--secrets made none")
	}
	for _, name := range []string{"ca.crt", "ca.key"} {
		if err := os.Remove(filepath.Join(copied, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := initIn(t, copied, "--node", "app-2"); err == nil ||
		!strings.Contains(err.Error(), "of a CA that is not here") {
		t.Errorf("a new CA beside certificates of another: %v", err)
	}
}

// `holdfast cert` makes and renews certificates, and touches nothing else.
func TestCert(t *testing.T) {
	dir := t.TempDir()
	cert := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if code := run(t.Context(), append([]string{"cert", "--dir", dir}, args...), &out,
			&out); code != 0 {
			t.Fatalf("exit code %d: %s", code, &out)
		}
		return out.String()
	}
	cert("--node", "node1=10.0.0.1")
	first := contents(t, dir)
	if got := slices.Sorted(maps.Keys(first)); !slices.Equal(got,
		[]string{"ca.crt", "ca.key", "node1.crt", "node1.key"}) {
		t.Errorf("it made %v", got)
	}
	cert("--node", "node1=10.0.0.1", "--node", "app-1")
	if out := cert("--node", "node1=10.0.0.1"); !strings.Contains(out, "kept") {
		t.Error(out)
	}
	second := contents(t, dir)
	for name, text := range first {
		if second[name] != text {
			t.Errorf("%s was written again", name)
		}
	}
	cert("--node", "node1=10.0.0.2", "--renew")
	third := contents(t, dir)
	for name, text := range second {
		if renewed := strings.HasPrefix(name, "node1."); (third[name] != text) != renewed {
			t.Errorf("%s: written again: %v", name, third[name] != text)
		}
	}
	mustInit(t, dir, "--node", "node1=10.0.0.2") // names the new address, and is the CA's
	// Stopped between the key and the certificate: one is not the other's.
	if err := os.Rename(filepath.Join(dir, "app-1.key"), filepath.Join(dir, "node1.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := initIn(t, dir, "--node", "node1"); err == nil ||
		!strings.Contains(err.Error(), "private key does not match") {
		t.Errorf("a key of another certificate: %v", err)
	}
}
