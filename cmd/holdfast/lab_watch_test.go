package main_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	holdfast "holdfast/cmd/holdfast"
)

// slotMissing is what PostgreSQL says where a standby was not given a slot in time.
var slotMissing = regexp.MustCompile(`replication slot "[^"]*" does not exist`)

// serverLogPath is where the agent lets a server log.
func serverLogPath(n *holdfast.ClusterNode) string {
	return filepath.Join(n.DataDir+".holdfast", "postgresql.log")
}

// slotsMissed are the lines from an offset of a server's log on that speak of a slot that does not
// exist, and where the log ends now. A log that is shorter than before is another one.
func slotsMissed(n *holdfast.ClusterNode, from int64) ([]string, int64, error) {
	text, err := os.ReadFile(serverLogPath(n))
	if err != nil {
		return nil, 0, fmt.Errorf("log of the server of %s: %w", n.Name, err)
	}
	end := int64(len(text))
	if from > end {
		from = 0
	}
	var bad []string
	for line := range bytes.Lines(text[from:]) {
		if slotMissing.Match(line) {
			bad = append(bad, strings.TrimSpace(string(line)))
		}
	}
	return bad, end, nil
}

// checkServerLogs looks into the logs of all servers from their beginning.
func checkServerLogs(t *testing.T, c *holdfast.Cluster) {
	t.Helper()
	for _, n := range c.Nodes {
		bad, end, err := slotsMissed(n, 0)
		switch {
		case err != nil:
			t.Error(err)
		case end == 0:
			t.Errorf("the log of the server of %s is empty", n.Name)
		case len(bad) > 0:
			t.Errorf("log of the server of %s, %d times: %s", n.Name, len(bad), bad[0])
		}
	}
}

// judgeServerLogs looks at what the servers have logged since the fault before.
func (r *labRun) judgeServerLogs() {
	for _, n := range r.cluster.Nodes {
		bad, end, err := slotsMissed(n, r.logged[n.Name])
		if err != nil {
			r.out.fail("%v", err)
			continue
		}
		r.logged[n.Name] = end
		if end == 0 {
			r.out.fail("the log of the server of %s is empty", n.Name)
		}
		if len(bad) > 0 {
			r.out.fail("the server of %s logs %d times: %s", n.Name, len(bad), bad[0])
		}
	}
}

// runPulse writes a little to the machine's own disk, durably and at the probers' pace, until ctx
// ends: for as long as that takes nobody commits anything, whatever Holdfast does.
func (l *lab) runPulse(ctx context.Context) {
	f, err := os.Create(filepath.Join(l.cluster.Dir, "pulse"))
	if err != nil {
		l.t.Errorf("pulse of the machine: %v", err)
		return
	}
	defer func() { _ = f.Close() }()
	ticker := time.NewTicker(labProbeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if _, err := f.WriteAt(make([]byte, 8192), 0); err != nil || f.Sync() != nil {
			continue // no beat, which shows
		}
		l.pulse.Record()
	}
}

// holdsOf is how often the proxy of a node has held a session since it was started: without a
// primary, which counts when it ends, or without a lease.
func holdsOf(ctx context.Context, l *lab, n *holdfast.ClusterNode) (int, error) {
	sum := 0
	for _, name := range []string{"holdfast_proxy_hold_seconds_count",
		"holdfast_proxy_gate_closed_total"} {
		count, err := metricOf(ctx, l.net.host(n.Name).dial, n, name)
		if err != nil {
			return 0, err
		}
		sum += count
	}
	return sum, nil
}

// metricOf reads a metric without labels that counts something.
func metricOf(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error),
	n *holdfast.ClusterNode, name string,
) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("metrics of %s: %w", n.Name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("metrics of %s: %w", n.Name, err)
	}
	for line := range strings.Lines(string(text)) {
		if count, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.Atoi(strings.TrimSpace(count))
		}
	}
	return 0, fmt.Errorf("%s has no metric %s", n.Name, name)
}
