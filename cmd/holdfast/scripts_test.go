package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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

// TestMatrixPrepares: a Debian that cannot be fetched at once is tried for again, three times in
// all, and one that is there is left alone.
func TestMatrixPrepares(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes another Debian")
	}
	path := t.TempDir()
	for name, text := range map[string]string{
		"sleep": "exit 0",
		"debootstrap": `echo >>"$TRIES"
			[ $(wc -l <"$TRIES") -gt "$FAILS" ] || { echo no route to the mirror; exit 1; }
			mkdir -p "$4/sbin" "$4/usr/bin" && cp /bin/true "$4/sbin/mkfs.ext4"
			cp /bin/true "$4/usr/bin/patroni"`,
	} {
		err := os.WriteFile(filepath.Join(path, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755)
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		fails, runs, tries int
		ok                 bool
	}{
		{0, 1, 1, true}, {2, 1, 3, true}, {3, 1, 3, false}, {0, 2, 1, true},
	} {
		dir := t.TempDir()
		tries := filepath.Join(dir, "tries")
		var out []byte
		var err error
		for range tt.runs {
			cmd := exec.Command("../../scripts/matrix.sh", "--prepare", "17")
			cmd.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"),
				"MATRIX_ROOTS="+filepath.Join(dir, "roots"), "TRIES="+tries,
				"FAILS="+strconv.Itoa(tt.fails))
			out, err = cmd.CombinedOutput()
		}
		b, _ := os.ReadFile(tries)
		if got := strings.Count(string(b), "\n"); got != tt.tries || (err == nil) != tt.ok ||
			tt.ok != strings.Contains(string(out), "the Debian trixie of 20") {
			t.Errorf("%+v: %d tries, %v:\n%s", tt, got, err, out)
		}
	}
}

// TestSetupForgivesItsFormerSelf: what forbids packages to start their servers is removed if the
// run that made it was killed, and stays if it goes on or somebody else made it.
func TestSetupForgivesItsFormerSelf(t *testing.T) {
	script, err := os.ReadFile("../../scripts/setup.sh")
	if err != nil {
		t.Fatal(err)
	}
	const place = "policy=/usr/sbin/policy-rc.d\n"
	policy := filepath.Join(t.TempDir(), "policy-rc.d")
	text := strings.Replace(string(script), place, "policy="+policy+"\n", 1)
	if text == string(script) {
		t.Fatalf("there is no %q", place)
	}
	text, _, _ = strings.Cut(text, "# pg_bin prints")
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	mark := "#!/bin/sh\n# holdfast: scripts/setup.sh, pid "
	for _, tt := range []struct {
		text  string
		stays bool
	}{
		{mark + strconv.Itoa(gone.Process.Pid) + "\nexit 101\n", false},
		{mark + strconv.Itoa(os.Getpid()) + "\nexit 101\n", true},
		{"#!/bin/sh\nexit 101\n", true},
		{"", true},
	} {
		if err := os.WriteFile(policy, []byte(tt.text), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/bash", "-s", "demo")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if _, err := os.Stat(policy); (err == nil) != tt.stays {
			t.Errorf("%q: stays: %v", tt.text, err == nil)
		}
	}
	if !strings.Contains(string(script), `policy_mark="# holdfast: scripts/setup.sh, pid"`) ||
		!strings.Contains(string(script), `"$policy_mark" $$ >"$policy"`) {
		t.Error("the script makes another mark than it looks for")
	}
}
