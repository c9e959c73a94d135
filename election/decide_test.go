package election_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/election"
	"holdfast/pgwire"
)

var rewrite = flag.Bool("rewrite", false, "write the transcripts' expected answers anew")

// TestDecideTranscripts runs testdata/decide/*.txt: situations and the decisions they lead to.
// Each file holds cases "# title", the situation's lines, "----", the decision; see
// testdata/decide/README.md for the lines.
func TestDecideTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/decide/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			runTranscript(t, f)
		})
	}
}

func runTranscript(t *testing.T, file string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for i, c := range strings.Split(strings.TrimPrefix(string(raw), "# "), "\n# ") {
		title, rest, _ := strings.Cut(c, "\n")
		situation, want, _ := strings.Cut(rest, "----\n")
		got := answer(t, title, situation)
		if strings.TrimSpace(want) != strings.TrimSpace(got) && !*rewrite {
			t.Errorf("%s: %s:\ngot:\n%s\nwant:\n%s", file, title, got, want)
		}
		if i > 0 {
			out.WriteString("\n")
		}
		fmt.Fprintf(&out, "# %s\n%s----\n%s", title, situation, got)
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// answer parses a situation and prints the decision.
func answer(t *testing.T, title, situation string) string {
	in := election.Input{State: &election.State{V: 1}}
	p := election.DefaultPolicy(simTiming())
	for _, line := range strings.Split(situation, "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		if err := situationLine(&in, &p, line); err != nil {
			t.Fatalf("%s: %q: %v", title, line, err)
		}
	}
	d := election.Decide(in, p)
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", d.Do, d.Summary)
	if d.Do == election.ActBegin {
		fmt.Fprintf(&b, "  %s from=%s to=%s request=%d\n", d.Intent.Kind, d.Intent.From,
			d.Intent.To, d.RequestID)
	}
	for _, e := range d.Evidence {
		fmt.Fprintf(&b, "  - %s\n", e)
	}
	for _, r := range d.Refusals {
		fmt.Fprintf(&b, "  request %d refused: %s\n", r.ID, r.Why)
	}
	return b.String()
}

// situationLine adds one line: a word, a name, then key=value pairs.
func situationLine(in *election.Input, p *election.Policy, line string) error {
	words := strings.Fields(line)
	kv := map[string]string{}
	for _, w := range words[2:] {
		k, v, _ := strings.Cut(w, "=")
		kv[k] = v
	}
	name := words[1]
	switch words[0] {
	case "mode":
		p.SyncMode = name
	case "maintenance":
		in.State.Maintenance = &election.Maintenance{Reason: name}
	case "changed":
		d, err := time.ParseDuration(name)
		in.ChangeAges = append(in.ChangeAges, d)
		return err
	case "member":
		m := election.Member{Name: name, Postgres: name + ":5432"}
		if _, ok := kv["witness"]; ok {
			m.Postgres = ""
		}
		_, m.NoFailover = kv["nofailover"]
		m.Priority, _ = strconv.Atoi(kv["priority"])
		in.State.Members = append(in.State.Members, m)
	case "lock":
		l := election.Lock{Holder: name, Epoch: number(kv["epoch"]), Incarnation: kv["inc"]}
		l.Timeline = uint32(number(kv["timeline"]))
		if old, ok := kv["was"]; ok {
			o := l
			o.Incarnation = old
			in.State.History = append(in.State.History, election.Change{Lock: o})
		}
		in.State.Lock = &l
	case "intent":
		it := election.Intent{
			Kind: election.IntentKind(name), From: kv["from"], To: kv["to"],
			Epoch: number(kv["epoch"]),
		}
		in.State.Intent = &it
	case "request":
		r := election.Request{
			ID: number(name), Kind: election.RequestSwitchover, Member: kv["to"],
		}
		if k, ok := kv["kind"]; ok {
			r.Kind = election.RequestKind(k)
		}
		_, r.AcceptLoss = kv["lossy"]
		in.Requests = append(in.Requests, r)
	case "report":
		return situationReport(in, name, kv)
	default:
		return fmt.Errorf("unknown word %q", words[0])
	}
	return nil
}

func situationReport(in *election.Input, name string, kv map[string]string) error {
	o := election.Observation{Report: election.Report{
		V: 1, Node: name, Epoch: number(kv["epoch"]),
		Probe: election.ProbeResult(kv["probe"]), ProbeCount: int(number(kv["count"])),
	}}
	o.Member = election.MemberStatus{
		Name: name, Phase: election.MemberPhase(kv["phase"]), Incarnation: kv["inc"],
		SystemID: kv["system"], Timeline: uint32(number(kv["timeline"])),
		Upstream: kv["upstream"], Pledged: number(kv["pledged"]),
		DiskBad: kv["disk"], Adopted: kv["adopted"],
	}
	_, o.Member.Streaming = kv["streaming"]
	if err := situationSight(&o.Report, kv); err != nil {
		return err
	}
	if _, ok := kv["unheard"]; ok {
		o.Report = election.Report{Node: name}
	}
	if s, ok := kv["lsn"]; ok {
		l, err := pgwire.ParseLSN(s)
		if err != nil {
			return err
		}
		o.Member.LSN = l
	}
	if s, ok := kv["age"]; ok {
		d, err := time.ParseDuration(s)
		if err != nil {
			return err
		}
		o.Age = d
	}
	in.Observations = append(in.Observations, o)
	return nil
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}
