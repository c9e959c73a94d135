package election

import (
	"context"
	"fmt"
)

// verifyLeader asks a majority of the voters whether this node leads the group still. A leader that
// was deposed does not know it for up to a Raft lease. What goes through the log needs no such
// question, and endorsements rest on the voters' own logs; orders that are given under the lock's
// own epoch rest on nothing else (DESIGN 4). An answer that was on its way when it is asked counts,
// and so does a learner's: what is not safe without this is not safe with it.
func (n *Node) verifyLeader(ctx context.Context) error {
	return awaitVerified(ctx, n.verifyingLeader())
}

// verifyingLeader is verifyLeader beside something else; the channel has room for its answer, which
// comes when Raft ends at the latest.
func (n *Node) verifyingLeader() <-chan error {
	out := make(chan error, 1)
	r := n.raft.Load()
	if r == nil {
		out <- errNotLeader
		return out
	}
	n.work.Go(func() {
		err := r.VerifyLeader().Error()
		if err != nil {
			err = fmt.Errorf("%w: %w", errNotLeader, err)
		}
		out <- err
	})
	return out
}

func awaitVerified(ctx context.Context, verified <-chan error) error {
	select {
	case err := <-verified:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: no majority says so: %w", errNotLeader, ctx.Err())
	}
}
