package election

import "time"

// Relay is what a lessee has lent of its own lease to processes that do not ask the voters
// themselves: sidecar proxies, of which there may be thousands. What is lent ends no later than
// the lease it is lent from, so the voters need not know of it; before the lessee releases, what it
// lent has been released too, or has run out (DESIGN.md I8a). Pure; not safe for concurrent use.
type Relay struct {
	lent *Promises
	// reach is how long after the end of a loan something may still arrive that was sent under
	// it: what a promise lasts longer than a lease.
	reach int64
}

// NewRelay has lent nothing yet. A process that has just started owes nothing for its former self:
// the voters' promises to that one stand until they have run out.
func NewRelay(t Timing) *Relay {
	return &Relay{lent: NewPromises(t, 0, 0, true), reach: int64(t.Promise - t.Lease)}
}

// Renew lends what is left at the time now of a lease of the epoch with these deadlines. Only
// durations travel; the borrower counts them from when it sent its request.
func (r *Relay) Renew(now int64, req Renewal, epoch uint64, doubt, until int64) RenewalAnswer {
	if req.Epoch != epoch || until == 0 || now >= until {
		return RenewalAnswer{V: Version, Seq: req.Seq, Reason: "no lease of that epoch here"}
	}
	a := r.lent.renewFor(now, req, until-now+r.reach)
	if a.Granted {
		a.Left, a.DoubtLeft = until-now, doubt-now
	}
	return a
}

// Release takes back what was lent to that incarnation before.
func (r *Relay) Release(now int64, req Renewal) RenewalAnswer { return r.lent.Release(now, req) }

// Close lends nothing of the epoch, or of an older one, any more.
func (r *Relay) Close(epoch uint64) { r.lent.Forbid(epoch + 1) }

// Outstanding is how long what was lent of the epoch, or of an older one, may still be in use; 0
// if it was all released or has run out.
func (r *Relay) Outstanding(now int64, epoch uint64) time.Duration {
	return r.lent.MayEndorse(now, epoch+1)
}
