package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/election"
)

// Status is what `holdfast status` and GET /v1/status show: a node's view of its group.
type Status struct {
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	Leader  string `json:"raft_leader"`
	// RaftIndex is the newest log index that this node has applied: two nodes with the same one
	// have the same state.
	RaftIndex uint64 `json:"raft_index"`
	// RaftLastIndex is the newest one on this node's disk, committed or not; it stands still
	// while nothing changes.
	RaftLastIndex uint64         `json:"raft_last_index"`
	Epoch         uint64         `json:"epoch"`
	Primary       string         `json:"primary"`
	Timeline      uint32         `json:"timeline"`
	Lease         LeaseStatus    `json:"lease"`
	Intent        *IntentStatus  `json:"intent,omitempty"`
	Members       []MemberStatus `json:"members"`
	// Voters is who votes on leases; nil before the group is formed.
	Voters   *VotersStatus `json:"voters,omitempty"`
	Sessions int           `json:"sessions"`
	Held     int           `json:"held"`
	Last     *ChangeStatus `json:"last_change,omitempty"`
	Sync     *SyncStatus   `json:"sync,omitempty"`
	// Maintenance is set while nobody but an operator changes anything.
	Maintenance *election.Maintenance `json:"maintenance,omitempty"`
	// Decision is the leader's newest; nil where it is not known.
	Decision *DecisionStatus `json:"decision,omitempty"`
	// LogicalSlots tells which standbys could go on with the primary's logical slots.
	LogicalSlots []election.SlotReadiness `json:"logical_slots,omitempty"`
	// Certificates tell when those that this node uses end.
	Certificates []CertificateStatus `json:"certificates,omitempty"`
	// Problems are what someone should look at, in words.
	Problems []string `json:"problems,omitempty"`
}

// LeaseStatus is the node's own lease.
type LeaseStatus struct {
	Epoch uint64 `json:"epoch"`
	// LeftMS is how long it may still be used, in milliseconds; 0 if it may not.
	LeftMS int64 `json:"left_ms"`
	// State is ok, doubt, closed or none.
	State string `json:"state"`
}

// isUsable tells that clients may use the primary by it.
func (l *LeaseStatus) isUsable() bool { return l.State == "ok" || l.State == "doubt" }

// IntentStatus is a change of the primary that is under way.
type IntentStatus struct {
	Epoch uint64 `json:"epoch"`
	Kind  string `json:"kind"`
	From  string `json:"from,omitempty"`
	To    string `json:"to,omitempty"`
	Cause string `json:"cause"`
}

// MemberStatus is one member as the Raft leader last heard of it.
type MemberStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// Voter tells that it votes on leases.
	Voter    bool   `json:"voter"`
	Postgres string `json:"postgres,omitempty"`
	// Role is primary, standby, witness, or what the member is doing instead.
	Role     string `json:"role"`
	Timeline uint32 `json:"timeline,omitempty"`
	LSN      string `json:"lsn,omitempty"`
	// LastLSN is what it was in the last report of a member that is lost.
	LastLSN string `json:"last_lsn,omitempty"`
	// LagBytes is how far it is behind the primary; null if that is not known.
	LagBytes  *int64 `json:"lag_bytes"`
	Streaming bool   `json:"streaming"`
	Sync      string `json:"sync,omitempty"`
	Pid       int    `json:"pid,omitempty"`
	Server    int    `json:"server_version,omitempty"`
	// Incarnation names the start of the server.
	Incarnation string   `json:"incarnation,omitempty"`
	Slots       []string `json:"slots,omitempty"`
	Sessions    int      `json:"sessions"`
	Held        int      `json:"held"`
	// PendingRestart are settings of the server that wait for its start.
	PendingRestart []string `json:"pending_restart,omitempty"`
	// Lost is what the member gave up when it last rejoined.
	Lost *election.LostSummary `json:"lost,omitempty"`
	// AgeMS is how old the report is; -1 if there is none.
	AgeMS   int64  `json:"age_ms"`
	Problem string `json:"problem,omitempty"`
}

// ChangeStatus is an entry of the lock's history.
type ChangeStatus struct {
	Epoch uint64 `json:"epoch"`
	Kind  string `json:"kind"`
	From  string `json:"from,omitempty"`
	To    string `json:"to"`
	// Planned tells that an operator asked for it.
	Planned  bool             `json:"planned"`
	Cause    string           `json:"cause"`
	At       time.Time        `json:"at"`
	PhasesMS map[string]int64 `json:"phases_ms,omitempty"`
	TotalMS  int64            `json:"total_ms"`
	// Evidence is what the decision rested on; only the newest changes have theirs.
	Evidence []string `json:"evidence,omitempty"`
	// Slots tell of the logical slots that were lost with it, or went on behind.
	Slots []string `json:"slots,omitempty"`
}

// buildStatus puts the replicated state and the leader's observations together.
func buildStatus(state *election.State, obs []election.Observation) Status {
	st := Status{
		Cluster: state.Cluster, Maintenance: state.Maintenance, Voters: votersStatus(state),
		LogicalSlots: election.LogicalReadiness(state, obs),
	}
	if l := state.Lock; l != nil {
		st.Epoch, st.Primary, st.Timeline = l.Epoch, l.Holder, l.Timeline
	}
	if i := state.Intent; i != nil {
		st.Intent = &IntentStatus{
			Epoch: i.Epoch, Kind: string(i.Kind), From: i.From, To: i.To, Cause: i.Cause,
		}
	}
	if n := len(state.History); n > 0 {
		st.Last = changeStatus(&state.History[n-1])
	}
	byName := make(map[string]*election.Observation, len(obs))
	var head *election.Observation
	for i := range obs {
		byName[obs[i].Node] = &obs[i]
		if obs[i].Node == st.Primary && obs[i].Age <= reportLost {
			head = &obs[i]
		}
	}
	for _, m := range state.Members {
		one := memberStatus(m, byName[m.Name], head)
		one.Voter = st.Voters != nil && slices.Contains(st.Voters.Names, m.Name)
		st.Members = append(st.Members, one)
	}
	for _, m := range st.Members {
		if m.Problem != "" {
			st.Problems = append(st.Problems, m.Name+": "+m.Problem)
		}
	}
	return st
}

func changeStatus(c *election.Change) *ChangeStatus {
	return &ChangeStatus{
		Epoch: c.Lock.Epoch, Kind: string(c.Kind), From: c.From, To: c.Lock.Holder,
		Planned: c.Asked, Cause: c.Cause, At: c.At, PhasesMS: c.PhasesMS, Evidence: c.Evidence,
		Slots: c.Slots, TotalMS: c.PhasesMS["total"],
	}
}

// reportLost is the age from which a member's report no longer says what it is.
const reportLost = 5 * time.Second

// roleWitness is the role of a member without PostgreSQL.
const roleWitness = "witness"

// memberStatus describes one member; head is the primary's report, if there is one.
func memberStatus(m election.Member, o, head *election.Observation) MemberStatus {
	out := MemberStatus{
		Name: m.Name, Address: m.Address, Postgres: m.Postgres, Role: "unknown", AgeMS: -1,
	}
	if o == nil {
		return out
	}
	s := &o.Member
	out.AgeMS = o.Age.Milliseconds()
	if out.Role = string(s.Phase); m.Postgres == "" {
		out.Role = roleWitness
	}
	if o.Age > reportLost {
		out.Problem = fmt.Sprintf("no report for %d s, it was %s", int(o.Age.Seconds()), out.Role)
		out.Role = "lost"
		if s.LSN != 0 && m.Postgres != "" {
			out.LastLSN = s.LSN.String()
		}
		return out
	}
	out.Sessions, out.Held = o.Sessions, o.Held
	if m.Postgres == "" {
		return out
	}
	out.Timeline, out.Streaming = s.Timeline, s.Streaming
	out.LSN, out.Pid, out.Server = s.LSN.String(), s.Pid, s.ServerVersion
	out.Incarnation, out.Slots, out.Problem = s.Incarnation, s.Slots, s.Problem
	out.Lost, out.PendingRestart = s.Lost, s.PendingRestart
	if head == nil {
		return out
	}
	// A standby's report may be newer than the primary's, and so be ahead of it.
	lag := int64(0)
	if head.Member.LSN > s.LSN {
		lag = int64(head.Member.LSN - s.LSN)
	}
	out.LagBytes = &lag
	for _, sb := range head.Member.Standbys {
		if sb.Name == m.Name {
			out.Sync = sb.SyncState
		}
	}
	return out
}

// isHeard tells whether the numbers are of a report that counts.
func (m *MemberStatus) isHeard() bool {
	return m.AgeMS >= 0 && m.AgeMS <= reportLost.Milliseconds()
}

// StatusCommand is the subcommand that shows the group.
type StatusCommand struct {
	// URL is the node's HTTP interface.
	URL  string
	JSON bool
	// Ready asks only whether the node takes clients.
	Ready bool
	// Check asks only whether all is well.
	Check bool
	Out   io.Writer
}

// writeJSON writes what a command was asked for as JSON that people can read.
func writeJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// Run asks the node and prints what it says.
func (c StatusCommand) Run(ctx context.Context) error {
	if c.Ready {
		return c.runReady(ctx)
	}
	if c.Check {
		return c.runCheck(ctx)
	}
	var st Status
	if err := callHTTP(ctx, http.MethodGet, c.URL+"/v1/status", nil, &st); err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(c.Out, st)
	}
	return st.print(c.Out)
}

// runReady is for probes: it fails while the node does not take clients.
func (c StatusCommand) runReady(ctx context.Context) error {
	resp, err := requestHTTP(ctx, http.MethodGet, c.URL+"/readyz", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", c.URL, err)
	}
	answer := strings.TrimSpace(string(text))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", answer)
	}
	fmt.Fprintln(c.Out, answer)
	return nil
}

// print writes the table.
func (s *Status) print(out io.Writer) error {
	fmt.Fprintf(out, "cluster %s, seen from %s: primary %s%s, epoch %d, timeline %d\n",
		s.Cluster, s.Node, orDash(s.Primary), s.doubt(), s.Epoch, s.Timeline)
	fmt.Fprintf(out, "raft leader %s, log index %d%s; lease of epoch %d %s (%d ms left)\n",
		orDash(s.Leader), s.RaftIndex, s.unapplied(), s.Lease.Epoch, s.Lease.State, s.Lease.LeftMS)
	if i := s.Intent; i != nil {
		fmt.Fprintf(out, "under way: %s to %s under epoch %d: %s\n", i.Kind, orDash(i.To),
			i.Epoch, i.Cause)
	}
	if l := s.Last; l != nil {
		fmt.Fprintf(out, "last change: %s %s -> %s at %s (%d ms%s): %s\n", l.Kind,
			orDash(l.From), l.To, l.At.Format(time.RFC3339), l.TotalMS, l.Phases(), l.Cause)
	}
	s.Sync.print(out)
	if m := s.Maintenance; m != nil {
		fmt.Fprintf(out, "maintenance since %s: %s\n", m.Since.Format(time.RFC3339),
			orDash(m.Reason))
	}
	s.Decision.print(out)
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tPOSTGRES\tROLE\tSYNC\tTL\tLSN\tLAG\tSESSIONS\tHELD")
	for i := range s.Members {
		m := &s.Members[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, orDash(m.Postgres),
			m.Role, orDash(m.Sync), numberOrDash(m.Timeline != 0, int64(m.Timeline)),
			orDash(m.LSN), m.lagText(), numberOrDash(m.isHeard(), int64(m.Sessions)),
			numberOrDash(m.isHeard(), int64(m.Held)))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print status: %w", err)
	}
	return s.printProblems(out)
}

// printProblems lists what someone should look at below the table. It is the only place that says
// why a node without a quorum knows nothing of the others.
func (s *Status) printProblems(out io.Writer) error {
	for i := range s.Members {
		m := &s.Members[i]
		if m.Lost == nil {
			continue
		}
		_, err := fmt.Fprintf(out, "%s gave up %d commits that the primary does not have, at epoch "+
			"%d: %s there\n", m.Name, m.Lost.Commits, m.Lost.Epoch, m.Lost.File)
		if err != nil {
			return fmt.Errorf("print status: %w", err)
		}
	}
	for i := range s.Members {
		m := &s.Members[i]
		if len(m.PendingRestart) == 0 {
			continue
		}
		_, err := fmt.Fprintf(out, "%s waits for holdfast restart %s: %s\n", m.Name, m.Name,
			strings.Join(m.PendingRestart, ", "))
		if err != nil {
			return fmt.Errorf("print status: %w", err)
		}
	}
	for _, l := range s.LogicalSlots {
		if _, err := fmt.Fprintln(out, l); err != nil {
			return fmt.Errorf("print status: %w", err)
		}
	}
	if l := s.Last; l != nil {
		for _, line := range l.Slots {
			if _, err := fmt.Fprintf(out, "with the last change: %s\n", line); err != nil {
				return fmt.Errorf("print status: %w", err)
			}
		}
	}
	for _, p := range s.Problems {
		// An error may carry a server's log, whose lines the agent has joined.
		p = strings.ReplaceAll(p, " | ", "\n         ")
		if _, err := fmt.Fprintf(out, "problem: %s\n", p); err != nil {
			return fmt.Errorf("print status: %w", err)
		}
	}
	return nil
}

// Phases says how long each phase took, in milliseconds, as ", name N" each.
func (c *ChangeStatus) Phases() string {
	var b strings.Builder
	for _, name := range election.PhaseNames() {
		if ms, ok := c.PhasesMS[name]; ok && name != "total" {
			fmt.Fprintf(&b, ", %s %d", name, ms)
		}
	}
	return b.String()
}

// unapplied says how much of the log is no part of the state yet.
func (s *Status) unapplied() string {
	if s.RaftLastIndex <= s.RaftIndex {
		return ""
	}
	return fmt.Sprintf(" (%d more not applied)", s.RaftLastIndex-s.RaftIndex)
}

// doubt says whether the primary is only what this node last heard of.
func (s *Status) doubt() string {
	if s.Primary == "" || s.Leader != "" || s.Lease.isUsable() {
		return ""
	}
	return " (not confirmed: no leader and no lease)"
}

// lagText is the lag, or a dash: 0 would read as caught up.
func (m *MemberStatus) lagText() string {
	if m.LagBytes == nil {
		return "-"
	}
	return strconv.FormatInt(*m.LagBytes, 10)
}

func numberOrDash(isKnown bool, n int64) string {
	if !isKnown {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// requestHTTP asks a node's HTTP interface; the caller closes the body.
func requestHTTP(ctx context.Context, method, url string, body io.Reader) (*http.Response, error) {
	if !strings.Contains(url, "://") {
		url = "http://" + url // as http.listen is written
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, fmt.Errorf("ask node: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	authorize(req)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask node at %s (is it running, is --url right?): %w", url, err)
	}
	return resp, nil
}

// answerMax bounds an answer; a million sessions (sessions_max) take some 400 bytes each.
const answerMax = 1 << 30

// callHTTP asks a node's HTTP interface; an error answer becomes an error.
func callHTTP(ctx context.Context, method, url string, body io.Reader, into any) error {
	resp, err := requestHTTP(ctx, method, url, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	r := io.LimitReader(resp.Body, answerMax)
	if resp.StatusCode != http.StatusOK {
		var e httpError
		if err := json.NewDecoder(r).Decode(&e); err != nil || e.Error == "" {
			return fmt.Errorf("ask node at %s: %s", url, resp.Status)
		}
		return errors.New(e.Error)
	}
	if err := json.NewDecoder(r).Decode(into); err != nil {
		return fmt.Errorf("read answer of %s: %w", url, err)
	}
	return nil
}

// defaultURL is where a node listens for HTTP unless it is configured otherwise.
const defaultURL = "http://127.0.0.1:7401"

func newStatusCommand() *cobra.Command {
	c := StatusCommand{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show members, roles, lag, epoch, lease, held sessions and the last change",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			return c.Run(ctx)
		},
	}
	cmd.Flags().StringVar(&c.URL, "url", defaultURL, "the node's HTTP interface")
	cmd.Flags().BoolVar(&c.JSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&c.Ready, "ready", false,
		"only tell whether the node takes clients, by the exit code too")
	cmd.Flags().BoolVar(&c.Check, "check", false,
		"only tell whether all is well: exit code 1, and the reasons on stderr, if there is a problem "+
			"or no primary that can be used")
	cmd.MarkFlagsMutuallyExclusive("check", "ready", "json")
	return cmd
}
