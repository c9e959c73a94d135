package election

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Announcement tells which member a switchover is about to make the primary, while everybody still
// works on the old one: proxies may log sessions in ahead there. It is a hint. Nothing is decided
// by it, and a coordinator that never makes one does everything else as well.
type Announcement struct {
	// FromEpoch is the epoch of the lock that it was made under.
	FromEpoch uint64 `json:"from_epoch"`
	To        string `json:"to"`
}

// prewarmTimeMax bounds what a switchover waits for proxies that log in ahead: they keep such
// connections for proxy.reuse_lifetime, a minute by default.
const prewarmTimeMax = 10 * time.Second

// applyAnnounce makes an announcement, or takes it back (an empty To). With the next intent it is
// over, whatever that is for.
func applyAnnounce(s *State, c *Announcement) (*State, Result) {
	switch {
	case c.To != "" && (s.Intent != nil || lockEpoch(s) != c.FromEpoch):
		return s, refuse("the lock is of epoch %d, not %d, or is about to change", lockEpoch(s),
			c.FromEpoch)
	case c.To != "" && (s.Lock == nil || s.Lock.Holder == c.To ||
		!slices.ContainsFunc(DataMembers(s.Members), func(m Member) bool { return m.Name == c.To })):
		return s, refuse("%q is no member that a switchover could go to", c.To)
	case c.To == "" && (s.Ahead == nil || s.Ahead.FromEpoch != c.FromEpoch),
		s.Ahead != nil && *s.Ahead == *c:
		return s, Result{V: Version}
	}
	next := *s
	next.Ahead = nil
	if c.To != "" {
		ahead := *c
		next.Ahead = &ahead
	}
	return &next, Result{V: Version}
}

// Target is the member to which the lock is about to move in a planned change, with the epoch of
// the lock that it is to replace; ok is false if there is none, or the next holder is this one.
func (s *State) Target() (m Member, fromEpoch uint64, ok bool) {
	to := ""
	switch {
	case s.Intent != nil && s.Intent.Kind == IntentSwitchover:
		to, fromEpoch = s.Intent.To, s.Intent.FromEpoch
	case s.Intent == nil && s.Ahead != nil && s.Ahead.FromEpoch == lockEpoch(s):
		to, fromEpoch = s.Ahead.To, s.Ahead.FromEpoch
	}
	for _, m := range s.Members {
		if m.Name == to && to != "" && (s.Lock == nil || s.Lock.Holder != to) {
			return m, fromEpoch, true
		}
	}
	return Member{}, 0, false
}

// announce tells the proxies of a switchover that is about to begin, and until when they have time
// before it does. A failure costs them that time and nobody else anything.
func (c *Controller) announce(ctx context.Context, s *State, it Intent) (until time.Time) {
	if it.Kind != IntentSwitchover || it.To == "" || c.policy.PrewarmTime <= 0 {
		return time.Time{}
	}
	if !c.tellAhead(ctx, Announcement{FromEpoch: s.Lock.Epoch, To: it.To}) || it.Auto {
		return time.Time{} // clients do not reach a primary that is cut off: no time to lose
	}
	return time.Now().Add(c.policy.PrewarmTime)
}

// recall takes an announcement back whose switchover does not begin, or whose leader is gone.
func (c *Controller) recall(ctx context.Context) {
	if now, _ := c.co.State(); now.Ahead != nil && now.Intent == nil {
		c.tellAhead(ctx, Announcement{FromEpoch: now.Ahead.FromEpoch})
	}
}

// tellAhead writes it with a single attempt: it is of use now or never.
func (c *Controller) tellAhead(ctx context.Context, a Announcement) bool {
	ctx, cancel := context.WithTimeout(ctx, c.policy.ApplyTimeout)
	defer cancel()
	res, err := c.co.Apply(ctx, Command{Kind: CommandAnnounce, Announce: &a})
	if err == nil {
		err = res.Err()
	}
	if err != nil {
		c.log.Info("proxies were not told of the next primary", zap.String("to", a.To),
			zap.Error(err))
	}
	return err == nil
}
