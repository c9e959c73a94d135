package main

import (
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/config"
	"holdfast/election"
)

// SyncStatus says whom a commit waits for.
type SyncStatus struct {
	// Mode is the group's; as long as it has none, that of the node that was asked.
	Mode string `json:"mode"`
	// Wait is for how many of Names a commit waits; 0: the primary acknowledges alone.
	Wait  int      `json:"wait"`
	Names []string `json:"names,omitempty"`
	// Leaving are the rules that are being left: what was acknowledged by them still counts in
	// a failover.
	Leaving []string `json:"leaving,omitempty"`
	// Degraded is there if commits wait for fewer standbys than the configuration asks for.
	Degraded *SyncDegraded `json:"degraded,omitempty"`
	// Rule is the rule in words.
	Rule string `json:"rule"`
}

// SyncDegraded says since when and why.
type SyncDegraded struct {
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
}

// syncStatus describes the sync set of a lock; nil if there is none.
func syncStatus(s *election.State, c config.Synchronous) *SyncStatus {
	rules := election.SyncRules(s, election.Policy{SyncMode: c.Mode, SyncWait: c.Standbys})
	if len(rules) == 0 {
		return nil
	}
	last := rules[len(rules)-1]
	mode := s.SyncModeOr(election.SyncMode{Mode: c.Mode, Wait: c.Standbys}).Mode
	out := &SyncStatus{Mode: mode, Wait: last.Wait, Names: last.Names, Rule: last.String()}
	for _, r := range rules[:len(rules)-1] {
		out.Leaving = append(out.Leaving, r.String())
	}
	if y := s.Sync; y != nil && y.Epoch == s.Lock.Epoch && y.Degraded != nil {
		out.Degraded = &SyncDegraded{Since: y.Degraded.Since, Why: y.Degraded.Why}
	}
	return out
}

// problem is what someone should look at; empty if nothing.
func (s *SyncStatus) problem() string {
	if s == nil || s.Degraded == nil {
		return ""
	}
	return fmt.Sprintf("synchronous replication is degraded since %s: %s",
		s.Degraded.Since.Format(time.RFC3339), s.Degraded.Why)
}

func (s *SyncStatus) print(out io.Writer) {
	if s == nil {
		return
	}
	fmt.Fprintf(out, "commits wait for %s (synchronous.mode %s)\n", s.Rule, s.Mode)
	for _, r := range s.Leaving {
		fmt.Fprintf(out, "  until the change is proved, also counted: %s\n", r)
	}
	if p := s.problem(); p != "" {
		fmt.Fprintln(out, p)
	}
}

// registerSyncMetrics adds what the sync set is now, as this node knows it.
func registerSyncMetrics(reg prometheus.Registerer, state func() *election.State,
	c config.Synchronous,
) {
	gauge := func(name, help string, value func(*SyncStatus) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "holdfast", Subsystem: "sync", Name: name, Help: help,
		}, func() float64 {
			if s := syncStatus(state(), c); s != nil {
				return value(s)
			}
			return 0
		}))
	}
	gauge("standbys_waited_for", "For how many standbys a commit waits.",
		func(s *SyncStatus) float64 { return float64(s.Wait) })
	gauge("degraded", "1 while commits wait for fewer standbys than configured.",
		func(s *SyncStatus) float64 {
			if s.Degraded != nil {
				return 1
			}
			return 0
		})
}
