package election

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// LostReport is what a member gives up when it rejoins: transactions that it had committed and the
// new primary does not have. In synchronous mode no client was told of one of them.
type LostReport struct {
	V      int    `json:"v"`
	Member string `json:"member"`
	// Epoch is that of the lock that the member rejoins.
	Epoch uint64    `json:"epoch"`
	At    time.Time `json:"at"`
	// Timeline is the one that was left, From where the new primary left it, To the last commit.
	Timeline uint32     `json:"timeline"`
	From     pgwire.LSN `json:"from"`
	To       pgwire.LSN `json:"to,omitempty"`
	// Commits counts the transactions; XIDs are their ids, the first of them if there are many.
	Commits int      `json:"commits"`
	XIDs    []uint32 `json:"xids,omitempty"`
	// Segments are the names of the WAL files of that range, which are kept beside the report.
	Segments []string `json:"segments,omitempty"`
	// Problem tells what could not be found out or kept.
	Problem string `json:"problem,omitempty"`
}

// LostSummary is the newest report in a member's status.
type LostSummary struct {
	Epoch   uint64 `json:"epoch"`
	Commits int    `json:"commits"`
	// File is the path of the report on the member's host.
	File string `json:"file"`
}

const (
	// lostCommitsMax bounds the commits that are read, lostXIDsMax the ids that are kept.
	lostCommitsMax = 100000
	lostXIDsMax    = 1000
	// lostSegmentsMax bounds the WAL files that are kept, lostReportsMax the reports.
	lostSegmentsMax = 64
	lostReportsMax  = 10
	// lostTimeout bounds the look at the WAL: the member's return waits for it.
	lostTimeout = 20 * time.Second
)

// reportLost looks at what a rewind, or a clone, is about to throw away. It never fails: a report
// that cannot be made keeps no member away. The server is stopped.
func (a *PostgresAgent) reportLost(ctx context.Context, view pgHolderView, c pgControl,
	epoch uint64,
) {
	from, ok := view.leftAt(c.timeline)
	if !ok {
		return // not a timeline of the new primary's: nothing can be compared
	}
	r := LostReport{
		V: Version, Member: a.cfg.Name, Epoch: epoch, At: time.Now().UTC(), Timeline: c.timeline,
		From: from,
	}
	ctx, cancel := context.WithTimeout(ctx, lostTimeout)
	defer cancel()
	// It ends with an error where the WAL ends, which is what is looked for.
	out, err := a.run(ctx, "pg_waldump", "-p", filepath.Join(a.cfg.DataDir, "pg_wal"),
		"-t", strconv.FormatUint(uint64(c.timeline), 10), "-s", from.String(),
		"--rmgr=Transaction", "-n", strconv.Itoa(lostCommitsMax))
	r.read(strings.NewReader(out))
	if ctx.Err() != nil || err != nil && !strings.Contains(err.Error(), "error in WAL record") &&
		!strings.Contains(err.Error(), "could not find a valid record") {
		r.Problem = fmt.Sprintf("pg_waldump: %v", err)
	}
	if r.Commits == 0 && r.Problem == "" {
		return
	}
	path, err := a.keepLost(&r)
	if err != nil {
		a.log.Error("the report of lost transactions could not be kept", zap.Error(err))
	}
	a.log.Warn("transactions that were committed here are given up",
		zap.Int("commits", r.Commits), zap.Stringer("from", r.From), zap.Stringer("to", r.To),
		zap.Uint64("epoch", epoch), zap.String("report", path))
	err = a.updateRecord(func(rec *agentRecord) {
		rec.Lost = &LostSummary{Epoch: epoch, Commits: r.Commits, File: path}
	})
	if err != nil {
		a.log.Error("the report of lost transactions could not be noted", zap.Error(err))
	}
}

// leftAt is where the holder left a timeline.
func (v pgHolderView) leftAt(tl uint32) (pgwire.LSN, bool) {
	for _, f := range v.forks {
		if f.tl == tl {
			return f.at, true
		}
	}
	return 0, false
}

// read takes pg_waldump's lines: "rmgr: Transaction ... tx: 735, lsn: 0/15A4E70, prev ..., desc:
// COMMIT 2026-...".
func (r *LostReport) read(out io.Reader) {
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20) // a commit with many subtransactions is a long line
	for sc.Scan() {
		head, desc, ok := strings.Cut(sc.Text(), "desc: ")
		if !ok || !strings.HasPrefix(desc, "COMMIT") {
			continue
		}
		r.Commits++
		if xid, err := strconv.ParseUint(waldumpField(head, "tx: "), 10, 32); err == nil &&
			len(r.XIDs) < lostXIDsMax {
			r.XIDs = append(r.XIDs, uint32(xid))
		}
		if lsn, err := pgwire.ParseLSN(waldumpField(head, "lsn: ")); err == nil {
			r.To = lsn
		}
	}
}

// waldumpField is the value behind a name, up to a comma.
func waldumpField(line, name string) string {
	_, rest, _ := strings.Cut(line, name)
	value, _, _ := strings.Cut(rest, ",")
	return strings.TrimSpace(value)
}

// keepLost writes the report and copies the WAL of its range; older reports go.
func (a *PostgresAgent) keepLost(r *LostReport) (string, error) {
	base := filepath.Join(a.state, "lost")
	dir := filepath.Join(base, fmt.Sprintf("epoch-%d", r.Epoch))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("keep lost transactions: %w", err)
	}
	if err := a.keepSegments(r, dir); err != nil {
		r.Problem = strings.TrimPrefix(r.Problem+"; ", "; ") + err.Error()
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", fmt.Errorf("keep lost transactions: %w", err)
	}
	path := filepath.Join(dir, "report.json")
	if err := a.writeFile(path, append(b, '\n'), 0o600); err != nil {
		return "", fmt.Errorf("keep lost transactions: %w", err)
	}
	return path, dropOldReports(base)
}

// keepSegments copies the WAL files of the range.
func (a *PostgresAgent) keepSegments(r *LostReport, dir string) error {
	wal := filepath.Join(a.cfg.DataDir, "pg_wal")
	entries, err := os.ReadDir(wal)
	if err != nil {
		return fmt.Errorf("keep WAL: %w", err)
	}
	prefix := fmt.Sprintf("%08X", r.Timeline)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || len(e.Name()) != 24 ||
			!strings.HasPrefix(e.Name(), prefix) || info.Size() == 0 {
			continue
		}
		first, last := walSegment(r.Timeline, r.From, info.Size()),
			walSegment(r.Timeline, max(r.To, r.From), info.Size())
		if e.Name() < first || e.Name() > last {
			continue
		}
		if len(r.Segments) >= lostSegmentsMax {
			return fmt.Errorf("more than %d WAL files: the rest was not kept", lostSegmentsMax)
		}
		if err := copyFile(filepath.Join(wal, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("keep WAL: %w", err)
		}
		r.Segments = append(r.Segments, e.Name())
	}
	return nil
}

// walSegment is the name of the file that has a position (XLogFileName).
func walSegment(tl uint32, at pgwire.LSN, size int64) string {
	n, per := uint64(at)/uint64(size), uint64(1<<32)/uint64(size)
	return fmt.Sprintf("%08X%08X%08X", tl, n/per, n%per)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err == nil {
		err = out.Sync()
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// dropOldReports keeps the newest.
func dropOldReports(base string) error {
	entries, err := os.ReadDir(base)
	if err != nil {
		return fmt.Errorf("look at older reports: %w", err)
	}
	var epochs []uint64
	for _, e := range entries {
		n, err := strconv.ParseUint(strings.TrimPrefix(e.Name(), "epoch-"), 10, 64)
		if err == nil && strings.HasPrefix(e.Name(), "epoch-") {
			epochs = append(epochs, n)
		}
	}
	slices.Sort(epochs)
	for len(epochs) > lostReportsMax {
		dir := filepath.Join(base, fmt.Sprintf("epoch-%d", epochs[0]))
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("drop an older report: %w", err)
		}
		epochs = epochs[1:]
	}
	return nil
}
