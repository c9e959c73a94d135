package election

import "time"

// This file is the lease as pure functions over values; now is always nanoseconds of
// CLOCK_BOOTTIME of the host that asks (DESIGN.md, "Lease arithmetic").

// Renewal asks a voter to promise that it endorses no epoch above Epoch for a while.
type Renewal struct {
	V int `json:"v"`
	// Lessee and Incarnation name the holder of the promise: a restarted process is another
	// one.
	Lessee      string `json:"lessee"`
	Incarnation uint64 `json:"incarnation"`
	// Seq grows with each message of an incarnation.
	Seq   uint64 `json:"seq"`
	Epoch uint64 `json:"epoch"`
	// Set is the version of the voter set that is asked; 0 is the first one.
	Set uint64 `json:"set,omitempty"`
	// Retakes tells that sessions of the lessee have lost advisory locks with an older epoch, or
	// with this one in a release, and do not have them again (barrier.go).
	Retakes bool `json:"retakes,omitempty"`
	// Holds tells that sessions of the lessee have advisory locks.
	Holds bool `json:"holds,omitempty"`
	// BlindFor is how long the sidecar that borrows has had no connection to the primary though it
	// tried, Reaches are the other members that answer it, as reachText writes them.
	BlindFor time.Duration `json:"-"`
	Reaches  string        `json:"-"`
}

// RenewalAnswer is a voter's answer to a Renewal or a release.
type RenewalAnswer struct {
	V       int    `json:"v"`
	Seq     uint64 `json:"seq"`
	Granted bool   `json:"granted"`
	// Endorsed is the highest epoch that the voter has endorsed.
	Endorsed uint64 `json:"endorsed"`
	Reason   string `json:"reason,omitempty"`
	// Shut tells that other lessees may have locks to take again first (barrier.go).
	Shut bool `json:"shut,omitempty"`
	// Left and DoubtLeft are of a relay only (Relay): how long, in nanoseconds, its own lease
	// lasts, and until it is in doubt, which may be over.
	Left      int64 `json:"left,omitempty"`
	DoubtLeft int64 `json:"doubt_left,omitempty"`
}

// promise is what a voter promised to one incarnation of a lessee.
type promise struct {
	epoch    uint64
	until    int64
	seq      uint64 // of the newest renewal
	released uint64 // renewals up to this one are void
	retakes  bool   // as its newest message has it, and holds too
	holds    bool
}

type lesseeKey struct {
	name        string
	incarnation uint64
}

// lesseesMax bounds the promises that a voter keeps.
const lesseesMax = 20000

// Promises is a voter's memory of what it promised. Nothing of it is written to disk: a voter
// that has just started keeps silent for T_P instead (DESIGN.md I3).
type Promises struct {
	timing   Timing
	silent   int64  // promises and endorses nothing before this time
	endorsed uint64 // highest epoch endorsed; durable elsewhere before it is answered
	floor    uint64 // promises nothing below this epoch
	set      uint64 // version of the voter set that was taken
	oldEnd   int64  // until then promises under older versions may stand
	barrier  barrier
	byLessee map[lesseeKey]promise
}

// NewPromises starts a voter's memory. endorsed is what its disk remembers; first is set only
// for a voter that has never promised anything, which need not keep silent.
func NewPromises(t Timing, now int64, endorsed uint64, first bool) *Promises {
	p := &Promises{timing: t, endorsed: endorsed, byLessee: make(map[lesseeKey]promise)}
	if !first {
		p.silent = now + int64(t.Promise)
	}
	return p
}

// Endorsed is the highest epoch that was endorsed.
func (p *Promises) Endorsed() uint64 { return p.endorsed }

// Forbid keeps the voter from promising anything below the epoch, which it may have endorsed and
// forgotten. That is no endorsement: what it promised may still stand.
func (p *Promises) Forbid(epoch uint64) { p.floor = max(p.floor, epoch) }

// Take turns to a voter set: from now on nothing is promised under an older version. The caller
// makes the version durable before it counts on that (DESIGN.md I61).
func (p *Promises) Take(now int64, set uint64) {
	if set > p.set {
		p.set, p.oldEnd = set, now+int64(p.timing.Promise)
	}
}

// Set is the version of the voter set that was taken.
func (p *Promises) Set() uint64 { return p.set }

// OldSetsEnd tells how long promises under older versions may still stand; 0 is no more. It
// counts from when the version was taken, so that sets change at most once per T_P.
func (p *Promises) OldSetsEnd(now int64) time.Duration {
	return time.Duration(max(0, p.oldEnd-now))
}

// Renew promises for T_P from now, which is when the message was received.
func (p *Promises) Renew(now int64, r Renewal) RenewalAnswer {
	a := p.renewFor(now, r, int64(p.timing.Promise))
	a.Shut = a.Granted && p.isShut(now, r.Epoch)
	return a
}

// renewFor promises for that long, in nanoseconds.
func (p *Promises) renewFor(now int64, r Renewal, long int64) RenewalAnswer {
	a := RenewalAnswer{V: Version, Seq: r.Seq, Endorsed: p.endorsed}
	key := lesseeKey{r.Lessee, r.Incarnation}
	old, known := p.byLessee[key]
	switch {
	case now < p.silent:
		a.Reason = "voter has just started"
	case r.Set < p.set:
		a.Reason = "the voter set has changed"
	case r.Epoch < max(p.endorsed, p.floor):
		a.Reason = "a higher epoch is endorsed"
	case r.Seq <= old.released:
		a.Reason = "released meanwhile"
	case r.Seq < old.seq && r.Epoch != old.epoch:
		a.Reason = "overtaken by a renewal of another epoch"
	case !known && len(p.byLessee) >= lesseesMax && !p.expire(now):
		a.Reason = "too many lessees"
	default:
		// A lessee that asks for another epoch has given the one before up for good
		// (Tally.Begin), so one promise to it is enough.
		next := promise{
			epoch: r.Epoch, until: now + long, seq: max(r.Seq, old.seq), released: old.released,
			retakes: r.Retakes, holds: r.Holds,
		}
		if r.Seq < old.seq {
			next.retakes, next.holds = old.retakes, old.holds
		}
		p.begin(now, r.Epoch)
		if r.Epoch == old.epoch {
			next.until = max(next.until, old.until)
		}
		p.byLessee[key] = next
		a.Granted = true
	}
	return a
}

// expire forgets promises that have run out; false if there were none. The memory of a release
// is kept as long as an older renewal might still be under way.
func (p *Promises) expire(now int64) bool {
	n := len(p.byLessee)
	for k, pr := range p.byLessee {
		if now >= pr.until+int64(p.timing.Promise) {
			delete(p.byLessee, k)
		}
	}
	return len(p.byLessee) < n
}

// Release takes back the promises to that incarnation whose renewals came before Seq.
func (p *Promises) Release(now int64, r Renewal) RenewalAnswer {
	key := lesseeKey{r.Lessee, r.Incarnation}
	pr := p.byLessee[key]
	pr.released = max(pr.released, r.Seq)
	if pr.seq <= r.Seq {
		pr.until, pr.retakes = min(pr.until, now), r.Retakes
		pr.epoch = max(pr.epoch, r.Epoch) // its renewals may all have been lost
	}
	if _, known := p.byLessee[key]; known || len(p.byLessee) < lesseesMax || p.expire(now) {
		p.byLessee[key] = pr
	}
	return RenewalAnswer{V: Version, Seq: r.Seq, Granted: true, Endorsed: p.endorsed}
}

// MayEndorse tells how long an endorsement of the epoch has to wait; 0 is not at all.
func (p *Promises) MayEndorse(now int64, epoch uint64) time.Duration {
	return p.mayEndorse(now, epoch, 0)
}

// mayEndorse is MayEndorse where promises of the epoch waived are not waited for; they stand, and
// a later endorsement waits for them (DESIGN.md I70).
func (p *Promises) mayEndorse(now int64, epoch, waived uint64) time.Duration {
	if epoch <= p.endorsed {
		return 0
	}
	wait := p.silent - now
	for _, pr := range p.byLessee {
		if pr.epoch < epoch && pr.until > now && (waived == 0 || pr.epoch != waived) {
			wait = max(wait, pr.until-now)
		}
	}
	return time.Duration(max(0, wait))
}

// Endorse raises the highest endorsed epoch in memory, which at once ends promises of older ones.
// The caller has asked mayEndorse under the same lock, and makes the epoch durable before it
// answers (DESIGN.md I3).
func (p *Promises) Endorse(epoch uint64) { p.endorsed = max(p.endorsed, epoch) }

// Tally is a lessee's count of the answers to its renewals.
type Tally struct {
	timing   Timing
	majority int

	seq      uint64
	epoch    uint64
	released uint64 // renewals up to this one are void
	pending  []round
	sent     int64 // when the newest renewal that a majority granted was sent; 0 if none
	isOpen   bool  // a majority has granted one renewal and knew of no locks to be waited for

	// Of a borrower only: it asks one relay at a time, and has what that one says is left.
	isBorrower   bool
	doubt, until int64
}

// round is one renewal that was sent to all voters.
type round struct {
	seq  uint64
	sent int64
	// granted has the voters that granted it; true are those that know of no locks to be waited
	// for.
	granted map[string]bool
	// majority is that of the voter set that was asked.
	majority int
}

// roundsMax bounds how many renewals are counted at once.
const roundsMax = 16

// NewTally counts for a group of that many voters.
func NewTally(t Timing, voters int) *Tally { return &Tally{timing: t, majority: voters/2 + 1} }

// NewBorrowerTally counts for a lessee that asks relays instead of voters.
func NewBorrowerTally(t Timing) *Tally { return &Tally{timing: t, majority: 1, isBorrower: true} }

// Resize counts renewals from now on for a set of that many voters. Those under way count for the
// set that they were sent to, and a lease that was granted stands.
func (t *Tally) Resize(voters int) {
	if !t.isBorrower {
		t.majority = voters/2 + 1
	}
}

// Begin turns to another epoch; what was granted for the one before is void.
func (t *Tally) Begin(epoch uint64) {
	if epoch != t.epoch {
		t.epoch, t.sent, t.pending = epoch, 0, nil
		t.doubt, t.until = 0, 0
		t.isOpen = false
		t.released = t.seq
	}
}

// Send starts a renewal at the time now, before the first byte of it leaves.
func (t *Tally) Send(now int64) (seq, epoch uint64) {
	t.seq++
	if len(t.pending) == roundsMax {
		t.pending = append(t.pending[:0], t.pending[1:]...)
	}
	t.pending = append(t.pending, round{
		seq: t.seq, sent: now, granted: make(map[string]bool), majority: t.majority,
	})
	return t.seq, t.epoch
}

// Answer counts a voter's answer. The lease counts from when the renewal was sent.
func (t *Tally) Answer(voter string, a RenewalAnswer) {
	if !a.Granted || a.Seq <= t.released {
		return
	}
	for i := range t.pending {
		r := &t.pending[i]
		if r.seq != a.Seq {
			continue
		}
		r.granted[voter] = !a.Shut
		t.open(r)
		if len(r.granted) >= r.majority {
			t.sent = max(t.sent, r.sent)
			t.borrow(r.sent, a)
		}
		return
	}
}

// borrow takes what a relay lent, at most what a lease of its own could be. Two relays are
// answerable for their loans independently, so the longer one holds.
func (t *Tally) borrow(sent int64, a RenewalAnswer) {
	if until := sent + min(a.Left, int64(t.timing.Lease)); t.isBorrower && until > t.until {
		t.until, t.doubt = until, sent+min(a.DoubtLeft, int64(t.timing.Doubt))
	}
}

// Release gives the epoch up. What was sent before has no effect any more, whenever it is
// answered. The sequence number is that of the release.
func (t *Tally) Release() (seq uint64) {
	t.seq++
	t.released = t.seq
	t.sent, t.pending = 0, nil
	t.doubt, t.until = 0, 0
	return t.seq
}

// Deadlines are the times from which the epoch is in doubt, and may not be used; 0 if a
// majority never granted it.
func (t *Tally) Deadlines() (doubt, until int64) {
	if t.sent == 0 {
		return 0, 0
	}
	if t.isBorrower {
		return t.doubt, t.until
	}
	return t.sent + int64(t.timing.Doubt), t.sent + int64(t.timing.Lease)
}
