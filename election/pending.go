package election

import (
	"context"
	"strconv"

	"go.uber.org/zap"
)

// pendingMax bounds the settings that wait for a restart and are named.
const pendingMax = 20

const pgPendingSQL = "SELECT name FROM pg_catalog.pg_settings WHERE pending_restart " +
	"ORDER BY name LIMIT "

// lookPending asks the server which settings wait for its restart, if it has read its files since
// it was asked: only then they change, and pg_settings takes some milliseconds. Of a server that
// does not answer nothing is known, and it is asked with the next sample.
func (s *agentSampler) lookPending(ctx context.Context, loaded string) {
	if loaded == s.pendingOf {
		return
	}
	s.pending, s.pendingOf = nil, ""
	rows, err := pgQuery(ctx, s.conn, pgPendingSQL+strconv.Itoa(pendingMax+1))
	if err != nil {
		s.a.log.Debug("settings that wait for a restart could not be asked for", zap.Error(err))
		if s.conn.IsClosed() { // the time of the sample was over
			s.conn = nil
		}
		return
	}
	s.pendingOf = loaded
	for _, r := range rows[:min(len(rows), pendingMax)] {
		s.pending = append(s.pending, r[0])
	}
	if len(rows) > pendingMax {
		s.pending = append(s.pending, "...")
	}
}
