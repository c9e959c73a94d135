package proxy

import (
	"bytes"
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

// mentionsDatabase tells that a utility statement may be one of those. It may take others for one.
func mentionsDatabase(sql []byte) bool {
	return bytes.Contains(bytes.ToLower(sql), []byte("database"))
}

// leaveDatabases closes the connections that no session uses. It does not wait.
func (p *Proxy) leaveDatabases() {
	p.work.Add(1)
	go func() {
		defer p.work.Done()
		p.pool.clear()
		p.catalogues.dropIdle(0)
	}()
}
