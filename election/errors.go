package election

import "errors"

// Sentinels that callers branch on.
var (
	// ErrNoLeader means that the Raft group has no leader now.
	ErrNoLeader = errors.New("the group has no leader now")

	// ErrFormerMember means that a node without a Raft log was a member of a group, and so must not
	// form a new one.
	ErrFormerMember = errors.New("this node was a member of a group")

	errNotLeader = errors.New("this node is not the leader")
	errNoPeer    = errors.New("address not known yet")
	errClosed    = errors.New("node is closed")
)
