package election

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// What an agent does when its own lease on the lock has run out.
const (
	// OnLockLossHold lets PostgreSQL run: the proxies hold their clients.
	OnLockLossHold = "hold"
	// OnLockLossStop stops it, for clients that bypass the proxies.
	OnLockLossStop = "stop"
)

// lossWatch tells when a primary has been without a lease of its lock for too long. Pure; times are
// nanoseconds of CLOCK_BOOTTIME.
type lossWatch struct {
	timing Timing
	// epoch is that of the lock that is watched, from is when the watch of it began anew, and last
	// when it was looked at.
	epoch      uint64
	from, last int64
}

// lossReserve is what the profile leaves between the end of a lease and the end of the promises
// behind it, r counted in: within it the last client must be gone.
func lossReserve(t Timing) time.Duration {
	return time.Duration(float64(t.Promise)*(1-clockRate) - float64(t.Lease)*(1+clockRate))
}

// end is when the right to serve under the epoch of the lock ends, seen at now; leaseEpoch and
// until are the newest lease. Whoever has just seen the lock, or was not running, gets the time of
// a lease to be granted one: a stop would come too late by then to keep anything from happening,
// and a restarted node must not stop a server that is well.
func (w *lossWatch) end(now int64, epoch, leaseEpoch uint64, until int64) int64 {
	if epoch != w.epoch || now-w.last > int64(lossReserve(w.timing)) {
		w.epoch, w.from = epoch, now
	}
	w.last = now
	if leaseEpoch == epoch && until > w.from {
		return until
	}
	return w.from + int64(w.timing.Lease)
}

// runLockLoss stops the server when the lease on its lock has run out, until ctx ends. It does not
// wait for what else the agent does: signals are all that it needs.
func (a *PostgresAgent) runLockLoss(ctx context.Context) {
	w := lossWatch{timing: a.cfg.Timing}
	for ctx.Err() == nil {
		wait := a.cfg.Timing.Interval / 4
		a.finishStop()
		if epoch := a.servedEpoch(); epoch != 0 {
			leaseEpoch, until := a.deps.Lease()
			now := bootNow()
			if end := w.end(now, epoch, leaseEpoch, until); now >= end {
				a.stopUnleased(ctx, epoch, end) // mostly it is down: a group may be away for long
			} else {
				wait = min(wait, time.Duration(end-now))
			}
		}
		if pauseFor(ctx, wait) != nil {
			return
		}
	}
}

// servedEpoch is the epoch of the lock if this member serves under it; 0 if it does not. A server
// that an order has started under a later epoch is behind its door.
func (a *PostgresAgent) servedEpoch() uint64 {
	st, _ := a.deps.Source.State()
	if st.Lock == nil || st.Lock.Holder != a.cfg.Name {
		return 0
	}
	if epoch := a.record().PrimaryEpoch; epoch == 0 || epoch > st.Lock.Epoch {
		return 0
	}
	return st.Lock.Epoch
}

// StopServed is part of a gate's Cut where clients bypass the proxies: it stops a primary that
// serves under that epoch, or an older one, and returns when no client is left. Nothing of the
// epoch may be released before. It does nothing unless AgentConfig.OnLockLoss says so, nor before
// Start and after Close: PostgreSQL outlives the agent.
func (a *PostgresAgent) StopServed(epoch uint64) {
	life := a.loss.life.Load()
	if life == nil || (*life).Err() != nil {
		return
	}
	served := a.record().PrimaryEpoch
	if served == 0 || served > epoch || a.hasStandbySignal() {
		return
	}
	_, until := a.deps.Lease()
	a.stopUnleased(*life, epoch, max(until, bootNow()))
}

// lossStop is what an agent with OnLockLossStop shares between runLockLoss and StopServed.
type lossStop struct {
	life atomic.Pointer[context.Context] // from Start to Close; nil unless it is configured
	// slow is a server that has no clients any more and is not down yet; nil: there is none.
	slow atomic.Pointer[slowStop]
}

// slowStop ends its walsenders at soft, and the server at end.
type slowStop struct {
	pid        int
	soft, end  int64
	walsenders []int
}

// finishStop ends a stop that takes longer than StopTimeout: a standby that hangs keeps the server
// waiting, and as long as it is there the group sees no end of it.
func (a *PostgresAgent) finishStop() {
	s := a.loss.slow.Load()
	if s == nil {
		return
	}
	now := bootNow()
	if alive, _ := pgProc(s.pid); alive && now < s.end {
		if now >= s.soft && len(s.walsenders) > 0 {
			a.endWalsenders(s.pid, s.walsenders)
			a.loss.slow.CompareAndSwap(s, &slowStop{pid: s.pid, soft: s.soft, end: s.end})
		}
		return
	} else if alive {
		a.log.Error("fast stop took too long; stopping immediately", zap.Int("pid", s.pid))
		pgSignal(s.pid, unix.SIGQUIT, a.cfg.DataDir)
	}
	a.loss.slow.CompareAndSwap(s, nil)
}

// goneStates are those of pg_control in which a server has ended all its clients.
var goneStates = []string{"shutting down", "shut down"}

// stopUnleased stops the server: clients are told to go at once, and half of the reserve after the
// end of the lease those that have not are cut. It returns when none is left, or that cannot be
// told. The checkpoint of the stop goes on after that.
func (a *PostgresAgent) stopUnleased(ctx context.Context, epoch uint64, end int64) {
	pid, _, err := a.postmaster()
	if err != nil {
		a.log.Error("server without a lease not stopped", zap.Error(err))
		return
	}
	if slow := a.loss.slow.Load(); pid == 0 || slow != nil && slow.pid == pid {
		return
	}
	a.log.Warn("the lease has ended; postgres is stopped as configured (on_lock_loss)",
		zap.Uint64("epoch", epoch), zap.Int("pid", pid))
	defer a.hurry()
	hard := end + int64(lossReserve(a.cfg.Timing)/2)
	walsenders := a.endReceivers(ctx, time.Duration(hard-bootNow())/4)
	begun := bootNow()
	pgSignal(pid, unix.SIGINT, a.cfg.DataDir)
	for isHard := false; ; {
		if alive, _ := pgProc(pid); !alive {
			return
		}
		if !isHard && a.clientsGone(ctx, hard) {
			a.loss.slow.Store(&slowStop{pid: pid, soft: begun + int64(a.cfg.StopTimeout/4),
				end: bootNow() + int64(a.cfg.StopTimeout), walsenders: walsenders})
			return
		}
		if now := bootNow(); now >= hard && !isHard {
			a.log.Error("clients do not go; postgres is stopped immediately", zap.Int("pid", pid))
			pgSignal(pid, unix.SIGQUIT, a.cfg.DataDir)
			isHard = true
		} else if now >= hard+int64(lossHardMax) {
			a.log.Error("postgres does not end (a hung disk?)", zap.Int("pid", pid))
			return
		}
		if pauseFor(ctx, 5*time.Millisecond) != nil {
			return
		}
	}
}

// receiversMax bounds the look for logical receivers before a stop. Only tests change it.
var receiversMax = 300 * time.Millisecond

// endReceivers is endLogicalWalsenders on a connection of its own: ops may be held for long. Before
// its last checkpoint a server waits for logical receivers to have all WAL, and only from there on
// is it known that no client is left (DESIGN.md I101). It ends within bound: a server that does not
// answer is stopped all the same.
func (a *PostgresAgent) endReceivers(ctx context.Context, bound time.Duration) []int {
	ctx, cancel := context.WithTimeout(ctx, min(bound, receiversMax))
	defer cancel()
	c, err := a.connect(ctx)
	if err != nil {
		return nil
	}
	defer pgClose(c)
	rows, err := pgQuery(ctx, c, endLogicalSQL)
	if err != nil {
		return nil
	}
	return walsenderPids(rows)
}

// lossHardMax bounds the wait for an immediate stop; the server's own bound is 5 s.
const lossHardMax = 6 * time.Second

// clientsGone tells that the server, which is stopping, has ended all its clients. A look at a disk
// that hangs is not waited for beyond hard.
func (a *PostgresAgent) clientsGone(ctx context.Context, hard int64) bool {
	ctx, cancel := context.WithTimeout(ctx, max(time.Millisecond, time.Duration(hard-bootNow())))
	defer cancel()
	c, err := a.controlData(ctx)
	return err == nil && slices.Contains(goneStates, c.state)
}

// LossGate is the gate of a process in which clients bypass the proxies (OnLockLossStop): what it
// closes is shut only once the agent's server has stopped, too.
type LossGate struct {
	Gate  Gate // of the proxy; nil if there is none
	Agent interface{ StopServed(epoch uint64) }
}

var _ Gate = LossGate{}

// Drain implements Gate.
func (g LossGate) Drain(ctx context.Context, epoch uint64) {
	if g.Gate != nil {
		g.Gate.Drain(ctx, epoch)
	}
}

// Cut implements Gate.
func (g LossGate) Cut(epoch uint64) {
	if g.Gate != nil {
		g.Gate.Cut(epoch)
	}
	g.Agent.StopServed(epoch)
}
