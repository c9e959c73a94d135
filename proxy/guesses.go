package proxy

import (
	"net/netip"
	"sync"
	"time"
)

// guesses bounds failed logins by address: so many at once, and as many in a minute after. An
// address that has spent them is refused before anything is checked, so that guesses made at the
// same time count too. Safe for concurrent use.
type guesses struct {
	max int // 0: not bounded
	now func() time.Time

	mu         sync.Mutex
	young, old map[netip.Addr]failures // old goes when young is full, as in generations
}

// failures are those of an address that are not forgiven yet.
type failures struct {
	count float64
	at    time.Time
}

// guessesMax bounds the addresses that are kept.
const guessesMax = 20000

func newGuesses(perMinute int) *guesses {
	return &guesses{max: perMinute, now: time.Now, young: make(map[netip.Addr]failures)}
}

// network is what counts as one address: of IPv6 whoever has one address has all of a /64.
func network(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// isSpent tells that the address has no attempt left for now.
func (g *guesses) isSpent(a netip.Addr) bool {
	if g.max == 0 || !a.IsValid() { // a client on a Unix socket
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.leftLocked(network(a)) > float64(g.max)-1
}

// failed counts a failed login.
func (g *guesses) failed(a netip.Addr) {
	if g.max == 0 || !a.IsValid() {
		return
	}
	a = network(a)
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.leftLocked(a) + 1
	if len(g.young) >= guessesMax/2 {
		g.old, g.young = g.young, make(map[netip.Addr]failures)
	}
	g.young[a] = failures{n, g.now()}
}

// leftLocked is what is not forgiven of an address's failures.
func (g *guesses) leftLocked(a netip.Addr) float64 {
	f, ok := g.young[a]
	if !ok {
		if f, ok = g.old[a]; !ok {
			return 0
		}
	}
	return max(0, f.count-g.now().Sub(f.at).Minutes()*float64(g.max))
}
