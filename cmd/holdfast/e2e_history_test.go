package main_test

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	holdfast "holdfast/cmd/holdfast"
)

// historyPhases are what each kind of change takes time for: detect, fence (endorse, recruit and
// the stop of a switchover), promote, and the re-pointing of the standbys before it is opened.
var historyPhases = map[string][]string{
	"failover":   {"detect", "intent", "endorse", "recruit", "choose", "promote", "repoint"},
	"switchover": {"intent", "endorse", "recruit", "stop", "promote", "repoint"},
}

// checkHistory asks by the command line for the newest change, and holds it against what has
// happened: from the fault on, which was at a time, until the new epoch was seen at another.
func checkHistory(t *testing.T, c *holdfast.Cluster, from, seen time.Time) {
	t.Helper()
	n := c.Nodes[0]
	if !n.Running() {
		t.Fatalf("%s does not run", n.Name)
	}
	run := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), c.Binary(), append([]string{"history", "--url",
			"http://" + n.HTTP}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("history: %v: %s", err, out)
		}
		return string(out)
	}
	var answer struct {
		Changes []holdfast.ChangeStatus `json:"changes"`
	}
	if err := json.Unmarshal([]byte(run("--limit", "1", "--json")), &answer); err != nil ||
		len(answer.Changes) != 1 {
		t.Fatalf("history: %v, %d changes", err, len(answer.Changes))
	}
	ch := answer.Changes[0]
	for _, why := range wrongPhases(ch, seen.Sub(from)) {
		t.Errorf("history of the %s to epoch %d: %s: %v of %d ms", ch.Kind, ch.Epoch, why,
			ch.PhasesMS, ch.TotalMS)
	}
	text := run("--epoch", strconv.FormatUint(ch.Epoch, 10))
	for _, phase := range historyPhases[ch.Kind] {
		want := phase + " " + strconv.FormatInt(ch.PhasesMS[phase], 10)
		if !strings.Contains(text, want) {
			t.Errorf("history does not have %q:\n%s", want, text)
		}
	}
}

// wrongPhases tells what is not plausible in the times of a change that took at most so long.
func wrongPhases(ch holdfast.ChangeStatus, atMost time.Duration) []string {
	var wrong []string
	phases, isKnown := historyPhases[ch.Kind]
	if !isKnown {
		return []string{"no such kind is expected"}
	}
	sum := int64(0)
	for _, name := range phases {
		ms, ok := ch.PhasesMS[name]
		switch {
		case !ok:
			wrong = append(wrong, name+" is missing")
		case ms < 0 || ms > ch.TotalMS+1:
			wrong = append(wrong, name+" is longer than the whole")
		case name != "endorse" && name != "recruit":
			sum += ms
		}
	}
	// A failover recruits while it waits for the endorsement; a switchover stops between the two.
	fence := max(ch.PhasesMS["endorse"], ch.PhasesMS["recruit"])
	if slices.Contains(phases, "stop") {
		fence = ch.PhasesMS["endorse"] + ch.PhasesMS["recruit"]
	}
	// Each is cut off to a millisecond, and so is the whole.
	if sum += fence; sum > ch.TotalMS+int64(len(phases)) {
		wrong = append(wrong, "the phases are "+strconv.FormatInt(sum, 10)+" ms together")
	}
	if ch.PhasesMS["promote"] == 0 || ch.TotalMS == 0 {
		wrong = append(wrong, "a promotion takes no time")
	}
	if ms := atMost.Milliseconds(); ch.TotalMS > ms+historyBefore.Milliseconds() {
		wrong = append(wrong, "it was over after "+strconv.FormatInt(ms, 10)+" ms")
	}
	return wrong
}

// historyBefore is how long before a fault the last sign of life may have been.
const historyBefore = 500 * time.Millisecond

func TestWrongPhases(t *testing.T) {
	well := func() holdfast.ChangeStatus {
		return holdfast.ChangeStatus{Kind: "failover", TotalMS: 100, PhasesMS: map[string]int64{
			"detect": 10, "intent": 3, "endorse": 25, "recruit": 20, "choose": 0, "promote": 40,
			"repoint": 20, "total": 100,
		}}
	}
	for _, tt := range []struct {
		what string
		edit func(*holdfast.ChangeStatus)
		want string // part of the answer; empty if all is plausible
	}{
		{"well", func(*holdfast.ChangeStatus) {}, ""},
		{"missing", func(c *holdfast.ChangeStatus) { delete(c.PhasesMS, "recruit") },
			"recruit is missing"},
		{"negative", func(c *holdfast.ChangeStatus) { c.PhasesMS["intent"] = -1 }, "longer"},
		{"sum", func(c *holdfast.ChangeStatus) { c.PhasesMS["promote"] = 60 }, "118 ms together"},
		{"nothing", func(c *holdfast.ChangeStatus) { c.PhasesMS["promote"] = 0 }, "no time"},
		{"too long", func(c *holdfast.ChangeStatus) { c.TotalMS, c.PhasesMS["detect"] = 900, 800 },
			"over after 200 ms"},
		{"kind", func(c *holdfast.ChangeStatus) { c.Kind = "restart" }, "no such kind"},
	} {
		ch := well()
		tt.edit(&ch)
		got := strings.Join(wrongPhases(ch, 200*time.Millisecond), "; ")
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
}
