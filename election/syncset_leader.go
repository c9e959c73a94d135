package election

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"
)

// syncWindow is the time within which changes of the sync set count, syncFree how many of them
// delay nothing, and syncReturnMax the longest that a standby must be there before it counts
// again: a blinking one writes few entries.
const (
	syncWindow    = time.Hour
	syncFree      = 6
	syncReturnMax = 2 * time.Minute
)

// syncTracker is the leader's memory of who streams from the primary. It belongs to RunLeader's
// goroutine.
type syncTracker struct {
	epoch   uint64
	since   map[string]syncSince
	entered []time.Time // when rules were entered within syncWindow
}

type syncSince struct {
	isThere bool
	at      time.Time
}

// look takes what the holder reports about its standbys.
func (t *syncTracker) look(now time.Time, epoch uint64, names []string, standbys []StandbyStatus,
) map[string]syncSeen {
	if t.epoch != epoch {
		t.epoch, t.since = epoch, map[string]syncSince{}
	}
	seen := map[string]syncSeen{}
	for _, name := range names {
		isThere := slices.ContainsFunc(standbys, func(s StandbyStatus) bool {
			return s.Name == name && s.State == "streaming"
		})
		was, known := t.since[name]
		if !known || was.isThere != isThere {
			was = syncSince{isThere, now}
			t.since[name] = was
		}
		seen[name] = syncSeen{isThere, now.Sub(was.at)}
	}
	return seen
}

// returnAfter doubles with each change within the window, the first few aside.
func (t *syncTracker) returnAfter(now time.Time, least time.Duration) time.Duration {
	t.entered = slices.DeleteFunc(t.entered, func(at time.Time) bool {
		return now.Sub(at) > syncWindow
	})
	d := least
	for range len(t.entered) - syncFree {
		if d *= 2; d >= syncReturnMax {
			return syncReturnMax
		}
	}
	return d
}

// tendSync does the next step of the sync set, if there is one. It writes nothing while nothing
// changes, and nothing while it does not hear the primary's agent.
func (c *Controller) tendSync(ctx context.Context, s *State) {
	if s.Lock == nil || s.Intent != nil {
		return
	}
	in := Input{State: s, Observations: c.observations(s, time.Now()),
		ChangeAges: c.co.UnplannedChanges()}
	cmd := c.syncStep(in)
	if cmd == nil {
		return
	}
	actx, cancel := context.WithTimeout(ctx, c.policy.ApplyTimeout)
	defer cancel()
	res, err := c.co.Apply(actx, Command{V: Version, Kind: CommandSync, Sync: cmd})
	if err == nil {
		err = res.Err()
	}
	if err != nil {
		// Whether it landed shows in the state: the next step is made from there.
		c.log.Info("sync set not changed", zap.Error(err))
		return
	}
	rules := make([]string, len(cmd.Rules))
	for i, r := range cmd.Rules {
		rules[i] = r.String()
	}
	if d := cmd.Degraded; d != nil {
		c.log.Warn("sync set changed", zap.Strings("rules", rules), zap.String("degraded", d.Why))
		return
	}
	c.log.Info("sync set changed", zap.Strings("rules", rules))
}

// syncStep returns the command of the next step; nil if there is none.
func (c *Controller) syncStep(in Input) *SetSync {
	s, now := in.State, time.Now()
	holder, ok := holderReport(in, c.policy)
	st := holder.Member
	if !ok || holder.SyncV == 0 || st.Phase != PhasePrimary || st.Incarnation != s.Lock.Incarnation {
		return nil
	}
	if st.LSN == 0 || st.DiskBad != "" {
		// The server did not answer: it says nothing about standbys. To degrade now would keep
		// them from taking over from a primary that hangs.
		return nil
	}
	names := otherNames(s.Members, s.Lock.Holder)
	mode, p := newMode(in, c.policy), c.policy.forGroup(s)
	if mode != nil {
		p.SyncMode, p.SyncWait = mode.Mode, mode.Wait
	}
	sp := syncPlan{policy: p, members: s.Members, holder: s.Lock.Holder,
		seen:        c.sync.look(now, s.Lock.Epoch, names, st.Standbys),
		returnAfter: c.sync.returnAfter(now, c.policy.SyncReturnAfter)}
	leaving := sp.without(stayingMembers(s))
	if mayCutFailOver(in, c.policy) {
		return nil
	}
	cmd := &SetSync{V: SyncVersion, Epoch: s.Lock.Epoch, Seq: syncSeq(s), Mode: mode}
	rec := s.Sync
	if rec == nil || rec.Epoch != s.Lock.Epoch || len(rec.Rules) == 0 {
		rule, ok := parseSyncSetting(st.Sync.Names)
		if !ok || st.Sync.Under != s.Lock.Epoch || rec == nil && !allKnowSync(in, c.policy) {
			return nil // also if the sample is from before the order was carried out
		}
		cmd.Rules = unrecorded(rule)
		return cmd
	}
	sp.rules, leaving.rules = rec.Rules, rec.Rules
	if s.MemberChange != nil && leaving.isEnough() {
		sp = leaving
	}
	sp.isProved = st.Sync.Epoch == rec.Epoch && st.Sync.Seq == rec.Seq
	if cmd.Rules, ok = sp.next(); !ok && mode != nil && len(rec.Rules) == 1 {
		cmd.Rules, ok = rec.Rules, true // the rule stays
	}
	if !ok {
		return nil
	}
	if len(cmd.Rules) > 1 {
		c.sync.entered = append(c.sync.entered, now)
	}
	if why := sp.degraded(cmd.Rules); why != "" {
		cmd.Degraded = &SyncDegraded{Since: now.UTC(), Why: boundedText(why)}
		if rec.Degraded != nil {
			cmd.Degraded.Since = rec.Degraded.Since
		}
	}
	return cmd
}

// allKnowSync tells that every node can read the record: one that cannot would promote by the
// rule that follows from the configuration, also when commits were acknowledged by another.
func allKnowSync(in Input, p Policy) bool {
	for _, m := range in.State.Members {
		if o, ok := freshReport(in, p, m.Name); !ok || o.SyncV == 0 {
			return false
		}
	}
	return true
}

// ruleOf is the rule on which the holder of the new lock was promoted; nil for one that stays,
// which keeps its own, and before every node can read a record.
func (t *transition) ruleOf(holder string) *SyncRule {
	if t.first != nil {
		return t.first
	}
	if t.state.Sync == nil || t.lock != nil && t.lock.Holder == holder {
		return nil
	}
	r := startRule(t.state, t.c.policy, holder)
	return &r
}
