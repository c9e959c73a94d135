package proxy_test

import (
	"testing"

	"holdfast/pgwire"
)

// What a client of a replication connection may not say, which the proxy only passes on, ends it in
// PostgreSQL's words, and others notice nothing.
func TestHostileReplication(t *testing.T) {
	r := newReplicationRig(t, nil)
	other := r.connect("")
	for _, kind := range []string{"true", "database"} {
		for name, said := range map[string][]byte{
			"length 0":            {'Q', 0, 0, 0, 0},
			"length 3":            {'Q', 0, 0, 0, 3},
			"length 0xffffffff":   {'Q', 255, 255, 255, 255},
			"negative length":     {'Q', 128, 0, 0, 0},
			"a type that is none": {0, 0, 0, 0, 4},
			"a type of a server":  pgwire.AppendReadyForQuery(nil, 'I'),
			"a lie behind a command": append(pgwire.AppendQuery(nil, "IDENTIFY_SYSTEM"),
				'Q', 0, 0, 0, 1),
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				w := hijack(t, r.connectTo(r.dsn("replication="+kind)))
				w.send(said)
				if got := lastWords(t, w.c); got != "08P01" {
					t.Errorf("got %q", got)
				}
				r.well(t, other)
			})
		}
	}
	r.eventually(func() bool { n, _ := r.proxy.Stats(); return n == 1 }, "the sessions end")
}
