package proxy

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// otherSecrets is a Secrets that is not the cache.
type otherSecrets struct{}

func (otherSecrets) UserSecret(context.Context, string) (string, bool, error) {
	return "other", true, nil
}

// A secret of the file, or a fresh one of the cache, is there on the loop, where nobody may wait.
func TestSecretNow(t *testing.T) {
	p := &Proxy{cfg: DefaultConfig(), tls: &tlsStore{}}
	p.tls.now.Store(&tlsSettings{secrets: map[string]string{"filed": "s"}})
	p.cache = newSecretCache(p)
	p.cache.known.put("cached", secretEntry{secret: "c", ok: true, at: time.Now()})
	p.cache.known.put("filed", secretEntry{secret: "old", ok: true, at: time.Now()})
	for _, c := range []struct {
		secrets    Secrets
		user, want string
	}{
		{p.cache, "filed", "s"}, {p.cache, "cached", "c"}, {p.cache, "asked", ""},
		{otherSecrets{}, "filed", "s"}, {otherSecrets{}, "cached", ""},
	} {
		p.secrets = c.secrets
		e, ok := p.secretNow(c.user)
		if e.secret != c.want || ok != (c.want != "") || e.ok != ok {
			t.Errorf("%s of %T: %q, %v", c.user, c.secrets, e.secret, ok)
		}
	}
}

func TestMadeUpNamesDriveNoSecretOut(t *testing.T) {
	c := newSecretCache(nil)
	c.known.put("app", secretEntry{secret: "s", ok: true})
	for i := range 3 * secretsMax {
		c.absent.put(fmt.Sprint("no", i), secretEntry{})
	}
	if e, ok := c.cached("app"); !ok || e.secret != "s" {
		t.Error("the secret of a role is gone")
	}
	if n := len(c.absent.young) + len(c.absent.old); n > secretsMax {
		t.Errorf("%d names are kept", n)
	}
	// Who logs in now and then stays, whoever else does.
	for i := range 3 * secretsMax {
		c.known.put(fmt.Sprint("role", i), secretEntry{ok: true})
		if i%1000 == 0 {
			if _, ok := c.cached("app"); !ok {
				t.Fatalf("forgotten after %d others", i)
			}
		}
	}
}
