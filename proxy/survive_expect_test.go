package proxy_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"holdfast/pgwire"
	"holdfast/proxy"
)

// ending is what a client is told of a loss: the SQLSTATE of each atom that ends in an error of the
// proxy's. The zero ending is: nothing, all is kept.
type ending struct {
	told map[int]string
	gone bool // the session ended with 57P01, behind all that told has
}

func (e ending) String() string {
	var parts []string
	for _, i := range slices.Sorted(maps.Keys(e.told)) {
		parts = append(parts, fmt.Sprintf("%s at %d", e.told[i], i))
	}
	if e.gone {
		parts = append(parts, "57P01 at the end")
	}
	if parts == nil {
		return "kept"
	}
	return strings.Join(parts, ", ")
}

func (e ending) is(other ending) bool {
	return e.gone == other.gone && maps.Equal(e.told, other.told)
}

// kept is the ending of a fault that nobody notices.
var kept = ending{}

// expected tells from the contract (docs/contract.md 7) how a conversation may end whose connection
// to the server was lost when this had passed. There is one ending, but where the line cannot see
// what decides:
//   - whether the server has executed a COMMIT that it was sent and did not answer: both are right,
//     as long as what is told is true (survive_truth_test.go);
//   - whether the proxy has sent on what its client sent just before the connection ended, or what
//     was behind a COMMIT that is guarded;
//   - whether it had read all answers that had come to its host when the epoch was given up, which
//     are not relayed any more.
func (c *conversation) expected(p passage, f *fault, guard string) []ending {
	if f.harmless {
		return []ending{kept}
	}
	p = c.heldBack(p, guard)
	out := c.endings(p, f, guard)
	if end := p.whole + 1; end < p.forwarded && (c.chains(p.whole) ||
		guard == proxy.GuardExplicit && c.isLookedUp(p.whole, p, guard)) {
		waits := p // what is behind it may not have been sent yet
		waits.forwarded = end
		out = append(out, c.endings(waits, f, guard)...)
	}
	for e, ok := c.before(p); f.drops && ok; e, ok = c.before(e) {
		out = append(out, c.endings(e, f, guard)...)
	}
	if end := c.groupEnd(p.whole); len(p.part) == 0 && f.async && p.forwarded <= p.whole &&
		p.whole < len(c.atoms) {
		p.forwarded = end
		out = append(out, c.endings(p, f, guard)...)
	}
	return out
}

// chains tells of an atom with AND CHAIN.
func (c *conversation) chains(i int) bool {
	return i < len(c.deeds) && c.deeds[i].all.has(factChains)
}

// heldBack is the passage without what waited for a COMMIT that is guarded, which goes out when all
// before it is answered, or for the answer to an AND CHAIN.
func (c *conversation) heldBack(p passage, guard string) passage {
	for i := p.whole; i < p.forwarded; i++ {
		if c.chains(i) && !(i == p.whole && slices.ContainsFunc(p.part, isCompletion)) {
			p.forwarded = i + 1
		}
	}
	for i := p.whole + 1; i < p.forwarded && guard == proxy.GuardExplicit; i++ {
		if c.isLookedUp(i, p, guard) {
			p.forwarded = i
		}
	}
	return p
}

// isLookedUp tells of an atom with a COMMIT that the guard of that mode looks up.
func (c *conversation) isLookedUp(i int, p passage, guard string) bool {
	return c.commits(i, p) && !c.isDoubtful(i, p, guard) && !c.isProven(i, p, guard)
}

// before is the passage without the last answer, if that came behind what its client sent last.
func (c *conversation) before(p passage) (passage, bool) {
	switch {
	case len(p.part) > 0:
		p.part = p.part[:len(p.part)-1]
	case p.whole > 0 && (p.forwarded <= p.whole || c.atoms[p.whole].joined):
		p.whole--
		all := c.want.atoms[p.whole]
		p.part = all[:len(all)-1]
	default:
		return p, false
	}
	return p, true
}

// endings are those of a passage, where p.forwarded is all that the proxy has sent.
func (c *conversation) endings(p passage, f *fault, guard string) []ending {
	e := ending{told: map[int]string{}}
	last := -1 // the last one that nobody can know of
	for i := p.whole; i < p.forwarded; i++ {
		if c.isDoubtful(i, p, guard) {
			last = i
		}
	}
	for i := p.whole; i <= last; i++ {
		switch {
		case c.isProven(i, p, guard):
		case c.isDoubtful(i, p, guard) || c.isInLostBlock(i, last, p, guard):
			e.told[i] = "08007"
		case c.commits(i, p): // the guard looks it up: see below
		default:
			// What only reads, or begins a block that has no such end, is run again at its place,
			// and that is behind the last one whose outcome is known: here something is before it,
			// or behind, of which nobody knows whether it has happened.
			e.told[i] = "40001"
		}
	}
	if last >= 0 && c.leavesFailed(last, p) {
		c.tellBehind(last, p, e.told)
	}
	out := []ending{e}
	if last >= 0 && (c.hasNoID(p, guard) || guard != proxy.GuardOff && !c.isSent(last, p)) {
		out = append(out, kept)
	}
	for i := p.whole; i < last; i++ {
		if c.commits(i, p) && e.told[i] == "" && !c.isProven(i, p, guard) {
			// If it is found not to be committed it is not run again: there is no place for it.
			aborted := maps.Clone(e.told)
			aborted[i] = "40001"
			out = append(out, ending{told: aborted})
		}
	}
	if c.made >= 0 {
		return c.withTemp(e, p, f, guard)
	}
	return out
}

// isProven tells that an answer shows that an atom has happened, or has failed as a whole: an
// error; CommandComplete of a single statement, which the server sends behind its commit, and of
// COMMIT in either protocol (exec_simple_query, exec_execute_message: finish_xact_command comes
// before EndCommand); all but ReadyForQuery of a batch that leaves a block open, since its Sync
// commits nothing. Of a string, and of any other batch, only ReadyForQuery shows it; and so of a
// second phase in the extended protocol that was not guarded.
func (c *conversation) isProven(i int, p passage, guard string) bool {
	if i != p.whole || len(p.part) == 0 {
		return false
	}
	last, d := p.part[len(p.part)-1], &c.deeds[i]
	switch {
	case last[0] == 'E':
		return true
	case last[0] != 'C':
		return false
	case d.mixed: // its Query commits all of it
		return len(p.part) == len(c.want.atoms[i])-1
	case d.simple && guard == proxy.GuardAll && c.status(i) == 'I' && d.all.has(factWrites) &&
		!d.all.has(factSecond|factUnguarded):
		return false // it runs as a batch, so that its transaction id can be asked for
	case d.simple:
		return len(d.stmts) == 1
	}
	switch {
	case d.all.has(factSecond) && (guard == proxy.GuardOff || isUnguarded(d, c.status(i))):
		return false
	case len(p.part) == len(c.want.atoms[i])-1 && i+1 < len(c.deeds) && c.status(i+1) != pgwire.TxIdle:
		return true
	}
	return strings.HasPrefix(last, `C "COMMIT`) || strings.HasPrefix(last, `C "PREPARE TRANS`) ||
		strings.HasPrefix(last, `C "ROLLBACK`) && !d.all.has(factGoesBack)
}

// believed is the status before an atom as far as the answers that came tell: a block that fails by
// an error that did not come may be a good one, or have become one by ROLLBACK TO.
func (c *conversation) believed(i int, p passage) byte {
	at := i
	for c.status(at) == pgwire.TxFailed {
		at-- // to the atom that fails
	}
	if at < i && at >= p.whole && !(at == p.whole && slices.ContainsFunc(p.part, isError)) {
		return pgwire.TxInBlock
	}
	return c.status(i)
}

func isError(message string) bool { return message[0] == 'E' }

func isCompletion(message string) bool { return message[0] == 'C' }

// wroteBefore tells that the transaction that is open before an atom has written.
func (c *conversation) wroteBefore(i int) bool {
	for j := i - 1; c.status(j+1) != pgwire.TxIdle && !c.deeds[j].all.has(factCommits); j-- {
		if c.deeds[j].all.has(factWrites) {
			return true
		}
	}
	return false
}

// commits tells that an atom makes something last, if the server does what it did without a fault,
// as far as that is known.
func (c *conversation) commits(i int, p passage) bool {
	status := c.believed(i, p)
	opened := status == pgwire.TxInBlock
	wrote := c.wroteBefore(i)
	for _, s := range c.deeds[i].stmts {
		switch {
		case s.has(factBegins), s.has(factGoesBack):
			opened = true
		case s.has(factPrepares):
			if opened { // also of a transaction that wrote nothing
				return true
			}
		case s.has(factCommits):
			if opened && wrote {
				return true
			}
			opened, wrote = s.has(factChains), false
		case s.has(factRollsBack):
			opened, wrote = s.has(factChains), false
		case s.has(factWrites):
			wrote = true
		}
	}
	return status == pgwire.TxIdle && !opened && wrote
}

// leavesFailed tells that a client that is told an error for an atom has to be in a failed block
// then, lest what it has sent behind that runs on its own: a block may be open there. None surely
// is where the end of one is all that comes.
func (c *conversation) leavesFailed(i int, p passage) bool {
	done := 0
	if i == p.whole {
		for _, m := range p.part {
			if m[0] == 'C' {
				done++
			}
		}
	}
	all := c.deeds[i].stmts
	opened := c.believed(i, p) != pgwire.TxIdle
	for n, s := range all {
		isEnd := s.has(factCommits | factRollsBack)
		switch {
		case n >= done && s.has(factBegins|factChains):
			return true
		case n == done && isEnd:
			return slices.ContainsFunc(all[n:], func(f fact) bool { return f.has(factBegins) })
		case n < done && s.has(factBegins|factGoesBack):
			opened = true
		case n < done && isEnd:
			opened = s.has(factChains)
		}
	}
	return opened
}

// tellBehind tells 40001 what is surely rolled back with the block that is lost there: all that was
// sent of it, or else what comes next.
func (c *conversation) tellBehind(last int, p passage, told map[int]string) {
	for i := last + 1; i < len(c.deeds); i++ {
		isEnd := c.deeds[i].all.has(factCommits | factRollsBack)
		if isEnd || i > last+1 && i >= p.forwarded {
			return
		}
		told[i] = "40001"
	}
}

// isDoubtful tells that an atom that was forwarded may have made something last, that no answer
// shows whether it has, and that the guard of that mode cannot look it up (docs/contract.md 7,
// `commit_guard`).
func (c *conversation) isDoubtful(i int, p passage, guard string) bool {
	if !c.commits(i, p) || c.isProven(i, p, guard) {
		return false
	}
	d := &c.deeds[i]
	isExplicit := c.believed(i, p) == 'T' && d.all.has(factCommits) ||
		d.all.has(factGoesBack|factBegins|factSecond)
	switch {
	case d.mixed || isUnguarded(d, c.status(i)):
		return true
	case guard == proxy.GuardOff:
		return true
	case guard == proxy.GuardExplicit:
		return !isExplicit
	}
	return d.all.has(factTakesNoID)
}

// isSent tells that the line has read enough of an atom to know that all of it was sent. What no
// guard looks up waits for what a guard looks up before it, or for the question what its
// identifier means.
func (c *conversation) isSent(i int, p passage) bool {
	d := &c.deeds[i]
	switch {
	case !isUnguarded(d, c.status(i)):
		return true
	case d.simple:
		return slices.Contains(p.queries, d.text)
	}
	return p.last == 'E' || p.last == 'S'
}

// isUnguarded tells of what no mode guards: in a block all is, but an end with an identifier that
// is not read.
func isUnguarded(d *deed, status byte) bool {
	if status == 'T' {
		return d.all.has(factSecond) && d.all.has(factUnguarded)
	}
	return d.all.has(factUnguarded) && !(len(d.stmts) > 1 && d.simple)
}

// isInLostBlock tells of a member of a block whose end is doubtful and lost with it: if that was
// executed, so was all of the block, and nobody is told that it was not.
func (c *conversation) isInLostBlock(i, last int, p passage, guard string) bool {
	for j := i + 1; j <= last && c.status(j) != pgwire.TxIdle; j++ {
		if c.isDoubtful(j, p, guard) {
			return true
		}
	}
	return false
}

// hasNoID tells of a guarded statement that was given no transaction id, since it has changed
// nothing: before its Sync is sent it is run again, and behind that nobody can know (10.14). The
// line cannot tell the guard's Sync from the proxy's own.
func (c *conversation) hasNoID(p passage, guard string) bool {
	d := &c.deeds[p.whole]
	return guard == proxy.GuardAll && (d.all.has(factTakesNoID) || d.mixed)
}

// withTemp is the ending of a session with a temporary table, which no unplanned change carries: it
// is told with 57P01, behind the truth about what is in flight. The session has the table until it
// is known that it is dropped, and that is when its client goes on.
func (c *conversation) withTemp(e ending, p passage, f *fault, guard string) []ending {
	at := p.whole
	goneWith := func(code string) ending {
		told := maps.Clone(e.told)
		if code != "" {
			told[at] = code
		}
		return ending{told: told, gone: true}
	}
	isOut := at < p.forwarded && !c.isProven(at, p, guard)
	switch {
	case at < c.made, at > c.dropped+1, at == c.dropped+1 && p.forwarded > at:
		return []ending{e} // the transaction that makes it is run again; or it is no more
	case at == c.made && c.isProven(at, p, guard):
		return []ending{goneWith("")}
	case at == c.made && (!isOut || e.told[at] != "" || p.arrived <= at):
		return []ending{e} // if its COMMIT is unknown, what uses the table fails, as on a server
	case at == c.made:
		return []ending{e, goneWith("")} // a COMMIT that arrived was executed or not
	case at == c.dropped && isOut && e.told[at] == "":
		return c.droppedIn(p, f, goneWith)
	case isOut && c.status(at) == 'I' && c.deeds[at].all.has(factLooks):
		// The catalogue is not asked for a session that ends, and without it a query may write.
		return []ending{goneWith("08007")}
	}
	return []ending{goneWith("")}
}

// droppedIn is withTemp where the COMMIT behind which there is no table is in flight: the guard
// keeps it back until it knows the transaction id, and what was not sent gets no answer of its
// own.
func (c *conversation) droppedIn(p passage, f *fault, goneWith func(string) ending) []ending {
	refused := goneWith("40001")
	switch at := p.whole; {
	case p.sent <= at && !f.async:
		return []ending{goneWith("")}
	case p.sent > at && p.arrived <= at:
		return []ending{refused}
	}
	return []ending{refused, goneWith("")}
}
