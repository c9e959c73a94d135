package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	holdfast "holdfast/cmd/holdfast"
)

// TestSetupAsks: a plain user is told at once what is missing for what he wants to do, and nothing
// else: the demo needs PostgreSQL only.
func TestSetupAsks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root runs a script as another user")
	}
	bin, err := holdfast.FindPostgres()
	if err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "pgbench")); err != nil {
		t.Skip(err)
	}
	// A machine without the tests' tools.
	path := t.TempDir()
	for dir := path; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sort", "dirname", "id"} {
		program, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(program, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		arg  string
		code int
		want string
	}{
		{"demo", 0, ""},
		{"tools", 1, " gcc libc6-dev"},
		{"test", 1, "need root"},
		{"nonsense", 2, "usage:"},
	} {
		script, err := os.Open("../../scripts/setup.sh")
		if err != nil {
			t.Fatal(err)
		}
		defer script.Close()
		cmd := exec.Command("/bin/bash", "-s", tt.arg)
		cmd.Dir, cmd.Stdin, cmd.Env = "/", script, []string{"PATH=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: 65534, Gid: 65534},
		}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		matches := tt.want == "" && len(out) == 0 ||
			tt.want != "" && strings.Contains(string(out), tt.want)
		if got := cmd.ProcessState.ExitCode(); got != tt.code || !matches {
			t.Errorf("%s: exit code %d, want %d and %q:\n%s", tt.arg, got, tt.code, tt.want, out)
		}
	}
}
