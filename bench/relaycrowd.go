package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// modeCrowd is the mode with logins beside many idle sessions.
const modeCrowd = "stub, logins beside idle sessions"

// RelayCrowd is how logins go on beside sessions that do nothing.
type RelayCrowd struct {
	Target   string  `json:"target"`
	Sessions int     `json:"sessions"`
	Rate     int     `json:"logins_per_second"`
	Logins   int     `json:"logins"`
	Failed   int     `json:"failed"`
	Error    string  `json:"error,omitempty"` // of the first that failed
	P50      float64 `json:"login_p50_us"`
	P99      float64 `json:"login_p99_us"`
	CPU      float64 `json:"cpu_percent"`
	// Before and After are the resident memory when the logins begin and end.
	Before int64 `json:"rss_bytes_before"`
	After  int64 `json:"rss_bytes_after"`
}

const (
	// crowdRate is how many clients log in each second, whatever the others take; a login counts
	// from when it was due.
	crowdRate = 200
	// crowdFlying bounds how many of them there are at the same time.
	crowdFlying = 400
)

// crowd keeps many sessions idle and lets others log in, ask one thing and leave.
func (r *Relay) crowd(ctx context.Context, t *target) error {
	if t.cmd == nil {
		return nil
	}
	c, err := connectMany(ctx, t.addr, r.Sessions, simpleSelect)
	if err != nil {
		return err
	}
	defer c.close()
	if err := wait(ctx, r.Settle); err != nil {
		return err
	}
	out := RelayCrowd{Target: t.Name, Sessions: r.Sessions, Rate: crowdRate}
	if out.Before, _, err = t.memory(); err != nil {
		return err
	}
	start, err := t.cpu()
	if err != nil {
		return err
	}
	round, failed, why := crowdLogins(ctx, t.addr, r.Crowd)
	if why != nil {
		out.Error = why.Error()
		fmt.Fprintf(r.Log, "%s: %d of %d logins failed, the first one: %v\n", t.Name, failed,
			int(round.Units), why)
	}
	end, err := t.cpu()
	if err != nil {
		return err
	}
	if out.After, _, err = t.memory(); err != nil {
		return err
	}
	out.Logins, out.Failed, out.P50, out.P99 = int(round.Units), failed, round.P50, round.P99
	out.CPU = 100 * (end - start).Seconds() / r.Crowd.Seconds()
	r.report.Crowd = append(r.report.Crowd, out)
	return ctx.Err()
}

// crowdLogins begins crowdRate logins a second; why is the error of the first that failed.
func crowdLogins(ctx context.Context, addr string, d time.Duration,
) (r RelayRound, failed int, why error) {
	var group sync.WaitGroup
	var mu sync.Mutex
	var took []int64
	places := make(chan struct{}, crowdFlying)
	begin := monotonic()
	for i := range int64(d.Seconds() * crowdRate) {
		due := begin + i*int64(time.Second)/crowdRate
		if wait(ctx, time.Duration(due-monotonic())) != nil {
			break
		}
		places <- struct{}{}
		group.Go(func() {
			err := logins{addr}.one(ctx)
			mu.Lock()
			took = append(took, monotonic()-due)
			if err != nil {
				failed++
				why = cmp.Or(why, err)
			}
			mu.Unlock()
			<-places
		})
	}
	group.Wait()
	r = RelayRound{Units: float64(len(took)), Seconds: float64(monotonic()-begin) / 1e9}
	r.latencies(took)
	return r, failed, why
}

// writeCrowd prints the mode.
func (r RelayReport) writeCrowd(out io.Writer) {
	if len(r.Crowd) == 0 {
		return
	}
	fmt.Fprintf(out, "\n**%s**\n\n", modeCrowd)
	rows := [][]string{{"target", "idle sessions", "logins/s", "logins", "failed", "p50", "p99", "CPU",
		"RSS before", "RSS after"}}
	for _, c := range r.Crowd {
		rows = append(rows, []string{c.Target, fmt.Sprint(c.Sessions), fmt.Sprint(c.Rate),
			fmt.Sprint(c.Logins), fmt.Sprint(c.Failed), fmt.Sprintf("%.1f ms", c.P50/1000),
			fmt.Sprintf("%.1f ms", c.P99/1000), fmt.Sprintf("%.1f %%", c.CPU),
			megabytes(c.Before), megabytes(c.After)})
	}
	writeRows(out, rows)
}
