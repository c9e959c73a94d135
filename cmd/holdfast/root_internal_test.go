package main

import (
	"bytes"
	"regexp"
	"testing"
)

// TestRun runs command lines: what is not understood is an error on stderr and the code 1, with
// nothing on stdout that a script would take for an answer.
func TestRun(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{[]string{"nosuch"}, 1, `^$`, `unknown command "nosuch" for "holdfast"; .*--help`},
		{[]string{"swichover"}, 1, `^$`, `unknown command "swichover".*did you mean switchover\?`},
		{[]string{"swichover", "--to", "node2"}, 1, `^$`, `unknown command "swichover"`},
		{[]string{"config", "chek"}, 1, `^$`,
			`unknown command "chek" for "holdfast config"; did you mean check\?`},
		{[]string{"config", "chek", "-c", "x"}, 1, `^$`, `unknown command "chek"`},
		{[]string{"config"}, 1, `^$`, `a command is needed after "holdfast config"`},
		{nil, 1, `^$`, `(?s)Available Commands:.*a command is needed after "holdfast"`},
		{[]string{"status", "extra"}, 1, `^$`, `unknown command "extra" for "holdfast status"`},
		{[]string{"status", "--nosuch"}, 1, `^$`, `unknown flag: --nosuch`},
		{[]string{"--help"}, 0, `switchover`, `^$`},
		{[]string{"config", "--help"}, 0, `example`, `^$`},
		{[]string{"help", "config"}, 0, `example`, `^$`},
		{[]string{"config", "example"}, 0, `group:`, `^$`},
		{[]string{"version"}, 0, `holdfast`, `^$`},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), tt.args, &stdout, &stderr)
		if code != tt.code {
			t.Errorf("%q: exit code %d, want %d", tt.args, code, tt.code)
		}
		if !regexp.MustCompile(tt.stdout).MatchString(stdout.String()) {
			t.Errorf("%q: stdout is %q, want %q", tt.args, stdout.String(), tt.stdout)
		}
		if !regexp.MustCompile(tt.stderr).MatchString(stderr.String()) {
			t.Errorf("%q: stderr is %q, want %q", tt.args, stderr.String(), tt.stderr)
		}
	}
}
