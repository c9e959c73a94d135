package election

import (
	"io"
	"time"
)

// Disk is the Raft disk of a node under test.
type Disk struct{ disk *faultyDisk }

// UseFaultyDisk puts a disk that can fail under the node's Raft log; before Start only.
func (n *Node) UseFaultyDisk() *Disk {
	d := &faultyDisk{diskStore: n.store.diskStore}
	n.store.diskStore = d
	return &Disk{d}
}

// Fail makes writes fail from now on, or lets them work again.
func (d *Disk) Fail(fails bool) { d.disk.fails.Store(fails) }

// FailLogs makes writes of log entries fail from now on, as on a disk that has room for smaller
// things only, or lets them work again.
func (d *Disk) FailLogs(fails bool) { d.disk.failsLogs.Store(fails) }

// Hang makes writes hang until the returned function is called.
func (d *Disk) Hang() (goOn func()) {
	d.disk.mu.Lock()
	return d.disk.mu.Unlock
}

// Vanish ends the node's lease as a kill would: nothing is renewed or released any more. Close is
// still due.
func (n *Node) Vanish() {
	n.cancel()
	for !n.lessee.ended.Load() {
		time.Sleep(time.Millisecond)
	}
}

// IsSilent tells whether the node's Raft takes part.
func (n *Node) IsSilent() bool { return n.store.isSilent() }

// VoterMemory is the highest epoch that the node's voter knows of, and whether it may have
// forgotten one.
func (n *Node) VoterMemory() (epoch uint64, blank bool) { return n.voter.memory() }

// VoterSet is the version of the voter set that the node's voter has taken durably.
func (n *Node) VoterSet() uint64 { return n.voter.takenSet() }

// What a borrower asks for, for borrowers that a test plays.
const (
	LoanBorrow = loanBorrow
	LoanReturn = loanReturn
	ProtoLoan  = protoLoan
)

// AskLoan sends a request on a borrower's connection and reads the answer.
func AskLoan(c io.ReadWriter, what byte, r Renewal) (RenewalAnswer, error) {
	return exchangeLoan(c, what, r)
}

// ProbeLimit bounds one probe of the primary.
func ProbeLimit(t Timing) time.Duration { return probeLimit(t) }

// Lent is how long what the node lent of the epoch may still be in use.
func (n *Node) Lent(epoch uint64) time.Duration {
	left, _ := n.lessee.outstanding(epoch)
	return left
}

// DoubtDisk makes the node distrust its Raft disk as after so many silences.
func (n *Node) DoubtDisk(silences int) {
	n.store.mu.Lock()
	defer n.store.mu.Unlock()
	n.store.doubt = diskDoubt{level: silences, since: time.Now()}
}
