package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// secretsMax bounds the cache of secrets.
const secretsMax = 10000

// secretCache keeps the password secrets of roles as the primary stores them, so that clients
// can be authenticated while there is no primary. A secret older than SecretTTL is asked for
// again where there is a primary to ask. Safe for concurrent use.
type secretCache struct {
	proxy *Proxy

	mu      sync.Mutex
	entries map[string]secretEntry
}

type secretEntry struct {
	secret string
	ok     bool
	at     time.Time
}

var _ Secrets = (*secretCache)(nil)

// UserSecret implements Secrets.
func (c *secretCache) UserSecret(ctx context.Context, user string) (string, bool, error) {
	c.mu.Lock()
	e, known := c.entries[user]
	c.mu.Unlock()
	if known && time.Since(e.at) < c.proxy.cfg.SecretTTL {
		return e.secret, e.ok, nil
	}
	pr, changed := c.proxy.topo.Current()
	for {
		if pr != nil {
			fresh, err := c.ask(ctx, pr, user)
			if err == nil {
				return fresh.secret, fresh.ok, nil
			}
			if known && e.ok {
				return e.secret, true, nil
			}
			if ctx.Err() != nil {
				return "", false, fmt.Errorf("look up secret: %w", err)
			}
		} else if known && e.ok {
			return e.secret, true, nil
		}
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
			return "", false, fmt.Errorf("look up secret: %w", ctx.Err())
		case <-changed:
		case <-t.C:
		}
		t.Stop()
		pr, changed = c.proxy.topo.Current()
	}
}

// ask gets a secret from the primary. The user's name travels as a quoted literal.
func (c *secretCache) ask(ctx context.Context, pr *Primary, user string) (secretEntry, error) {
	rows, err := c.proxy.lookup.query(ctx, pr,
		"SELECT holdfast.user_secret("+quoteLiteral(user)+")")
	if err != nil {
		return secretEntry{}, err
	}
	e := secretEntry{at: time.Now()}
	if len(rows) == 1 && len(rows[0]) == 1 && rows[0][0] != nil {
		e.secret, e.ok = string(rows[0][0]), true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= secretsMax {
		clear(c.entries)
	}
	c.entries[user] = e
	return e, nil
}

// forget drops a secret that turned out to be old.
func (c *secretCache) forget(user string) {
	c.mu.Lock()
	delete(c.entries, user)
	c.mu.Unlock()
}
