package proxy

import (
	"fmt"
	"testing"
)

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
