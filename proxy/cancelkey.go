package proxy

import (
	"crypto/rand"
	"encoding/binary"
	"hash/fnv"

	"holdfast/pgwire"
)

// The process id in the key that a client gets is its first backend's, so that what a driver takes
// for its own pid is what pg_backend_pid(), pg_stat_activity and notifications say. A cancel
// request may come to another node, behind a load balancer or with several hosts in the client's
// connection string: the first seven bits of the secret name the node that has the session, the
// others are random. Two nodes of a group may have the same seven bits; then both are asked.
const nodeTagBits = 7

// nodeTag is the bits of a node's name.
func nodeTag(name string) byte {
	if name == "" {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return byte(h.Sum32() & (1<<nodeTagBits - 1))
}

// keyTag is the node that a secret names.
func keyTag(secret []byte) byte { return secret[0] >> (8 - nodeTagBits) }

// cancelID is what a session with a key is found by: the pid and the first bytes of the secret.
type cancelID uint64

// cancelIDOf needs a secret of 4 bytes or more; ok is false for less.
func cancelIDOf(pid uint32, secret []byte) (id cancelID, ok bool) {
	if len(secret) < 4 {
		return 0, false
	}
	return cancelID(pid)<<32 | cancelID(binary.BigEndian.Uint32(secret)), true
}

// appendKey gives a session whose first backend is b its key, and appends it. The caller is the
// owner; b is not attached yet.
func (s *session) appendKey(out []byte, b *backend) []byte {
	p := s.proxy
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		_, _ = rand.Read(s.key) // never fails (crypto/rand)
		s.key[0] = s.key[0]&(1<<(8-nodeTagBits)-1) | p.tag<<(8-nodeTagBits)
		id, _ := cancelIDOf(b.pid, s.key)
		if _, taken := p.cancelable[id]; !taken {
			s.pid = b.pid
			p.cancelable[id] = s
			return pgwire.AppendBackendKeyData(out, s.pid, s.key)
		}
	}
}

// dropKey forgets the key of a session that is over. The caller holds p.mu.
func (p *Proxy) dropKey(s *session) {
	if id, ok := cancelIDOf(s.pid, s.key); ok && p.cancelable[id] == s {
		delete(p.cancelable, id)
	}
}

// renamed puts the pid into a notification that the client knows its session by, where the session
// has come to another backend since: clients tell by it which notifications are their own. A
// backend that happens to have that pid gets the session's own one, so that no two are the same.
func renamed(body []byte, known, now uint32) {
	if len(body) < 4 {
		return
	}
	switch binary.BigEndian.Uint32(body) {
	case now:
		binary.BigEndian.PutUint32(body, known)
	case known:
		binary.BigEndian.PutUint32(body, now)
	}
}
