package election

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPgEnviron: nothing of the environment reaches PostgreSQL's programs but the variables of the
// out-of-memory score, which a node that is spared itself adds.
func TestPgEnviron(t *testing.T) {
	const file, value = "PG_OOM_ADJUST_FILE", "PG_OOM_ADJUST_VALUE"
	for _, tt := range []struct {
		program string
		env     map[string]string
		score   int
		want    []string
	}{
		{"pg_ctl", nil, 0, nil},
		{"pg_ctl", map[string]string{"PGOPTIONS": "-c x=y", value: "5"}, 0, nil},
		{"pg_ctl", map[string]string{file: "/f"}, 0, []string{file + "=/f"}},
		{"pg_ctl", map[string]string{file: "/f", value: "7"}, -900,
			[]string{file + "=/f", value + "=7"}},
		{"pg_ctl", nil, -900, []string{file + "=/proc/self/oom_score_adj", value + "=0"}},
		{"initdb", map[string]string{file: "/f", value: "7"}, -900, nil},
	} {
		got := pgEnviron("/bin", tt.program, func(k string) string { return tt.env[k] }, tt.score)
		if len(got) < 3 || !slices.Equal(got[3:], tt.want) {
			t.Errorf("%s, %v, score %d: %q, want the usual and %q", tt.program, tt.env, tt.score,
				got, tt.want)
		}
	}
}

// TestPgWithRemedy: PostgreSQL's words stay, and the key that mends it follows them.
func TestPgWithRemedy(t *testing.T) {
	for text, want := range map[string]string{
		`could not bind IPv4 address "127.0.0.1": Address already in use`: "postgres.listen",
		`FATAL:  password authentication failed for user "holdfast_replication"`: "postgres." +
			"secrets_dir",
		"FATAL:  something else": "",
	} {
		got := pgWithRemedy(text)
		if !strings.HasPrefix(got, text) || !strings.Contains(got[len(text):], want) ||
			want == "" && got != text {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

// TestZombieIsDead: a process that was killed and not waited for has its pid still, and is dead
// (DESIGN 10.11a).
func TestZombieIsDead(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if alive, ppid := pgProc(child.Process.Pid); !alive || ppid != os.Getpid() {
		t.Errorf("a live child: alive %v, parent %d", alive, ppid)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// It has ended, and stays a zombie until it is waited for.
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, child.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
	if err != nil {
		t.Fatal(err)
	}
	if alive, _ := pgProc(child.Process.Pid); alive {
		t.Error("a zombie counts as alive")
	}
	_ = child.Wait()
}
