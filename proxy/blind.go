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

// lasts is how long no attempt has succeeded; 0 if the newest did, or was longer than fresh ago:
// who does not try does not know.
func (b *blindness) lasts(now int64, fresh time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.first == 0 || now-b.last > int64(fresh) {
		return 0
	}
	return time.Duration(now - b.first)
}

// Blind is how long the proxy has had no connection to the primary of the newest epoch though it
// tried; 0 if its newest attempt succeeded, or none was made of late.
func (p *Proxy) Blind() time.Duration {
	return p.blind.lasts(bootNow(), 2*p.cfg.DialTimeout)
}
