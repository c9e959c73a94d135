package election

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// checkpointPause is the least time from the end of one CHECKPOINT that was asked for to the next:
// some samples are between them.
const checkpointPause = time.Second

// runCheckpoint asks for a CHECKPOINT as long as a sample says that one is lacking. It is the only
// one that does by itself, and holds up neither samples nor orders.
func (a *PostgresAgent) runCheckpoint(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.oldControl:
		}
		if !a.lacksCheckpoint(a.Status()) {
			continue // the sample was taken before the newest CHECKPOINT
		}
		if _, err := a.orderCheckpoint(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("checkpoint after promotion not done", zap.Error(err))
		}
		pauseFor(ctx, checkpointPause)
	}
}

// lacksCheckpoint tells that the newest checkpoint of a promoted server is of an older timeline.
// pg_rewind of 13 to 15 needs one of the new timeline in pg_control (DESIGN 10.11), and the one
// that the server begins by itself takes minutes. Not before the promotion is answered: that waits
// until the checkpointer has read which standbys commits wait for, and it reads nothing meanwhile.
func (a *PostgresAgent) lacksCheckpoint(st MemberStatus) bool {
	if st.Phase != PhasePrimary || st.CheckpointTimeline == 0 ||
		st.CheckpointTimeline >= st.Timeline {
		return false
	}
	rec := a.record()
	return rec.Result != nil && rec.Result.Incarnation == st.Incarnation
}
