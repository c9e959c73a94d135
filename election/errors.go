package election

import "errors"

// Sentinels that callers branch on.
var (
	// ErrNoLeader means that the Raft group has no leader now.
	ErrNoLeader = errors.New("the group has no leader now")

	errNotLeader = errors.New("this node is not the leader")
	errClosed    = errors.New("node is closed")
)
