package proxy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"holdfast/pgwire"
)

const (
	// secretsMax bounds the cache of secrets, and that of names without one.
	secretsMax = 10000
	// secretNameMax is NAMEDATALEN - 1: no role has a longer name.
	secretNameMax = 63
	// secretPatience is how long a login with a cached secret waits for a fresh one.
	secretPatience = 300 * time.Millisecond
)

// secretCache keeps the password secrets of roles as the primary stores them, so that clients
// can be authenticated while there is no primary. A secret older than SecretTTL is asked for
// again where there is a primary to ask. Safe for concurrent use.
type secretCache struct {
	proxy *Proxy

	mu    sync.Mutex
	known generations
	// absent are names that no role with a secret has: anybody may make them up, so they must
	// not drive out the others.
	absent generations
	// roles are all that there are, where they are known.
	roles loginRoles
}

type secretEntry struct {
	secret string
	ok     bool
	at     time.Time
	roles  []string // that the user is a member of; none unless rules ask for them
	// doubted: a login has failed since, so that it may be another one by now.
	doubted bool
	// listed: of loginRoles, of use only while nobody can be asked.
	listed bool
	// unsure: used since nobody could be asked.
	unsure bool
}

// generations is a map that forgets what was not asked for lately: when the younger half is full
// the older one goes.
type generations struct {
	young, old map[string]secretEntry
}

func (g *generations) get(name string) (secretEntry, bool) {
	e, ok := g.young[name]
	if ok {
		return e, true
	}
	if e, ok = g.old[name]; ok {
		g.put(name, e)
	}
	return e, ok
}

func (g *generations) put(name string, e secretEntry) {
	if g.young == nil || len(g.young) >= secretsMax/2 {
		g.old, g.young = g.young, make(map[string]secretEntry)
	}
	g.young[name] = e
}

func (g *generations) forget(name string) {
	delete(g.young, name)
	delete(g.old, name)
}

func newSecretCache(p *Proxy) *secretCache {
	return &secretCache{proxy: p, roles: loginRoles{due: make(chan struct{}, 1)}}
}

var _ Secrets = (*secretCache)(nil)

// UserSecret implements Secrets.
func (c *secretCache) UserSecret(ctx context.Context, user string) (string, bool, error) {
	e, err := c.entry(ctx, user)
	return e.secret, e.ok, err
}

// entry is what is known of a role, or what the primary says of it.
func (c *secretCache) entry(ctx context.Context, user string) (secretEntry, error) {
	if len(user) > secretNameMax || !utf8.ValidString(user) || strings.ContainsRune(user, 0) {
		return secretEntry{}, nil // no role; the primary need not be asked
	}
	e, cached := c.cached(user)
	isYoung := cached && c.isYoung(e)
	if isYoung && !e.doubted {
		return e, nil
	}
	usable := isYoung || cached && (e.ok || e.listed || c.hasRoles())
	for {
		pr, changed := c.proxy.topo.Current()
		err := errors.New("there is no primary to ask")
		if pr != nil && c.mayAsk(pr) {
			var fresh secretEntry
			fresh, err = c.askInTime(ctx, pr, user, usable)
			if err == nil {
				return fresh, nil
			}
		}
		switch {
		case errors.Is(err, errTooManyRoles):
			return secretEntry{}, err
		case usable:
			e.unsure = true
			return e, nil
		case ctx.Err() != nil || isNoSecretLeft(err):
			return secretEntry{}, fmt.Errorf("look up secret: %w", err)
		}
		awaitNews(ctx, changed)
	}
}

// awaitNews waits a moment, or until there is another primary.
func awaitNews(ctx context.Context, changed <-chan struct{}) {
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-t.C:
	}
}

// secretOf is the secret that a client has to know: that of the file, which is there without any
// primary, or what Secrets says.
func (p *Proxy) secretOf(ctx context.Context, user string) (e secretEntry, err error) {
	if secret, ok := p.tls.get().secrets[user]; ok {
		return secretEntry{secret: secret, ok: true}, nil
	}
	if p.secrets == Secrets(p.cache) {
		return p.cache.entry(ctx, user)
	}
	e.secret, e.ok, err = p.secrets.UserSecret(ctx, user)
	return e, err
}

// secretNow is secretOf if nobody need be asked.
func (p *Proxy) secretNow(user string) (secretEntry, bool) {
	if secret, ok := p.tls.get().secrets[user]; ok {
		return secretEntry{secret: secret, ok: true}, true
	}
	if p.secrets != Secrets(p.cache) {
		return secretEntry{}, false
	}
	return p.cache.fresh(user)
}

// fresh is the secret of a role if it need not be asked for.
func (c *secretCache) fresh(user string) (secretEntry, bool) {
	e, ok := c.cached(user)
	return e, ok && !e.doubted && c.isYoung(e)
}

// isYoung tells that a secret need not be asked for again.
func (c *secretCache) isYoung(e secretEntry) bool {
	return !e.listed && time.Since(e.at) < c.proxy.cfg.SecretTTL
}

func (c *secretCache) hasRoles() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.roles.entries != nil
}

// isNoSecretLeft tells that to ask again is of no use: the server has answered. That it lets no
// host in is what a door says that the agent is about to open.
func isNoSecretLeft(err error) bool {
	var pe *pgwire.Error
	if errors.As(err, &pe) && pe.Code == pgwire.CodeInvalidAuth {
		return false
	}
	return (pe != nil || errors.Is(err, pgwire.ErrAuthMethod)) && !isServerAway(err)
}

// mayAsk tells that the primary is likely to answer.
func (c *secretCache) mayAsk(pr *Primary) bool {
	return !c.proxy.isCut(pr.Epoch) && bootNow() < pr.Lease.Doubt()
}

// askInTime asks, but not for long if there is a secret to go on with.
func (c *secretCache) askInTime(ctx context.Context, pr *Primary, user string, usable bool,
) (secretEntry, error) {
	if usable {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, secretPatience)
		defer cancel()
	}
	return c.ask(ctx, pr, user)
}

func (c *secretCache) cached(user string) (secretEntry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.known.get(user)
	if !ok {
		e, ok = c.absent.get(user)
	}
	l, isListed := c.roles.find(user)
	if isListed && (!ok || l.at.After(e.at) && (l.secret != e.secret || l.ok != e.ok)) {
		return l, true
	}
	return e, ok
}

// ask gets a secret from the primary. The user's name travels as a quoted literal.
func (c *secretCache) ask(ctx context.Context, pr *Primary, user string) (secretEntry, error) {
	sql := "SELECT holdfast.user_secret(" + quoteLiteral(user) + ")"
	if c.proxy.asksRoles {
		sql += ", NULL::text" + rolesSQL(user)
	}
	rows, err := c.proxy.secretsAt.query(ctx, pr, sql)
	if err != nil {
		return secretEntry{}, err
	}
	e := secretEntry{at: time.Now()}
	if c.proxy.asksRoles {
		if e.roles, err = rolesOf(rows); err != nil {
			return secretEntry{}, err
		}
	}
	for _, row := range rows {
		if len(row) > 0 && row[0] != nil {
			e.secret, e.ok = string(row[0]), true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.ok {
		c.absent.forget(user)
		c.known.put(user, e)
	} else {
		c.known.forget(user)
		c.absent.put(user, e)
	}
	c.wantRoles(pr.Epoch)
	return e, nil
}

// doubtAfter is how old a secret has to be for a failed login to cast doubt on it: guesses must not
// become questions to the primary, one for one.
const doubtAfter = time.Second

// doubt lets the next login of a role ask for its secret again, since one has failed: it may have
// been changed. Without a primary what is known is used still.
func (c *secretCache) doubt(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range []*generations{&c.known, &c.absent} {
		if e, ok := g.get(user); ok && time.Since(e.at) >= doubtAfter {
			e.doubted = true
			g.put(user, e)
			delete(g.old, user)
		}
	}
}

// forget drops a secret that turned out to be old.
func (c *secretCache) forget(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known.forget(user)
	c.absent.forget(user)
	c.roles.forget(user)
}
