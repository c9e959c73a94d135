package election

import (
	"slices"
	"sync"
)

// peerSet is the other nodes as they are known now. It changes with the members.
type peerSet struct {
	self string
	id   *identity

	mu     sync.Mutex
	byName map[string]*peer
	order  []string
}

func newPeerSet(self string, id *identity, nodes []Member) *peerSet {
	ps := &peerSet{self: self, id: id, byName: make(map[string]*peer)}
	ps.update(nodes)
	return ps
}

// update keeps exactly these nodes. Calls to others that are under way go on to their end.
func (ps *peerSet) update(nodes []Member) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var order []string
	for _, m := range nodes {
		if m.Name == ps.self || slices.Contains(order, m.Name) {
			continue
		}
		order = append(order, m.Name)
		if p := ps.byName[m.Name]; p != nil && p.member.Address == m.Address {
			continue
		} else if p != nil {
			p.close()
		}
		ps.byName[m.Name] = newPeer(m, ps.id)
	}
	for name, p := range ps.byName {
		if !slices.Contains(order, name) {
			p.close()
			delete(ps.byName, name)
		}
	}
	ps.order = order
}

// get is the peer of that name; nil if there is none.
func (ps *peerSet) get(name string) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byName[name]
}

// list is all peers, in the order of the members.
func (ps *peerSet) list() []*peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var out []*peer
	for _, name := range ps.order {
		out = append(out, ps.byName[name])
	}
	return out
}

// nameAt is the node at that address; empty if there is none.
func (ps *peerSet) nameAt(addr string) string {
	for _, p := range ps.list() {
		if p.member.Address == addr {
			return p.member.Name
		}
	}
	return ""
}
