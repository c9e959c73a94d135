package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"holdfast/config"
)

// statusTimeout bounds one question to one node: a frozen one must not hold up the others.
const statusTimeout = 2 * time.Second

// Status asks the node.
func (n *ClusterNode) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var st Status
	err := n.call(ctx, http.MethodGet, "/v1/status", nil, &st)
	return st, err
}

// call asks a node's HTTP interface on a connection that is closed afterwards.
func (n *ClusterNode) call(ctx context.Context, method, path string, body, into any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("ask node: %w", err)
		}
		r = bytes.NewReader(b)
	}
	if method != http.MethodGet {
		token, err := config.ReadSecret(n.TokenFile)
		if err != nil {
			return fmt.Errorf("ask node: %w", err)
		}
		ctx = context.WithValue(ctx, tokenKey{}, token)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.HTTP+path, r)
	if err != nil {
		return fmt.Errorf("ask node: %w", err)
	}
	authorize(req)
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.cluster.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask node: %w", err)
	}
	defer resp.Body.Close()
	limited := io.LimitReader(resp.Body, 4<<20)
	if resp.StatusCode != http.StatusOK {
		var e httpError
		if err := json.NewDecoder(limited).Decode(&e); err != nil || e.Error == "" {
			return fmt.Errorf("ask node: %s", resp.Status)
		}
		return errors.New(e.Error)
	}
	if into == nil {
		_, err = io.Copy(io.Discard, limited)
		return err
	}
	if err := json.NewDecoder(limited).Decode(into); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return nil
}

// statusGrace is how long Status waits for the other nodes once one has answered.
const statusGrace = 200 * time.Millisecond

// statusAnswer is what one node said.
type statusAnswer struct {
	node string
	st   Status
	err  error
}

// Status asks all nodes at once and returns the newest view: that of the highest epoch among
// those that answer about as fast as the first. It waits for every question it asked.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan statusAnswer, len(c.Nodes))
	asked := 0
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		asked++
		go func() {
			st, err := n.Status(ctx)
			answers <- statusAnswer{n.Name, st, err}
		}()
	}
	var best Status
	var errs []error
	isFound := false
	for range asked {
		a := <-answers
		switch {
		case a.err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", a.node, a.err))
		case !isFound:
			best, isFound = a.st, true
			time.AfterFunc(statusGrace, cancel)
		case a.st.Epoch > best.Epoch || a.st.Epoch == best.Epoch && a.st.Node == a.st.Leader:
			// The leader's view of the members is the freshest.
			best = a.st
		}
	}
	cancel()
	if !isFound {
		return Status{}, errors.Join(append(errs, errors.New("no node answers"))...)
	}
	return best, nil
}

// Primary returns the node that holds the leader lock.
func (c *Cluster) Primary(ctx context.Context) (*ClusterNode, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	n := c.Node(st.Primary)
	if n == nil {
		return nil, errors.New("there is no primary")
	}
	return n, nil
}

// Switchover moves the primary through any node that answers; empty lets the group choose.
func (c *Cluster) Switchover(ctx context.Context, to string) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if err := c.ask(ctx, "/v1/switchover", switchoverRequest{To: to}, nil); err != nil {
		return fmt.Errorf("switchover to %s: %w", orDash(to), err)
	}
	return nil
}

// WaitSwitchover waits until a switchover to the node would not be refused: a member that streams
// may still have much to catch up with.
func (c *Cluster) WaitSwitchover(ctx context.Context, to string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		var answer checksAnswer
		err := c.ask(ctx, "/v1/switchover", switchoverRequest{To: to, DryRun: true}, &answer)
		var missing []string
		for _, check := range answer.Checks {
			if check.Why != "" {
				missing = append(missing, check.What+": "+check.Why)
			}
		}
		if err == nil && len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a switchover to %s to be possible: %s: %w", to,
				strings.Join(missing, ", "), errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ask sends a request to the first node that answers at all.
func (c *Cluster) ask(ctx context.Context, path string, body, into any) error {
	last := errors.New("no node runs")
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		// A frozen node does not answer; one that answers is asked.
		if _, err := n.Status(ctx); err != nil {
			last = err
			continue
		}
		return n.call(ctx, http.MethodPost, path, body, into)
	}
	return last
}

// Restart restarts PostgreSQL on a node as planned.
func (c *Cluster) Restart(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	n := c.Node(name)
	err := n.call(ctx, http.MethodPost, "/v1/restart", restartRequest{Member: name}, nil)
	if err != nil {
		return fmt.Errorf("restart %s: %w", name, err)
	}
	return nil
}

// WaitHealthy waits until the group has one primary, every other member streams from it on its
// timeline, and commits wait for as many of them as they should. It fails early if a node that
// should run has ended.
func (c *Cluster) WaitHealthy(ctx context.Context, timeout time.Duration) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	why := "nothing was asked yet"
	for {
		for _, n := range c.Nodes {
			if !n.Running() {
				return Status{}, fmt.Errorf("%s has ended; its log ends with:\n%s", n.Name,
					n.LogTail(8))
			}
		}
		st, err := c.Status(ctx)
		if err != nil {
			why = err.Error()
		} else if why = unhealthy(&st, len(c.Nodes)); why == "" {
			return st, nil
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("wait for %d healthy members: %s: %w", len(c.Nodes), why,
				ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// WaitEpoch waits until the lock's epoch is past the given one and no change is under way.
func (c *Cluster) WaitEpoch(ctx context.Context, past uint64, timeout time.Duration) (Status,
	error,
) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		st, err := c.Status(ctx)
		if err == nil && st.Epoch > past && st.Intent == nil {
			return st, nil
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("wait for an epoch past %d: %w", past, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// reportAgeMax is how old a member's report may be to count.
const reportAgeMax = 5 * time.Second

// unhealthy says what is missing until want members are one primary and standbys that stream and
// that commits wait for; empty if nothing is.
func unhealthy(st *Status, want int) string {
	switch {
	case st.Primary == "":
		return "there is no primary"
	case st.Intent != nil:
		return "a " + st.Intent.Kind + " is under way"
	case len(st.Members) != want:
		return fmt.Sprintf("%d members are known", len(st.Members))
	}
	var missing []string
	for _, m := range st.Members {
		if why := memberUnhealthy(st, &m); why != "" {
			missing = append(missing, m.Name+" "+why)
		}
	}
	if len(missing) == 0 && st.Sync != nil && st.Sync.Degraded != nil {
		missing = append(missing, "commits wait for "+st.Sync.Rule)
	}
	return strings.Join(missing, ", ")
}

// dataMembers counts the members with PostgreSQL.
func (s *Status) dataMembers() int {
	n := 0
	for i := range s.Members {
		if s.Members[i].Postgres != "" {
			n++
		}
	}
	return n
}

func memberUnhealthy(st *Status, m *MemberStatus) string {
	isPrimary := m.Name == st.Primary
	switch {
	case m.AgeMS < 0 || m.AgeMS > reportAgeMax.Milliseconds():
		return "does not report"
	case m.Problem != "":
		return "has a problem: " + m.Problem
	case m.Role == roleWitness:
		return ""
	case isPrimary && m.Role != "primary", !isPrimary && m.Role != "standby":
		return "is " + m.Role
	case !isPrimary && !m.Streaming:
		return "does not stream"
	case !isPrimary && m.Sync == "":
		return "is not seen by the primary"
	case m.Timeline != st.Timeline:
		return fmt.Sprintf("is on timeline %d and not %d", m.Timeline, st.Timeline)
	case len(m.Slots) < st.dataMembers()-1:
		return fmt.Sprintf("has %d slots", len(m.Slots))
	}
	return ""
}
