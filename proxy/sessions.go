package proxy

import (
	"cmp"
	"slices"

	"holdfast/pgwire"
)

// SessionInfo is a session as an operator sees it: whether it would survive a change of primary
// now, and if not, why.
type SessionInfo struct {
	ID          uint32 `json:"id"`
	User        string `json:"user"`
	Database    string `json:"database"`
	Application string `json:"application,omitempty"`
	Client      string `json:"client"`
	// State is idle, active, idle in transaction, idle in failed transaction, or held.
	State string `json:"state"`
	// PID and Epoch are of the server process; 0 while there is none.
	PID   uint32 `json:"pid,omitempty"`
	Epoch uint64 `json:"epoch,omitempty"`
	// Survives tells that the session would be kept, with all it has.
	Survives bool `json:"survives"`
	// Hold is how long its statements wait for a primary, and Limits the line of session_limits
	// that gives this or another limit; empty: none.
	Hold   string `json:"hold"`
	Limits string `json:"limits,omitempty"`
	// Planned tells that a planned change would keep it, as far as was asked, and a failure not.
	Planned bool `json:"planned,omitempty"`
	// Unprotected is the synchronous_commit by which the session's commits wait for no standby,
	// though the group's do; empty if they wait.
	Unprotected string `json:"unprotected,omitempty"`
	// Why tells what would not be kept, or what the open transaction would end with, and Statement
	// the beginning of the statement that made it so, if that is known. It may have constants in it.
	Why       string `json:"why,omitempty"`
	Statement string `json:"statement,omitempty"`
}

// Sessions lists the sessions, by their id.
func (p *Proxy) Sessions() []SessionInfo {
	all := p.all()
	out := make([]SessionInfo, 0, len(all))
	for _, s := range all {
		out = append(out, s.info())
	}
	slices.SortFunc(out, func(a, b SessionInfo) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// info is the session as it is now.
func (s *session) info() SessionInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := SessionInfo{
		ID: s.id, User: s.track.loginUser, Database: s.database(),
		Application: s.params.value("application_name"), State: s.flow.describe(),
		Hold: s.holdTimeout().String(),
	}
	if r := s.account.rule; r != nil {
		i.Limits = r.text
	}
	if b := s.backend; b != nil {
		i.PID, i.Epoch = b.pid, b.primary.Epoch
	} else {
		i.State = "held"
	}
	if a := s.client.RemoteAddr(); a != nil {
		i.Client = a.String()
	}
	why := s.track.unmovable | s.track.txUnmovable | s.track.locks.reason()
	switch {
	case why == reasonTemp && s.proxy.cfg.CarryTempBytesMax > 0:
		i.Planned, i.Why = s.track.temp.describe(s.proxy.cfg.CarryTempBytesMax)
		i.Statement = s.track.blame
	case why != 0:
		i.Why, i.Statement = why.String(), s.track.blame
	case s.track.unknown || s.track.txUnknown:
		i.Why = "settings that a function changed, until they were asked for"
	case !s.flow.isSafePoint() && s.overflowed:
		i.Why = "the open transaction is larger than journal_bytes_max: it would end with 40001"
	case s.lostTx:
		i.Why = "the open transaction is lost: its next statement gets 40001"
	}
	i.Survives, i.Unprotected = i.Why == "", s.unprotected()
	return i
}

// describe is the state in the words of pg_stat_activity.
func (f *flow) describe() string {
	switch {
	case !f.idle():
		return "active"
	case f.status == pgwire.TxInBlock:
		return "idle in transaction"
	case f.status == pgwire.TxFailed:
		return "idle in failed transaction"
	}
	return "idle"
}

// blameMax bounds the text that is kept of the statement that made a session unmovable.
const blameMax = 120

// shortText is the beginning of a statement.
func shortText(sql []byte) string {
	if len(sql) <= blameMax {
		return string(sql)
	}
	return string(sql[:blameMax]) + "..."
}
