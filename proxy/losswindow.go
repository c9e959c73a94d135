package proxy

import (
	"context"
	"strconv"
	"time"

	"go.uber.org/zap"
)

// Sessions that have only read what a failover has lost, where commits wait for no standby. Who was
// told of a commit that is lost is ended (I25); who has seen another's is counted here, and a line
// in the log tells of the window (DESIGN.md I47). Nothing is kept for it while all goes well: the
// kernel knows when each client has last sent something.

const (
	// lossAssumed is how long before the end of an epoch reads count as ones of lost data, if the
	// new primary does not tell what it has.
	lossAssumed = time.Minute
	// lossSkew is what is added to what it tells: two servers' clocks are compared in it.
	lossSkew = time.Second
)

// replayedSQL asks a server where its recovery ended, and how old the newest commit was that it has
// had from its primary; nothing, if it was none's standby.
const replayedSQL = "SELECT pg_catalog.pg_last_wal_replay_lsn()::pg_catalog.text," +
	" pg_catalog.pg_last_xact_replay_timestamp()::pg_catalog.text," +
	" pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() -" +
	" pg_catalog.pg_last_xact_replay_timestamp())::pg_catalog.text"

// replayed is the answer; now is bootNow at it.
type replayed struct {
	lsn, last string
	age       time.Duration
	isKnown   bool
	now       int64
}

func parseReplayed(rows [][][]byte, now int64) replayed {
	r := replayed{now: now}
	if len(rows) != 1 || len(rows[0]) != 3 {
		return r
	}
	r.lsn, r.last = string(rows[0][0]), string(rows[0][1])
	age, err := strconv.ParseFloat(string(rows[0][2]), 64)
	if r.isKnown = err == nil && age < float64(1<<32); r.isKnown {
		r.age = time.Duration(max(age, 0) * float64(time.Second))
	}
	return r
}

// since is the time, by CLOCK_BOOTTIME, from which on what was read under an epoch that ended at
// that time may be lost. All that could be seen before the newest commit that the new primary has
// is there, too, since WAL is in order.
func (r *replayed) since(ended int64) int64 {
	if !r.isKnown {
		return ended - int64(lossAssumed)
	}
	return min(ended, r.now-int64(r.age)) - int64(lossSkew)
}

// lossOf is the first change, behind the epoch that was used before, that may have lost commits.
func lossOf(before uint64, pr *Primary) (Boundary, bool) {
	for _, b := range pr.Boundaries {
		if b.Epoch > before && b.MayLose {
			return b, true
		}
	}
	return Boundary{}, false
}

// noteLoss looks for sessions that may have read what is lost, after the change from one primary to
// another. runWatch calls it; the lease of the old epoch ended at that time, or ends yet.
func (p *Proxy) noteLoss(old, pr *Primary, until int64) {
	at, ok := lossOf(old.Epoch, pr)
	if !ok {
		return
	}
	// Not in p.work, which Close may wait for while the watch still runs.
	ended := min(until, bootNow())
	p.counting.Go(func() { p.runCountLoss(old, pr, at, ended) })
}

// runCountLoss counts them, after it has asked the new primary, and writes the line.
func (p *Proxy) runCountLoss(old, pr *Primary, at Boundary, ended int64) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	rows, err := p.outcomesAt.query(ctx, pr, replayedSQL)
	r := parseReplayed(rows, bootNow())
	since := r.since(ended)
	all, may, xid := p.countReaders(old.Epoch, at.Lo, since)
	p.metrics.lossReaders.Add(float64(may))
	fields := []zap.Field{
		zap.Uint64("epoch", pr.Epoch), zap.Uint64("of_epoch", old.Epoch), zap.Int("sessions", may),
		zap.Int("of_sessions", all), zap.Duration("window", time.Duration(ended-since)),
		zap.Bool("window_is_assumed", !r.isKnown), zap.Uint64("xid_lo", at.Lo),
		zap.Uint64("xid_hi", at.Hi), zap.String("lsn", r.lsn), zap.String("last_commit", r.last),
	}
	if xid != 0 {
		fields = append(fields, zap.Uint64("acknowledged_xid", xid))
	}
	if err != nil {
		fields = append(fields, zap.Error(err))
	}
	p.log.Warn("a failover may have lost commits: sessions may have read what is not there", fields...)
}

// countReaders counts the sessions that were on an epoch, and those of them whose client has sent
// something since a time: that may have been a read. xid is the highest, from lo on, of a commit
// that one of them was told of under it.
func (p *Proxy) countReaders(epoch, lo uint64, since int64) (all, may int, xid uint64) {
	for _, s := range p.all() {
		s.mu.Lock()
		was := s.last != nil && s.last.epoch == epoch ||
			s.backend != nil && s.backend.primary.Epoch == epoch
		heard := int64(0)
		if was && (s.backend == nil || s.backend.primary.Epoch != epoch) {
			heard = s.last.heardAt // what it sends meanwhile is no read of before
		}
		if a := s.acked; was && a.epoch == epoch && a.xid >= lo {
			xid = max(xid, a.xid)
		}
		if was && heard == 0 && s.mayRead() {
			heard = bootNow()
		}
		s.mu.Unlock()
		if !was {
			continue
		}
		all++
		if heard == 0 {
			heard = heardAt(s.client)
		}
		if heard >= since {
			may++
		}
	}
	return all, may, xid
}

// heardAt is the time at which a client has last sent anything.
func heardAt(client link) int64 { return bootNow() - int64(quietFor(client)) }

// mayRead tells that the session may be shown data though its client sends nothing now: something
// is executed, a block is open, or it is told of what others notify. The caller holds s.mu.
func (s *session) mayRead() bool {
	return !s.flow.isSafePoint() || s.endHeld || s.track.listens()
}

// noteHeard keeps it, now that the backend is lost, unless that is known.
func (s *session) noteHeard() {
	at := heardAt(s.client)
	s.mu.Lock()
	if l := s.losing(); l.heardAt == 0 {
		l.heardAt = at
	}
	s.mu.Unlock()
}
