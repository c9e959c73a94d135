package proxy

import (
	"bytes"
	"slices"

	"holdfast/pgwire"
)

// reaches is what a function or a relation may lead to, by bits.
type reaches uint8

const (
	reachSets     reaches = 1 << iota // something for the session
	reachLocal                        // something for the transaction
	reachMakes                        // a temporary table or a cursor WITH HOLD
	reachPasses                       // under a name that the caller gives
	reachComputes                     // under a name that nobody knows
)

// reachNode is a function or a relation. Writes to it may lead to more than its mere use.
type reachNode struct {
	name       []byte
	body       []byte // of a function
	args       []string
	use, write reaches
	to         []reachWay
	// given counts the givers among what it leads to when its body was read for what it gives.
	given int
	// isHarmless tells that what it sets, or has others set, has names that are known: the owner
	// says so.
	isHarmless bool
}

// reachWay leads to another node, always or by a write.
type reachWay struct {
	node    *reachNode
	isWrite bool
}

// reachGraph is what leads to functions that set something. The zero value is empty.
type reachGraph struct {
	nodes map[string]*reachNode
	order []*reachNode
	names []string // of custom settings

	harmless harmless
	blamed   []string // compiled functions that nobody vouches for
}

func (g *reachGraph) node(key []byte) *reachNode {
	n := g.nodes[string(key)]
	if n == nil {
		if g.nodes == nil {
			g.nodes = make(map[string]*reachNode)
		}
		n = &reachNode{}
		g.nodes[string(key)] = n
		g.order = append(g.order, n)
	}
	return n
}

// function takes a row of settingBodiesSQL or callingBodiesSQL; isRead tells that its body is to
// be read for what it sets. What cannot be read to its end sets anything.
func (g *reachGraph) function(row [][]byte, isRead bool) {
	if len(row) != bodyColumns {
		return
	}
	n := g.node(append([]byte("f"), row[0]...))
	n.name, n.args, n.body = row[1], argumentNames(row[2]), row[3]
	n.isHarmless = g.harmless.has(row[6], row[1])
	if !isRead {
		return
	}
	s := settersIn(string(row[3]), n.args)
	if string(row[5]) == "t" {
		s.Sets, s.Computes = true, true
	}
	for bit, is := range map[reaches]bool{
		reachSets: s.Sets, reachLocal: s.Local || len(s.Names) > 0, reachPasses: s.Passes,
		reachComputes: s.Computes, reachMakes: string(row[4]) == "t",
	} {
		if is {
			n.use |= bit
		}
	}
	if n.isHarmless {
		n.use &^= reachComputes | reachPasses
	}
	g.learn(s.Names)
}

// way takes a row of reachSQL.
func (g *reachGraph) way(row [][]byte) {
	isWhole := func(key, relation []byte) bool {
		return len(key) > 1 && (key[0] == 'f' || relation != nil)
	}
	if len(row) != 5 || !isWhole(row[1], row[2]) || !isWhole(row[3], row[4]) {
		return
	}
	from, to := g.node(row[1]), g.node(row[3])
	if row[2] != nil {
		from.name = row[2]
	}
	if row[4] != nil {
		to.name = row[4]
	}
	from.to = append(from.to, reachWay{node: to, isWrite: string(row[0]) == "w"})
}

func (g *reachGraph) learn(names []string) {
	for _, name := range names {
		if len(g.names) < settingNamesMax && !slices.Contains(g.names, name) {
			g.names = append(g.names, name)
		}
	}
}

// solve finds what each node leads to. A body leads to all whose name is a word of it.
func (g *reachGraph) solve() {
	byName := make(map[string][]*reachNode)
	var odd []*reachNode // with a name that is no word
	for _, n := range g.order {
		switch name := lowered(n.name); {
		case len(name) == 0:
		case isOneWord(name):
			byName[string(name)] = append(byName[string(name)], n)
		default:
			odd = append(odd, n)
		}
	}
	for _, n := range g.order {
		n.calls(byName, odd)
	}
	// What is led to may lead on: until nothing is new.
	for isNew := true; isNew; {
		isNew = false
		for _, n := range g.order {
			isNew = g.spread(n) || isNew
		}
	}
}

// calls adds the ways that a function's body names.
func (n *reachNode) calls(byName map[string][]*reachNode, odd []*reachNode) {
	if len(n.body) == 0 {
		return
	}
	seen := map[*reachNode]bool{n: true}
	lead := func(to *reachNode) {
		if !seen[to] {
			seen[to] = true
			n.to = append(n.to, reachWay{node: to})
		}
	}
	body := lowered(n.body)
	eachWord(body, func(word []byte) {
		for _, to := range byName[string(word)] {
			lead(to)
		}
	})
	for _, to := range odd[:min(len(odd), oddNamesMax)] {
		if bytes.Contains(body, lowered(to.name)) {
			lead(to)
		}
	}
}

// oddNamesMax bounds the names that each body is searched for.
const oddNamesMax = 100

// spread takes over what a node leads to; true if that is new.
func (g *reachGraph) spread(n *reachNode) bool {
	use, write, givers := n.use, n.write, 0
	for _, w := range n.to {
		got := w.node.use
		if w.node.use&reachPasses != 0 {
			givers++
			got &^= reachPasses
			if len(n.body) == 0 {
				got |= reachComputes // nobody knows what a trigger or a view gives
			}
		}
		switch {
		case len(n.body) > 0: // a function may write
			n.use |= got | w.node.write
		case w.isWrite:
			n.write |= got | w.node.write
		default:
			n.use |= got
			n.write |= w.node.write
		}
	}
	if givers > n.given && len(n.body) > 0 {
		n.given = givers
		g.gives(n)
	}
	if n.isHarmless {
		n.use &^= reachComputes | reachPasses
	}
	return n.use != use || n.write != write
}

// gives reads a body for the names that it gives to those that pass one on.
func (g *reachGraph) gives(n *reachNode) {
	isGiver := make(map[string]bool)
	for _, w := range n.to {
		if w.node.use&reachPasses != 0 {
			isGiver[string(lowered(w.node.name))] = true
		}
	}
	given := pgwire.ParseGiven(n.body, true, n.args, func(name string) bool { return isGiver[name] })
	g.learn(given.Names)
	if given.Params {
		n.use |= reachPasses
	}
	if given.Other {
		n.use |= reachComputes
	}
}

// take solves the graph and keeps what statements are looked through for.
func (s *setters) take(g *reachGraph) {
	g.solve()
	for _, n := range g.order {
		if n.use|n.write != 0 && len(n.name) > 0 {
			s.add(n.name, n.use, n.write)
		}
	}
	s.settings = g.names
}
