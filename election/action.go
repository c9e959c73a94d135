package election

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
)

// errIntentVoid tells that the intent of the transition does not stand any more: another
// coordinator replaced or finished it. Whoever sees it stops at once.
var errIntentVoid = errors.New("the intent does not stand any more")

// beginIntent writes an intent in the place of the one of epoch replaces (0: none stands) and
// returns its fresh epoch. errIntentVoid: the state moved on.
func (c *Controller) beginIntent(
	ctx context.Context, it Intent, replaces uint64,
) (epoch uint64, err error) {
	begin := BeginIntent{
		Request: cmp.Or(it.Request, rand.Text()), Kind: it.Kind, From: it.From, FromEpoch: it.FromEpoch,
		Replaces: replaces, To: it.To, Cause: boundedText(it.Cause),
		Evidence:    boundedEvidence(it.Evidence),
		StopsHolder: it.StopsHolder, Only: it.Only, AcceptLoss: it.AcceptLoss, Slots: it.Slots,
		Auto: it.Auto,
	}
	epoch, err = c.apply(ctx, Command{Kind: CommandBegin, Begin: &begin})
	if err != nil {
		return 0, fmt.Errorf("begin %s: %w", it.Kind, err)
	}
	return epoch, nil
}

// setTarget makes the choice durable; only then the order to promote may be given (DESIGN.md I19).
func (c *Controller) setTarget(ctx context.Context, epoch uint64, to string) error {
	cmd := Command{Kind: CommandTarget, Target: &SetTarget{Epoch: epoch, To: to}}
	if _, err := c.apply(ctx, cmd); err != nil {
		return fmt.Errorf("set target %s: %w", to, err)
	}
	return nil
}

// commitLock enters the lock of an intent.
func (c *Controller) commitLock(
	ctx context.Context, l Lock, systemID string, phases map[string]int64, rule *SyncRule,
	slots []string,
) error {
	commit := CommitLock{Lock: l, SystemID: systemID, At: time.Now(), PhasesMS: phases, Sync: rule,
		Slots: slots}
	if _, err := c.apply(ctx, Command{Kind: CommandCommitLock, Commit: &commit}); err != nil {
		return fmt.Errorf("commit lock of %s: %w", l.Holder, err)
	}
	return nil
}

// apply writes a command until its outcome is known. One that timed out may still land; as each
// command tells its own earlier success from a state that moved on, it is simply written again.
func (c *Controller) apply(ctx context.Context, cmd Command) (uint64, error) {
	for {
		actx, cancel := context.WithTimeout(ctx, c.policy.ApplyTimeout)
		res, err := c.co.Apply(actx, cmd)
		cancel()
		switch {
		case err == nil && res.Refused != "":
			return 0, fmt.Errorf("%w: %w", errIntentVoid, res.Err())
		case err == nil:
			return res.Epoch, nil
		case ctx.Err() != nil:
			return 0, errors.Join(err, ctx.Err())
		}
		c.log.Warn("write to the replicated state has no known outcome yet",
			zap.String("command", string(cmd.Kind)), zap.Error(err))
		pauseFor(ctx, c.policy.RetryPause)
	}
}

// causeBytesMax bounds the cause of an intent, which grows when it is replaced.
const causeBytesMax = 600

// boundedText keeps the first and the last cause of a long chain.
func boundedText(s string) string {
	if len(s) <= causeBytesMax {
		return s
	}
	text := s[:causeBytesMax/2] + " ... " + s[len(s)-causeBytesMax/2:]
	return strings.ToValidUTF8(text, "")
}

// boundedEvidence keeps what the replicated state takes; the rest is counted.
func boundedEvidence(lines []string) []string {
	var out []string
	for i, l := range lines {
		if i == evidenceMax-1 && len(lines) > evidenceMax {
			return append(out, fmt.Sprintf("and %d more", len(lines)-i))
		}
		out = append(out, boundedText(l))
	}
	return out
}
