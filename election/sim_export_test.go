package election

import (
	"context"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"
)

// This file gives the simulation, which is outside of the package, the real voter and lessee.

// SimDisk is the disk of a simulated voter.
type SimDisk struct {
	Endorsed, Floor uint64
	IsBlank         bool
	// Save is called with what is to be durable when it returns.
	Save func(endorsed, floor uint64) error
}

// SimVoter is a voter on a disk and a clock of the simulation.
type SimVoter struct{ v *voter }

// NewSimVoter starts a voter, with what its disk remembers.
func NewSimVoter(d SimDisk, t Timing, drain time.Duration, fence string, source StateSource,
	now func() int64,
) SimVoter {
	e := endorsement{V: Version, Endorsed: d.Endorsed, Floor: d.Floor}
	save := func(e endorsement) error { return d.Save(e.Endorsed, e.Floor) }
	v := makeVoter(e, d.IsBlank, save, t, source, now)
	v.drain, v.fence = drain, fence
	return SimVoter{v}
}

// Renew answers a renewal.
func (s SimVoter) Renew(r Renewal) RenewalAnswer { return s.v.renew(r) }

// Release answers a release.
func (s SimVoter) Release(r Renewal) RenewalAnswer { return s.v.release(r) }

// Endorse returns once the epoch is endorsed.
func (s SimVoter) Endorse(ctx context.Context, epoch uint64, recruits []string) error {
	return s.v.endorse(ctx, epoch, recruits...)
}

// ForgetPromises makes the voter forget whom it promised what, which is a mistake.
func (s SimVoter) ForgetPromises() {
	s.v.mu.Lock()
	defer s.v.mu.Unlock()
	clear(s.v.promises.byLessee)
}

// Admit gives a blank voter what the others, those of memories, remember; false if too few.
func (s SimVoter) Admit(ctx context.Context, voters int, others map[string]SimVoter) bool {
	answers := make(map[string]helloAnswer)
	for name, o := range others {
		epoch, isBlank := o.v.memory()
		answers[name] = helloAnswer{Epoch: epoch, Blank: isBlank}
	}
	state, _ := s.v.source.State()
	floor, ok := mayAdmit(voters, answers)
	return ok && s.v.admit(ctx, max(floor, state.LastEpoch), 0, "") == nil
}

// ForgetSilence lets the voter promise at once, which is a mistake.
func (s SimVoter) ForgetSilence(t Timing, now int64) {
	s.v.mu.Lock()
	defer s.v.mu.Unlock()
	s.v.promises = NewPromises(t, now, s.v.promises.Endorsed(), true)
}

// ForgetEpochs makes a voter that lost its disk promise anything, which is a mistake.
func (s SimVoter) ForgetEpochs(t Timing, now int64) {
	s.v.mu.Lock()
	defer s.v.mu.Unlock()
	s.v.blank, s.v.promises = false, NewPromises(t, now, 0, false)
}

// SimLink is the way of a simulated lessee to one voter.
type SimLink interface {
	Name() string
	Renew(ctx context.Context, r Renewal) (RenewalAnswer, error)
	Release(ctx context.Context, r Renewal) (RenewalAnswer, error)
}

type simLink struct{ SimLink }

func (s simLink) name() string { return s.Name() }

func (s simLink) renew(ctx context.Context, r Renewal) (RenewalAnswer, error) {
	return s.Renew(ctx, r)
}

func (s simLink) release(ctx context.Context, r Renewal) (RenewalAnswer, error) {
	return s.Release(ctx, r)
}

// SimLessee is a lessee on a clock and a network of the simulation.
type SimLessee struct{ l *lessee }

// NewSimLessee returns a lessee; Run runs it.
func NewSimLessee(name string, t Timing, drain time.Duration, links []SimLink,
	source StateSource, gate Gate, now func() int64,
) SimLessee {
	var clients []voterClient
	for _, k := range links {
		clients = append(clients, simLink{k})
	}
	return SimLessee{newLessee(name, t, drain, clients, source, gate, zap.NewNop(), now)}
}

// Run renews until ctx ends.
func (s SimLessee) Run(ctx context.Context) { s.l.run(ctx) }

// View is the lease.
func (s SimLessee) View() *LeaseView { return &s.l.view }

// AskMajority is how a coordinator asks the voters.
func AskMajority(
	ctx context.Context, names []string, ask func(ctx context.Context, name string) error,
) error {
	return (&Node{}).askMajority(ctx, names, ask)
}

// Incarnate takes the incarnation from the schedule's dice, so that it can be replayed.
func (s SimLessee) Incarnate(r *rand.Rand) { s.l.incarnation = r.Uint64() }

// IsOver is the rule by which an agent refuses orders that come late.
func IsOver(o Order, lock uint64) bool { return o.isOver(lock) }

// AskWhoeverLeads is how a node passes a request on.
func AskWhoeverLeads(ctx context.Context, state func() (*State, <-chan struct{}),
	newest func(context.Context) uint64,
	put func(context.Context, Request) ([]Check, error), r Request,
) ([]Check, error) {
	return asking{state, newest, put}.run(ctx, r)
}

// AsLost is what a node takes for the end of a leadership; BrokenCall is a call without an answer.
func AsLost(err error) error { return asLost(err) }

// BrokenCall is a call that ended without an answer.
func BrokenCall(err error) error { return &brokenCall{err} }

// WishOf is the token of the request that a change came of, and whether it is what was asked for.
func WishOf(c Change) (token string, isIt bool) {
	return wishToken(c.Request), !isInstead(c.Request)
}
