package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
)

// Release measures how many sessions get their answers after a switchover, and when.
type Release struct {
	Binary   string
	Rounds   int
	Sessions int
	// Active is how many of them ask; the others only have their state. 0: all.
	Active  int
	Profile string
	// Every is the mean time between two questions of a session.
	Every time.Duration
	JSON  string
	Out   io.Writer
}

// ReleaseRound is one switchover. Times are milliseconds after the new lock was entered.
type ReleaseRound struct {
	PauseMS float64 `json:"pause_ms"` // of all sessions together, before the lock and after it
	// Answered is when the sessions had their first answer; Asked only those that waited for one
	// when the lock was entered.
	Answered Distribution `json:"answered_ms"`
	Asked    Distribution `json:"asked_ms"`
	Waiting  int          `json:"waiting"`
	// LoggedIn is when the backends of the sessions began, as the new primary says; PerSecond is
	// the most of them in any 100 ms.
	LoggedIn  Distribution `json:"logged_in_ms"`
	PerSecond float64      `json:"logins_per_second"`
	Lost      int          `json:"lost"`
}

// Run measures and prints.
func (r Release) Run(ctx context.Context) error {
	if r.Rounds < 1 || r.Sessions < 1 || r.Every <= 0 {
		return errors.New("--rounds, --sessions and --every must be greater than zero")
	}
	d, err := startDemo(ctx, r.Binary, r.Profile, "lease", "",
		fmt.Sprintf("max_connections = %d", r.Sessions+100))
	if err != nil {
		return err
	}
	rounds, err := r.measure(ctx, d)
	if err = errors.Join(err, d.close()); err != nil {
		return err
	}
	if r.JSON == "" {
		return nil
	}
	b, err := json.MarshalIndent(rounds, "", " ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(r.JSON, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// releaseSession asks and asks. Its goroutine ends with the context.
type releaseSession struct {
	conn *pgx.Conn

	mu    sync.Mutex
	asked time.Time // the question that is not answered; zero: none
	spans [][2]time.Time
}

// openRelease logs in and gives the session some state.
func openRelease(ctx context.Context, dsn string) (*releaseSession, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	s := &releaseSession{conn: conn}
	for _, sql := range []string{"SET application_name = 'release'", "SET work_mem = '5MB'",
		"PREPARE p AS SELECT 1"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return s, err
		}
	}
	return s, nil
}

// run asks until the context ends; false tells that the session was lost.
func (s *releaseSession) run(ctx context.Context, every time.Duration) bool {
	for ctx.Err() == nil {
		if wait(ctx, time.Duration(rand.Int64N(int64(2*every)))) != nil {
			break
		}
		begin := time.Now()
		s.mu.Lock()
		s.asked = begin
		s.mu.Unlock()
		_, err := s.conn.Exec(ctx, "SELECT 1")
		if err != nil && ctx.Err() == nil {
			return false
		}
		s.mu.Lock()
		s.asked = time.Time{}
		s.spans = append(s.spans, [2]time.Time{begin, time.Now()})
		s.mu.Unlock()
	}
	return true
}

// since takes what was answered after a moment: the first question and its answer.
func (s *releaseSession) since(at time.Time) (asked, answered time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, span := range s.spans {
		if span[1].After(at) {
			return span[0], span[1]
		}
	}
	return s.asked, time.Time{}
}

func (s *releaseSession) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spans = s.spans[:0]
}

func (r Release) measure(ctx context.Context, d *demo) ([]ReleaseRound, error) {
	password, err := d.password()
	if err != nil {
		return nil, err
	}
	l := &load{user: d.ready.Superuser, password: password}
	l.use(away(d.ready.Nodes, ""))
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	var lost atomic.Int64
	all := make([]*releaseSession, r.Sessions)
	defer func() {
		cancel()
		group.Wait()
		for _, s := range all {
			if s != nil {
				closeConn(s.conn)
			}
		}
	}()
	for i := range all {
		var err error
		if all[i], err = openRelease(ctx, l.dsn(l.proxy(i))); err != nil {
			return nil, fmt.Errorf("session %d: %w", i, err)
		}
		if r.Active > 0 && i >= r.Active {
			continue
		}
		group.Go(func() {
			if !all[i].run(ctx, r.Every) {
				lost.Add(1)
			}
		})
	}
	var rounds []ReleaseRound
	for i := range r.Rounds {
		if err := wait(ctx, 5*time.Second); err != nil {
			return rounds, err
		}
		for _, s := range all {
			s.forget()
		}
		ch, err := d.change(ctx, "switchover")
		switch {
		case err != nil:
			return rounds, err
		case ch.Error != "" || ch.LockAt == nil:
			return rounds, fmt.Errorf("switchover: %s", ch.Error)
		}
		if err := wait(ctx, 2*r.Every+2*time.Second); err != nil {
			return rounds, err
		}
		one, err := r.one(ctx, l, all, *ch.LockAt)
		if err != nil {
			return rounds, err
		}
		one.Lost = int(lost.Swap(0))
		rounds = append(rounds, one)
		fmt.Fprintf(r.Out, "round %d of %d: no session answered for %.0f ms; after the lock, "+
			"median, 99 %% and last: logged in %s ms, at most %.0f a second; %d waited, answered "+
			"%s ms; %d lost\n", i+1, r.Rounds, one.PauseMS, brief(one.LoggedIn), one.PerSecond,
			one.Waiting, brief(one.Asked), one.Lost)
	}
	return rounds, nil
}

func brief(d Distribution) string { return fmt.Sprintf("%.0f, %.0f, %.0f", d.Median, d.P99, d.Max) }

// one gathers what a switchover was like.
func (r Release) one(ctx context.Context, l *load, all []*releaseSession, lock time.Time,
) (ReleaseRound, error) {
	out := answersAround(all, lock)
	var err error
	out.LoggedIn, out.PerSecond, err = loginsAfter(ctx, l, lock)
	return out, err
}

// answersAround tells of the sessions' answers around the entry of the lock.
func answersAround(all []*releaseSession, lock time.Time) (out ReleaseRound) {
	var answered, waited []float64
	var last, first time.Time // around the lock
	for _, s := range all {
		s.mu.Lock()
		for _, span := range s.spans {
			if span[1].Before(lock) && span[1].After(last) {
				last = span[1]
			}
		}
		s.mu.Unlock()
		asked, at := s.since(lock)
		if at.IsZero() {
			continue // not asked since; or lost, which is counted
		}
		answered = append(answered, ms(at.Sub(lock)))
		if asked.Before(lock) {
			waited = append(waited, ms(at.Sub(lock)))
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	if !last.IsZero() && !first.IsZero() {
		out.PauseMS = ms(first.Sub(last))
	}
	out.Answered, out.Asked, out.Waiting = distribution(answered), distribution(waited), len(waited)
	return out
}

// loginsAfter asks the primary when the sessions' backends began.
func loginsAfter(ctx context.Context, l *load, lock time.Time) (Distribution, float64, error) {
	conn, err := pgx.Connect(ctx, l.dsn(l.proxy(0)))
	if err != nil {
		return Distribution{}, 0, err
	}
	defer closeConn(conn)
	rows, err := conn.Query(ctx, "SELECT backend_start FROM pg_stat_activity "+
		"WHERE application_name = 'release' ORDER BY 1")
	if err != nil {
		return Distribution{}, 0, err
	}
	starts, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		return Distribution{}, 0, err
	}
	after, most, from := make([]float64, len(starts)), 0, 0
	for i, at := range starts {
		after[i] = ms(at.Sub(lock))
		for at.Sub(starts[from]) > 100*time.Millisecond {
			from++
		}
		most = max(most, i-from+1)
	}
	return distribution(after), float64(10 * most), nil
}

func newReleaseCommand() *cobra.Command {
	r := Release{}
	cmd := &cobra.Command{
		Use:   "release",
		Short: "When many sessions have their answers after a switchover",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.Out = cmd.OutOrStdout()
			return r.Run(cmd.Context())
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&r.Binary, "binary", "bin/holdfast", "the holdfast to measure")
	fl.IntVar(&r.Rounds, "rounds", 5, "number of switchovers")
	fl.IntVar(&r.Sessions, "sessions", 1000, "number of sessions")
	fl.IntVar(&r.Active, "active", 0, "how many of them ask; 0: all")
	fl.StringVar(&r.Profile, "profile", "lan", "timing profile of the group")
	fl.DurationVar(&r.Every, "every", 300*time.Millisecond, "mean time between two questions of "+
		"a session")
	fl.StringVar(&r.JSON, "out", "", "write all rounds to this file")
	return cmd
}
