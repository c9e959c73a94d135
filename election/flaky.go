package election

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
)

// trustMax bounds how little a disk is trusted, trustAgain is the time without a silence after
// which it is trusted one level more.
const (
	trustMax   = 4
	trustAgain = 5 * time.Minute
)

// standMax bounds how long a node without a leader stands for no election.
const standMax = 30 * time.Second

// diskDoubt is how often a disk has silenced its node of late. The zero value trusts it.
type diskDoubt struct {
	level int
	since time.Time // of the newest silence, or of the newest level that was forgotten
}

// at is the doubt at a later time: a level is forgotten in each trustAgain.
func (d diskDoubt) at(now time.Time) diskDoubt {
	for d.level > 0 && now.Sub(d.since) >= trustAgain {
		d.level--
		d.since = d.since.Add(trustAgain)
	}
	return d
}

// silenced is the doubt after a silence that began or ended now.
func (d diskDoubt) silenced(now time.Time) diskDoubt {
	d = d.at(now)
	return diskDoubt{level: min(d.level+1, trustMax), since: now}
}

// standAfter is how long a node must have been without a leader before it stands for election
// itself. Four election timeouts are enough for another one to be elected, if one can be.
func (d diskDoubt) standAfter(electionTimeout time.Duration) time.Duration {
	if d.level == 0 {
		return 0
	}
	return min(electionTimeout<<(d.level+1), standMax)
}

// errReluctant is a vote that is not asked for.
var errReluctant = errors.New("the Raft disk of this node stalled of late: others are let lead")

// voteTransport is what a transport of Raft is here.
type voteTransport interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// reluctantTransport asks nobody for votes as long as another node should lead (DESIGN.md I97).
// The node votes, follows and counts for majorities all the same. A leader that hands its
// leadership over has chosen this node and waits for it.
type reluctantTransport struct {
	voteTransport
	mayStand func() bool
}

var _ voteTransport = (*reluctantTransport)(nil)

// RequestVote implements raft.Transport.
func (t *reluctantTransport) RequestVote(id raft.ServerID, target raft.ServerAddress,
	args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse,
) error {
	if !args.LeadershipTransfer && !t.mayStand() {
		return errReluctant
	}
	return t.voteTransport.RequestVote(id, target, args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (t *reluctantTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress,
	args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse,
) error {
	if !t.mayStand() {
		return errReluctant
	}
	return t.voteTransport.RequestPreVote(id, target, args, resp)
}

// mayStand tells whether this node stands for election: always, unless its disk silenced it of
// late and it has not been without a leader for long.
func (n *Node) mayStand() bool {
	doubt, back := n.store.trust(time.Now())
	wait := doubt.standAfter(n.timing.Heartbeat)
	if wait == 0 {
		return true
	}
	if r := n.raft.Load(); r != nil && r.LastContact().After(back) {
		back = r.LastContact()
	}
	return time.Since(back) >= wait
}
