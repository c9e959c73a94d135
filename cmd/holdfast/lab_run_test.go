package main_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	holdfast "holdfast/cmd/holdfast"
)

// labRoles is what may become of the roles under a fault.
type labRoles string

const (
	rolesKept    labRoles = "kept"    // the same epoch before and after
	rolesChanged labRoles = "changed" // another primary
	rolesRenewed labRoles = "renewed" // a new epoch, on the same primary or another
	rolesAny     labRoles = "any"
)

// labFault is one line of the report.
type labFault struct {
	name string
	line string // of the failure table
	// isBounded puts it into `make test`.
	isBounded bool
	// isFresh wants a cluster without unplanned changes: those of the lines before would stand
	// against one for a cut (election/DESIGN.md I90).
	isFresh bool
	labKind
	roles labRoles
	// mayFail are SQLSTATEs that clients may be told: 40001 is safe to repeat, 08007 is the
	// truth about a commit whose outcome cannot be known. Nothing else ever.
	mayFail []string
	// gapMax bounds the time without a commit through the proxies of serving; 0 is no bound.
	gapMax  time.Duration
	serving func(*labRun) []string
	// feltFor is how long there must be no commit through the proxies of feltBy: a fault that
	// nobody feels has not been done.
	feltFor time.Duration
	feltBy  func(*labRun) []string
	// isUnheld tells that no proxy of serving may hold a session, however shortly.
	isUnheld bool
	// known says why the product does not do it yet; such a line is FAILED all the same.
	known string
	// run does the fault and ends it.
	run func(*labRun) error
	// undo takes away what run has prepared, once all is judged.
	undo func(*labRun) error
	// aim is what the time without a commit through the proxies of serving should be, where
	// nothing else runs: the report tells whether it was, and nothing fails.
	aim time.Duration
}

// labKind is the kind of cluster that a fault befalls.
type labKind struct {
	profile string // cloud if empty
	fence   string // group.fence; lease if empty
	// isClocked are nodes whose wall clock can be stepped.
	isClocked bool
	// hasSidecar puts a proxy without a vote on a host of its own beside the nodes.
	hasSidecar bool
}

// String names it in the report.
func (k labKind) String() string {
	text := k.profile
	if k.fence != "" {
		text += ", fence " + k.fence
	}
	if k.hasSidecar {
		text += ", sidecar"
	}
	return text
}

// labRun is one run of a fault.
type labRun struct {
	*lab
	ctx    context.Context
	before holdfast.Status
	// primary and leader are those before the fault.
	primary, leader *holdfast.ClusterNode
	// start is when the fault could begin: what prepares it does not count as its effect.
	start time.Time
	// holds are the proxies' counts of holds at that moment.
	holds map[string]int
	// killed are nodes whose process the fault ends: their proxies' sessions end with them.
	killed map[string]bool
	out    *labOutcomeOf
}

// labOutcomeOf is what came of a fault, a line of the report.
type labOutcomeOf struct {
	Name         string                `json:"name"`
	When         string                `json:"when"`
	Line         string                `json:"line"`
	Profile      string                `json:"profile"`
	Expected     string                `json:"expected"`
	Passed       bool                  `json:"passed"`
	Known        string                `json:"known_failure,omitempty"`
	Failures     []string              `json:"failures,omitempty"`
	RolesChanged bool                  `json:"roles_changed"`
	Change       string                `json:"change,omitempty"`
	Lost         int64                 `json:"sessions_lost"`
	Cut          int64                 `json:"sessions_cut_with_proxy"`
	Codes        map[string]int        `json:"errors_by_sqlstate"`
	Errors       []string              `json:"examples_of_errors,omitempty"`
	GapMS        int64                 `json:"longest_ms_without_commit"`
	GapAtMS      int64                 `json:"which_began_after_ms"`
	PulseMS      int64                 `json:"longest_ms_without_a_write_of_the_lab"`
	GapsMS       map[string]int64      `json:"longest_ms_without_commit_by_proxy"`
	AimMS        int64                 `json:"aim_ms,omitempty"`
	AimGapMS     int64                 `json:"longest_ms_to_hold_against_the_aim,omitempty"`
	Holds        map[string]int        `json:"holds_by_proxy,omitempty"`
	Commits      int64                 `json:"commits"`
	HealthyMS    int64                 `json:"ms_until_healthy"`
	ChangeMS     int64                 `json:"switchover_ms,omitempty"`
	CaughtUpMS   int64                 `json:"ms_until_caught_up,omitempty"`
	IsOldBack    bool                  `json:"old_primary_back"`
	DoorAcks     map[string]int        `json:"writes_taken_by_server"`
	Ledger       holdfast.LedgerReport `json:"ledger"`
	SecondsRun   float64               `json:"seconds"`

	// isSpoilt tells that the cluster is not fit for the next fault.
	isSpoilt bool
}

func (o *labOutcomeOf) fail(format string, args ...any) {
	o.Failures = append(o.Failures, fmt.Sprintf(format, args...))
}

// labHealthy bounds the recovery after the end of a fault; a clone may be needed.
const labHealthy = 2 * time.Minute

// labWarmUp is how many commits of each prober precede a fault.
const labWarmUp = 20

// do runs a fault on a healthy cluster and judges it. An error is one of the lab's own.
func (l *lab) do(ctx context.Context, f *labFault) (*labOutcomeOf, error) {
	out := &labOutcomeOf{Name: f.name, Line: f.line, Profile: l.kind.String(), Known: f.known,
		Expected: f.expected(), Codes: map[string]int{}, GapsMS: map[string]int64{}}
	r := &labRun{lab: l, ctx: ctx, killed: map[string]bool{}, out: out,
		holds: map[string]int{}}
	if err := r.begin(); err != nil {
		return out, fmt.Errorf("before the fault: %w", err)
	}
	if err := f.run(r); err != nil {
		out.fail("the fault: %v", err)
	}
	l.net.heal()
	for _, d := range l.disks() {
		if err := errors.Join(d.thaw(), d.empty()); err != nil {
			out.fail("end of the fault: %v", err)
		}
	}
	for _, p := range l.probers {
		if r.killed[p.node.Name] {
			p.reset()
		}
	}
	ended := time.Now()
	after, err := l.cluster.WaitHealthy(ctx, labHealthy)
	out.HealthyMS = time.Since(ended).Milliseconds()
	if err != nil {
		out.fail("not healthy after the fault: %v", err)
		out.isSpoilt = true
	}
	l.load.Changed()
	// The probers must have gone on, and idle sessions looked at their state.
	time.Sleep(2 * time.Second)
	end := time.Now()
	out.SecondsRun = end.Sub(r.start).Seconds()
	r.judge(f, after, end)
	if err := r.checkLedgers(); err != nil {
		out.fail("%v", err)
		out.isSpoilt = true
	}
	if f.undo != nil {
		if err := f.undo(r); err != nil {
			out.fail("what was prepared for the fault does not end: %v", err)
			out.isSpoilt = true
		}
	}
	out.Passed = len(out.Failures) == 0
	return out, nil
}

func (f *labFault) expected() string {
	text := "roles " + string(f.roles) + "; no session lost; "
	if len(f.mayFail) == 0 {
		text += "no error"
	} else {
		text += "no error but " + strings.Join(f.mayFail, ", ")
	}
	if f.gapMax > 0 {
		text += fmt.Sprintf("; commits at least every %v", f.gapMax)
	}
	if f.isUnheld {
		text += "; nobody held"
	}
	return text
}

// begin waits until all is well and forgets what was before.
func (r *labRun) begin() error {
	st, err := r.cluster.WaitHealthy(r.ctx, labHealthy)
	if err != nil {
		return err
	}
	r.before = st
	r.primary, r.leader = r.cluster.Node(st.Primary), r.cluster.Node(st.Leader)
	if r.primary == nil || r.leader == nil {
		return fmt.Errorf("primary %q, Raft leader %q", st.Primary, st.Leader)
	}
	// Each prober commits: the time before the first commit does not count as one without.
	for _, p := range r.probers {
		for at := p.clock.Total(); p.clock.Total() < at+labWarmUp; {
			if err := r.sleep(20 * time.Millisecond); err != nil {
				return fmt.Errorf("no commits through %s: %w", p.node.Name, err)
			}
		}
		p.takeErrors()
	}
	r.takeAcks()
	r.stats = r.load.Stats()
	for _, n := range r.cluster.Nodes {
		if r.holds[n.Name], err = holdsOf(r.ctx, r.lab, n); err != nil {
			return err
		}
	}
	r.start = time.Now()
	return nil
}

// leaderElsewhere switches over so that the primary's node does not lead the Raft group.
func (r *labRun) leaderElsewhere() error {
	for range 3 {
		if r.primary != r.leader {
			return nil
		}
		if err := r.cluster.Switchover(r.ctx, r.others(r.primary.Name)[0].Name); err != nil {
			return err
		}
		// Idle sessions move when they look at their state, so that none is held for it later.
		r.load.Changed()
		if err := errors.Join(r.sleep(2*time.Second), r.begin()); err != nil {
			return err
		}
	}
	return errors.New("the Raft leader follows the primary")
}

func (l *lab) takeAcks() []labAck {
	var acks []labAck
	for _, d := range l.doors {
		acks = append(acks, d.takeAcks()...)
	}
	return acks
}

// judge holds what happened against what must happen.
func (r *labRun) judge(f *labFault, after holdfast.Status, end time.Time) {
	o := r.out
	o.RolesChanged = after.Epoch != r.before.Epoch
	o.Change = fmt.Sprintf("%s epoch %d -> %s epoch %d", r.before.Primary, r.before.Epoch,
		after.Primary, after.Epoch)
	if after.Last != nil && o.RolesChanged {
		o.Change += fmt.Sprintf(" (%s: %s; %d ms%s)", after.Last.Kind, after.Last.Cause,
			after.Last.TotalMS, after.Last.Phases())
	}
	for _, m := range after.Members {
		if m.Name == r.before.Primary {
			o.IsOldBack = memberIsWell(after, m)
		}
	}
	switch {
	case f.roles == rolesKept && o.RolesChanged:
		o.fail("the roles changed: %s", o.Change)
	case f.roles == rolesChanged && after.Primary == r.before.Primary:
		o.fail("no failover: %s", o.Change)
	case f.roles == rolesRenewed && !o.RolesChanged:
		o.fail("no new epoch: %s", o.Change)
	}
	if !o.IsOldBack {
		o.fail("the old primary did not come back")
	}
	r.judgeClients(f)
	r.judgeGaps(f, end)
	r.judgeHolds(f)
	r.judgeServerLogs()
	acks := r.takeAcks()
	o.DoorAcks = map[string]int{}
	for _, a := range acks {
		o.DoorAcks[a.node]++
	}
	if two := twoPrimaries(acks); two != "" {
		o.fail("two writable primaries: %s", two)
	}
}

func memberIsWell(st holdfast.Status, m holdfast.MemberStatus) bool {
	if m.Name == st.Primary {
		return m.Role == "primary"
	}
	return m.Role == "standby" && m.Streaming
}

// judgeClients counts sessions and errors. The connections to a node that was killed end with it.
func (r *labRun) judgeClients(f *labFault) {
	o, now := r.out, r.load.Stats()
	o.Lost = now.Dropped - r.stats.Dropped
	o.Cut = now.Cut - r.stats.Cut
	for code, n := range now.Codes {
		if n -= r.stats.Codes[code]; n > 0 {
			o.Codes[code] += n
		}
	}
	o.Errors = append(o.Errors, now.Drops[min(len(r.stats.Drops), len(now.Drops)):]...)
	o.Errors = append(o.Errors, now.Told[min(len(r.stats.Told), len(now.Told)):]...)
	for _, p := range r.probers {
		codes, drops, lost := p.takeErrors()
		if r.killed[p.node.Name] {
			o.Cut += int64(lost)
			delete(codes, "none") // logins that were refused while nobody listened
		} else {
			o.Lost += int64(lost)
			o.Errors = append(o.Errors, drops...)
		}
		for code, n := range codes {
			o.Codes[code] += n
		}
	}
	if o.Lost > 0 {
		o.fail("%d sessions were lost though their proxy lived", o.Lost)
	}
	if n := now.StateWrong - r.stats.StateWrong; n > 0 {
		o.fail("%d sessions lost their state", n)
	}
	for _, code := range slices.Sorted(maps.Keys(o.Codes)) {
		if !slices.Contains(f.mayFail, code) {
			o.fail("%d errors with SQLSTATE %s", o.Codes[code], code)
		}
	}
}

// judgeGaps measures how long there was no commit, through each proxy and through all.
func (r *labRun) judgeGaps(f *labFault, end time.Time) {
	o := r.out
	o.Commits = r.load.Stats().Commits - r.stats.Commits
	gap, began := r.clock.GapAt(r.start, end)
	o.GapMS, o.GapAtMS = gap.Milliseconds(), began.Sub(r.start).Milliseconds()
	for _, p := range r.probers {
		gap := p.clock.Gap(r.start, end)
		o.GapsMS[p.node.Name] = gap.Milliseconds()
	}
	o.PulseMS = r.pulse.Gap(r.start, end).Milliseconds()
	if o.AimMS = f.aim.Milliseconds(); o.AimMS > 0 {
		for _, name := range f.servingOf(r) {
			o.AimGapMS = max(o.AimGapMS, o.GapsMS[name])
		}
	}
	if f.feltBy != nil {
		for _, name := range f.feltBy(r) {
			if gap := time.Duration(o.GapsMS[name]) * time.Millisecond; gap < f.feltFor {
				o.fail("the fault was not felt: %v without a commit through %s, %v are expected",
					gap, name, f.feltFor)
			}
		}
	}
	if f.gapMax == 0 {
		return
	}
	allowed := f.gapMax
	if f.isUnheld {
		// So short a time is also what others on this machine take from its disk and cores.
		allowed += time.Duration(o.PulseMS) * time.Millisecond
	}
	for _, name := range f.servingOf(r) {
		if gap := time.Duration(o.GapsMS[name]) * time.Millisecond; gap > allowed {
			o.fail("%v without a commit through %s, at most %v is allowed", gap, name, allowed)
		}
	}
}

// servingOf are the nodes whose proxies must go on.
func (f *labFault) servingOf(r *labRun) []string {
	if f.serving == nil {
		return names(r.cluster.Nodes)
	}
	return f.serving(r)
}

// judgeHolds asks the proxies that must go on whether they held anybody.
func (r *labRun) judgeHolds(f *labFault) {
	if !f.isUnheld {
		return
	}
	r.out.Holds = map[string]int{}
	for _, name := range f.servingOf(r) {
		now, err := holdsOf(r.ctx, r.lab, r.cluster.Node(name))
		if err != nil {
			r.out.fail("%v", err)
			continue
		}
		r.out.Holds[name] = now - r.holds[name]
		if now != r.holds[name] {
			r.out.fail("the proxy of %s held sessions %d times", name, now-r.holds[name])
		}
	}
}

// checkLedgers reads what is there in the end.
func (r *labRun) checkLedgers() error {
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, e2eDSN(r.primary))
	if err != nil {
		return fmt.Errorf("check ledgers: %w", err)
	}
	defer closeLabConn(conn)
	var sum holdfast.LedgerReport
	for _, p := range r.probers {
		rep, err := p.check(ctx, conn)
		if err != nil {
			return err
		}
		sum.Add(rep)
	}
	for _, d := range r.doors {
		rep, err := checkLabLedger(ctx, conn, &d.ledger, "lab_door", d.node.Name)
		if err != nil {
			return err
		}
		sum.Add(rep)
	}
	load, _, err := r.load.Check(ctx, 1)
	if err != nil {
		return err
	}
	sum.Add(load) // the last: only the load's tables have sums to agree
	r.out.Ledger = sum
	if sum.Wrong() > 0 {
		r.out.isSpoilt = true // the ledgers go on, and would tell it again
		r.out.fail("the database breaks promises: %d acknowledged commits are lost, %d doubled, "+
			"%d ghosts, %d foreign: %v", sum.Lost, sum.Doubled, sum.Ghosts, sum.Foreign,
			sum.Examples)
	}
	if sum.Acknowledged == 0 {
		r.out.fail("nothing was committed at all")
	}
	return nil
}
