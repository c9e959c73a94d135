package election

import (
	"context"
	"fmt"
	"time"
)

// Maintenance is a time in which nobody but an operator changes anything: no member is promoted,
// no server that was stopped is started. Clients are held as ever, and a primary that the operator
// has restarted is entered in the lock.
type Maintenance struct {
	Reason string `json:"reason,omitempty"`
	// Since is the wall clock of whoever began it, for people only.
	Since time.Time `json:"since"`
	// Epoch is the newest that was given out before; 0 from a release that does not tell.
	Epoch uint64 `json:"epoch,omitempty"`
}

// overtook tells that an intent for which nobody asked was written after the maintenance began: it
// had been decided just before. Nobody is promoted under it as long as the maintenance lasts.
func (m *Maintenance) overtook(it Intent) bool {
	return m != nil && m.Epoch != 0 && it.Epoch > m.Epoch && it.Only == "" && len(it.Tried) == 0
}

// text says why nothing is done.
func (m *Maintenance) text() string {
	if m.Reason == "" {
		return "maintenance"
	}
	return "maintenance (" + m.Reason + ")"
}

// SetMaintenance begins or ends maintenance.
type SetMaintenance struct {
	On     bool      `json:"on"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

func applyMaintenance(s *State, c *SetMaintenance) (*State, Result) {
	switch {
	case len(c.Reason) > textBytesMax:
		return s, refuse("a text is longer than %d bytes", textBytesMax)
	case !c.On && s.Maintenance == nil,
		c.On && s.Maintenance != nil && (c.Reason == "" || c.Reason == s.Maintenance.Reason):
		return s, Result{V: Version}
	case c.On && s.Maintenance != nil:
		// It goes on for another reason; it began when it began.
		next, m := *s, *s.Maintenance
		m.Reason = c.Reason
		next.Maintenance = &m
		return &next, Result{V: Version}
	}
	next := *s
	next.Maintenance = nil
	if c.On {
		next.Maintenance = &Maintenance{Reason: c.Reason, Since: c.At, Epoch: s.LastEpoch}
	}
	return &next, Result{V: Version}
}

// SetMaintenance begins or ends maintenance. It returns when the state here says so.
func (n *Node) SetMaintenance(ctx context.Context, on bool, reason string) error {
	r, err := n.Apply(ctx, Command{Kind: CommandMaintenance, Maintenance: &SetMaintenance{
		On: on, Reason: boundedText(reason), At: time.Now().UTC(),
	}})
	if err != nil {
		return fmt.Errorf("set maintenance: %w", err)
	}
	if err := r.Err(); err != nil {
		return err
	}
	for {
		s, newer := n.State()
		if on == (s.Maintenance != nil) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil // it is done; this node has not heard of it yet
		case <-newer:
		}
	}
}
