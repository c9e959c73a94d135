package proxy

import (
	"context"
	"errors"
	"sync"
	"time"

	"holdfast/pgwire"
)

// blindness is what the proxy's own attempts to connect tell of the primary: it costs no connection
// of its own. Safe for concurrent use.
type blindness struct {
	mu          sync.Mutex
	epoch       uint64
	first, last int64 // bootNow of the first and the newest failure since a success; 0: none
}

// note takes the outcome of an attempt to connect under an epoch. An attempt that its client has
// given up says nothing; any answer of a server shows that it can be reached.
func (b *blindness) note(epoch uint64, err error, now int64) {
	var answer *pgwire.Error
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case epoch < b.epoch || errors.Is(err, context.Canceled):
		return
	case err == nil || errors.As(err, &answer) || !isServerAway(err):
		b.epoch, b.first, b.last = epoch, 0, 0
		return
	case epoch > b.epoch || b.first == 0:
		b.epoch, b.first = epoch, now
	}
	b.last = now
}

// lasts is how long no attempt has succeeded, and under which epoch; 0 if the newest did, or was
// longer than fresh ago: who does not try does not know.
func (b *blindness) lasts(now int64, fresh time.Duration) (epoch uint64, d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.first == 0 || now-b.last > int64(fresh) {
		return b.epoch, 0
	}
	return b.epoch, time.Duration(now - b.first)
}

// Blind is how long the proxy has got no connection to the primary of that epoch, the newest that
// it tried; 0 if its newest attempt succeeded, or none was made of late. It says nothing of a later
// epoch's primary.
func (p *Proxy) Blind() (epoch uint64, d time.Duration) {
	return p.blind.lasts(bootNow(), 2*p.cfg.DialTimeout)
}
