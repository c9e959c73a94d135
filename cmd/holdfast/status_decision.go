package main

import (
	"fmt"
	"io"

	"holdfast/election"
)

// DecisionStatus is what the Raft leader has decided last, and why.
type DecisionStatus struct {
	// Do is hold, begin or continue.
	Do       string   `json:"do"`
	Summary  string   `json:"summary"`
	Evidence []string `json:"evidence,omitempty"`
	// PrimaryUsable tells that some node uses the primary, or its agent sees it in its place.
	PrimaryUsable bool `json:"primary_usable"`
	// CutOff tells that most proxies cannot use it all the same.
	CutOff bool `json:"cut_off,omitempty"`
}

func decisionStatus(d *election.Decision) *DecisionStatus {
	if d == nil || d.Summary == "" {
		return nil
	}
	return &DecisionStatus{
		Do: string(d.Do), Summary: d.Summary, Evidence: d.Evidence,
		PrimaryUsable: d.IsPrimaryUsable, CutOff: d.IsCutOff,
	}
}

// print says what the leader does or waits for; nothing while all is well.
func (d *DecisionStatus) print(out io.Writer) {
	if d == nil || d.Do == string(election.ActHold) && d.PrimaryUsable && !d.CutOff {
		return
	}
	fmt.Fprintf(out, "leader: %s\n", d.Summary)
}
