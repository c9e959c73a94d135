package proxy

import (
	"bytes"
	"slices"
	"time"
)

// DROP DATABASE, ALTER DATABASE ... RENAME and CREATE DATABASE ... TEMPLATE want a database that
// nobody is connected to, and wait for five seconds that it becomes so (CountOtherDBBackends). The
// proxy's own connections must not be what they fail for: those that wait for a login, and those to
// the catalogues. On the proxy that sees the statement they go at once; on others, and for one that
// comes to PostgreSQL directly, they have gone before the five seconds are over, since none is idle
// for longer than reuse_idle and catalogIdle, and a look at them comes every second.

// catalogIdle is how long a connection to a catalogue that nothing is asked over is kept.
const catalogIdle = 3 * time.Second

// needsDatabase tells that a utility statement may be one of those. One that begins with a comment
// counts by that word alone.
func needsDatabase(sql []byte) bool {
	if len(sql) > 500 {
		return false
	}
	words := bytes.Fields(bytes.ToLower(sql))
	switch {
	case len(words) < 3:
		return false
	case bytes.HasPrefix(words[0], []byte("--")), bytes.HasPrefix(words[0], []byte("/*")):
		return bytes.Contains(bytes.ToLower(sql), []byte("database"))
	}
	return string(words[1]) == "database" && slices.Contains([]string{"create", "alter", "drop"},
		string(words[0]))
}

// leaveDatabases closes the connections that no session uses. It does not wait.
func (p *Proxy) leaveDatabases() {
	if p.leavesDatabases.Swap(true) {
		return // somebody is about to
	}
	p.work.Add(1)
	go func() {
		defer p.work.Done()
		p.leavesDatabases.Store(false)
		p.pool.clear()
		p.prewarm.clear()
		p.catalogues.dropIdle(0)
	}()
}
