package election

// SyncMode is what a configuration asks of commits.
type SyncMode struct {
	Mode string `json:"mode"`
	Wait int    `json:"wait,omitempty"`
}

// syncModeOf is the group's mode; nil if there is none in the state.
func syncModeOf(s *State) *SyncMode {
	if s.Sync == nil {
		return nil
	}
	return s.Sync.Mode
}

// SyncModeOr is the group's mode; that of the configuration, if the state has none.
func (s *State) SyncModeOr(configured SyncMode) SyncMode {
	if m := syncModeOf(s); m != nil {
		return *m
	}
	return configured
}

// forGroup is the policy with the group's mode instead of this node's: nodes whose configurations
// differ, as during a rolling change, must not treat the sync set each in its own way as they
// come to lead (DESIGN.md I72).
func (p Policy) forGroup(s *State) Policy {
	m := s.SyncModeOr(SyncMode{p.SyncMode, p.SyncWait})
	p.SyncMode, p.SyncWait = m.Mode, m.Wait
	return p
}

// newMode is the mode that the group is to have: this node's, once a majority has told that it is
// theirs, too, and nobody that answers has another one; nil if it stays. A node that is lost does
// not keep the mode.
func newMode(in Input, p Policy) *SyncMode {
	own := SyncMode{p.SyncMode, p.SyncWait}
	if m := syncModeOf(in.State); m != nil && *m == own {
		return nil
	}
	agree := 0
	for _, m := range in.State.Members {
		o, ok := freshReport(in, p, m.Name)
		switch {
		case !ok:
		case o.Sync == nil || *o.Sync != own:
			return nil
		default:
			agree++
		}
	}
	if agree <= len(in.State.Members)/2 {
		return nil
	}
	return &own
}
