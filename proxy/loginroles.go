package proxy

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

const (
	// loginRolesEvery is how often the roles that may log in are asked for.
	loginRolesEvery = time.Minute
	// loginRolesSpread is how much later than a login on a new primary they are asked for at most.
	loginRolesSpread = 2 * time.Second
	// loginRolesPage is how many are asked for at a time: other questions wait so long.
	loginRolesPage = 500
)

// loginRoles are all roles that may log in, as the primary had them: while there is none, a role
// that has not logged in lately can be checked too, and a name that is not among them can be
// treated as one of no role, as at any other time. secretCache.mu guards it.
type loginRoles struct {
	entries map[string]secretEntry // nil: they are not known, or too many
	at      time.Time
	epoch   uint64 // of which they were asked for last

	due chan struct{} // capacity 1: whoever has asked for a secret
}

// find is what the list says of a name, listed if it says anything. What the cache says may be
// newer.
func (l *loginRoles) find(user string) (e secretEntry, ok bool) {
	if l.entries == nil {
		return secretEntry{}, false
	}
	if e, ok = l.entries[user]; ok {
		return e, !e.at.IsZero() // else its secret turned out to be old
	}
	return secretEntry{at: l.at, listed: true}, true
}

// forget keeps the name, and not its secret.
func (l *loginRoles) forget(user string) {
	if _, ok := l.entries[user]; ok {
		l.entries[user] = secretEntry{}
	}
}

// wantRoles has the list asked for if nobody has on this primary; the caller holds mu.
func (c *secretCache) wantRoles(epoch uint64) {
	if c.roles.epoch == epoch {
		return
	}
	select {
	case c.roles.due <- struct{}{}:
	default:
	}
}

// runRoles keeps the list, once a login has asked for a secret, and asks for it anew behind each
// change of primary. Where rules ask for the roles of users there is none: which they are is
// known only of who is asked for by name.
func (c *secretCache) runRoles(ctx context.Context) {
	if c.proxy.cfg.LoginRolesMax == 0 || c.proxy.asksRoles {
		return
	}
	var tick <-chan time.Time // from the first time on
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.roles.due:
			if tick != nil && sleep(ctx, rand.N(loginRolesSpread)) != nil {
				return
			}
		case <-tick:
		}
		// Hundreds of sidecars ask: not all in the same moment, nor in that of a new primary.
		tick = time.After(loginRolesEvery + rand.N(loginRolesEvery/2))
		if err := c.askRoles(ctx); err != nil {
			c.proxy.log.Debug("the roles that may log in could not be asked for", zap.Error(err))
		}
	}
}

// loginRolesSQL asks for a page of them, behind that name.
func loginRolesSQL(behind string) string {
	return "SELECT rolname::text, holdfast.user_secret(rolname::text) FROM (SELECT rolname" +
		" FROM pg_roles WHERE rolcanlogin AND rolname > " + quoteLiteral(behind) +
		" ORDER BY rolname LIMIT " + strconv.Itoa(loginRolesPage) + ") r"
}

// askRoles asks the primary, if there is one.
func (c *secretCache) askRoles(ctx context.Context) error {
	pr, _ := c.proxy.topo.Current()
	if pr == nil || !c.mayAsk(pr) {
		return nil
	}
	at, most := time.Now(), c.proxy.cfg.LoginRolesMax
	entries := make(map[string]secretEntry)
	for last := ""; ; {
		rows, err := c.proxy.secretsAt.query(ctx, pr, loginRolesSQL(last))
		if err != nil {
			return err
		}
		for _, row := range rows {
			if len(row) != 2 || row[0] == nil {
				return pgwire.NewError(pgwire.CodeProtocolViolation, "no role in the answer")
			}
			last = string(row[0])
			entries[last] = secretEntry{secret: string(row[1]), ok: row[1] != nil, at: at, listed: true}
		}
		if len(entries) > most {
			c.proxy.metrics.limit(limitLoginRoles)
			entries = nil
			break
		}
		if len(rows) < loginRolesPage {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roles.entries, c.roles.at, c.roles.epoch = entries, at, pr.Epoch
	return nil
}

// stands waits until it is sure that a client whose proof did not fit e has to be refused: while
// nobody can be asked, its password may have been changed, or its role been made, since e was
// asked for. Names of roles and others wait alike. An error says that it is not sure.
func (p *Proxy) stands(until time.Time, user string, e secretEntry) error {
	if p.secrets != Secrets(p.cache) {
		return nil
	}
	ctx, cancel := context.WithDeadline(p.doors, until)
	defer cancel()
	_, isFiled := p.tls.get().secrets[user]
	for {
		pr, changed := p.topo.Current()
		if pr != nil && p.cache.mayAsk(pr) {
			if isFiled || !e.unsure {
				return nil
			}
			fresh, err := p.cache.entry(ctx, user)
			switch {
			case err != nil:
				return errNoPrimaryLogin()
			case fresh.unsure: // nobody could be asked after all
			case fresh.secret == e.secret && fresh.ok == e.ok:
				return nil
			default:
				return errNoPrimaryLogin()
			}
		}
		e.unsure = true
		if awaitNews(ctx, changed); ctx.Err() != nil {
			return errNoPrimaryLogin()
		}
	}
}
