package proxy

import (
	"bytes"
	"slices"
	"strings"

	"holdfast/pgwire"
)

// COMMIT AND CHAIN commits, and opens a block of the same characteristics (isolation level, read
// only, deferrable) at once. What comes behind it is a unit of work of its own that begins inside
// of a block (DESIGN.md I41). It is run again in one that is opened as the first of the chain
// was, by the client's own text; where something may have changed the characteristics since, it is
// not run again. Nothing is kept or asked for it while nothing fails, but where the chain began.

// chain is what is known of a unit that begins behind a COMMIT AND CHAIN.
type chain struct {
	from     int    // where the unit began whose block was the first of the chain
	isSought bool   // sql was looked for
	sql      string // what opened that block; empty: not known
	isMoved  bool   // the characteristics may have changed before the unit began
	isNext   bool   // the unit begins with the next message of the client
}

// flowChain is what the answers tell of it.
type flowChain struct {
	isLast  bool // what was answered last of the current batch was such a COMMIT
	isMoved bool // the open block may not have the characteristics any more that it began with
	// isHanded tells that the open block has them from one before, not from a BEGIN.
	isHanded bool
}

// completed takes a statement of the client that has ended, in whole or in part, and the status
// before that.
func (c *flowChain) completed(o *op, typ, status byte) {
	c.isLast = typ == pgwire.SrvCommandComplete && o.cls.has(clsChain) && o.cls.has(clsCommit) &&
		!o.cls.has(clsMulti|clsOpaque)
	// A failed block hands on the modes that it was handed itself, and the defaults in the place of
	// those that its BEGIN has set [ran].
	chains := o.cls.has(clsChain)
	c.isMoved = c.isMoved || o.mayMoveModes(status) ||
		chains && status == pgwire.TxFailed && !c.isHanded
	c.isHanded = c.isHanded || chains
}

// passed takes what else of the client was answered: the next unit cannot begin behind it, since it
// would leave that out. A function may set anything.
func (c *flowChain) passed(o *op) {
	if !o.internal {
		c.isLast, c.isMoved = false, c.isMoved || o.kind == opFunctionCall
	}
}

// ended takes ReadyForQuery, and tells that it is that of a COMMIT AND CHAIN with nothing behind
// it.
func (c *flowChain) ended(status byte) bool {
	chains := c.isLast && status == pgwire.TxInBlock
	if c.isLast = false; status == pgwire.TxIdle {
		*c = flowChain{}
	}
	return chains
}

// mayMoveModes tells that it may change the characteristics of the open block, or of those to come.
func (o *op) mayMoveModes(status byte) bool {
	if o.cls.has(clsModes|clsOpaque|clsOpens|clsEnds) ||
		o.cls.has(clsBegin) && status != pgwire.TxIdle {
		return true // BEGIN in a block warns, and sets them
	}
	for i := range o.effects {
		e := &o.effects[i]
		switch e.kind {
		case pgwire.KindSet, pgwire.KindReset, pgwire.KindSetRole, pgwire.KindListen,
			pgwire.KindUnlisten, pgwire.KindSetSessionAuthorization:
			continue // else it is of clsModes
		}
		if e.cls.has(clsState) && (e.other || e.looks || !e.isKnown ||
			slices.ContainsFunc(e.names, isModeName)) {
			return true
		}
	}
	return false
}

// isModeName tells of settings about transactions.
func isModeName(name string) bool { return strings.Contains(name, "transaction") }

// modesOf is clsModes for what may change the characteristics of a transaction.
func modesOf(s *pgwire.Statement) class {
	switch s.Kind {
	case pgwire.KindSetTransaction, pgwire.KindCall, pgwire.KindDo, pgwire.KindLoad,
		pgwire.KindUnknown:
		return clsModes
	case pgwire.KindSet, pgwire.KindReset:
		if s.All || isModeName(s.Name) {
			return clsModes
		}
	}
	if s.SetConfigOther || slices.ContainsFunc(s.SetConfigNames, isModeName) {
		return clsModes
	}
	return 0
}

// beginsChain tells that a unit can begin behind a COMMIT AND CHAIN that is answered: what the
// session has there is known. Otherwise the unit goes on, and is not run again. The caller holds
// s.mu.
func (s *session) beginsChain() bool {
	return !s.again.isOpen() && s.track.locks.isFollowed()
}

// noteChain takes the end of a unit: that of its transaction, or a COMMIT AND CHAIN. The caller
// holds s.mu.
func (s *session) noteChain() {
	if s.flow.status == pgwire.TxIdle {
		s.chain = nil
		return
	}
	if s.chain == nil {
		s.chain = &chain{from: int(s.unitFrom.Load())}
	}
	s.chain.isMoved, s.chain.isNext = s.flow.chain.isMoved, true
	s.unitUnnamed = s.flow.unnamed
	s.track.locks.unitMoved()
	s.flow.all, s.flow.done, s.flow.canGoOn = 0, 0, false
}

// startsAt notes the first message of a unit behind a COMMIT AND CHAIN. The caller holds s.mu.
func (c *chain) startsAt(s *session, o *op) {
	if c != nil && c.isNext && !o.internal {
		c.isNext = false
		s.unitFrom.Store(int64(o.start))
	}
}

// seek looks for what opened the first block of the chain, before that is forgotten.
func (c *chain) seek(u *unit, from int) {
	if c.isSought || from <= c.from {
		return
	}
	c.isSought = true
	if u.whole && c.from >= u.base && from <= u.end() {
		c.sql = openerIn(u.bytes[c.from-u.base : from-u.base])
	}
}

// opens is the SQL that opens a block like that in which the unit begins; empty if it is not known.
func (c *chain) opens() string {
	if c == nil || c.isMoved {
		return ""
	}
	return c.sql
}

// openerMax bounds the text of a BEGIN that is run again on its own.
const openerMax = 256

// openerIn is the BEGIN that the first statement of these messages is, alone in its text. The
// batches before that in which a unit opens its block would have ended it, and an error in it as
// well; so that it was executed.
func openerIn(messages []byte) string {
	texts, bound := map[string]string{}, ""
	for len(messages) >= pgwire.HeaderLen {
		typ, n, err := pgwire.Header(messages)
		if err != nil || len(messages) < pgwire.HeaderLen+n {
			return ""
		}
		body := messages[pgwire.HeaderLen : pgwire.HeaderLen+n]
		messages = messages[pgwire.HeaderLen+n:]
		switch typ {
		case pgwire.CliQuery:
			sql, _ := pgwire.ParseQuery(body)
			return asOpener(string(sql))
		case pgwire.CliParse:
			name, sql, _, err := pgwire.ParseParse(body)
			if err != nil {
				return ""
			}
			texts[serverName(name)] = string(sql)
		case pgwire.CliBind:
			_, name, err := pgwire.ParseBindNames(body)
			if err != nil || bound != "" {
				return ""
			}
			bound = texts[serverName(name)]
		case pgwire.CliExecute:
			return asOpener(bound)
		case pgwire.CliDescribe, pgwire.CliFlush:
		default:
			return ""
		}
	}
	return ""
}

// asOpener is the text, if it is a BEGIN and nothing else.
func asOpener(sql string) string {
	text := []byte(sql)
	if len(sql) > openerMax || hasHighByte(text) || bytes.ContainsAny(text, `\'"`) {
		return ""
	}
	all := pgwire.Classify(nil, text, true)
	if len(all) != 1 || all[0].Kind != pgwire.KindBegin {
		return ""
	}
	return sql
}

// openChained opens the block in which a unit begins that is about to be run again, on a backend
// that is not attached. It leaves the unnamed statement alone, and takes no snapshot.
func (s *session) openChained(b *backend, l *loss) error {
	out := pgwire.AppendSync(appendInner(s.out[:0], l.redo.chain))
	out = pgwire.AppendSync(appendInner(out, chainSQL))
	_, status, err := b.exchange(out, 2, b.note)
	if err != nil {
		return errBackendLost
	}
	if b.status = status; status != pgwire.TxInBlock {
		s.mu.Lock()
		s.endRedo(l, "given_up")
		s.mu.Unlock()
		return errBackendLost // another one tells the client
	}
	return nil
}

// noteOpener notes what opens the block in which the unit of a loss begins, and one like that which
// was open. The caller holds s.mu and is the owner.
func (s *session) noteOpener(r *redo) {
	if s.chain != nil {
		r.chain, r.block = s.chain.opens(), s.chain.opens()
		if r.chain == "" {
			r.messages = nil
		}
	} else if s.flow.believed() != pgwire.TxIdle {
		r.block = openerIn(r.messages)
	}
	if s.flow.chain.isMoved {
		r.block = ""
	}
	r.isChained = s.flow.chain.isLast
}

// opener are the statements that open a block like the one that was lost. A server forgets what
// BEGIN has set once the block has failed, but not what a chain has handed on [ran]: so only a
// block that the client had seen fail is left without a chain.
func (l *loss) opener() []string {
	r := &l.redo
	switch {
	case r.chain != "":
		return []string{r.chain, chainSQL}
	case r.block == "":
		return []string{"BEGIN"}
	case l.status == pgwire.TxFailed:
		return []string{r.block}
	}
	return []string{r.block, chainSQL}
}

// chainSQL is what hands on the characteristics of a block, also beyond its failure.
const chainSQL = "COMMIT AND CHAIN"

// chained takes a COMMIT AND CHAIN that turned out to be committed: the block behind it was opened,
// and is lost. If nothing was done in it yet, another one is as good.
func (r *redo) chained(p *pending) {
	if !p.batch.cls.has(clsChain) {
		return
	}
	p.next = pgwire.TxInBlock
	if !p.batch.endsWithCommit() {
		p.next = pgwire.TxFailed // an error is told for what was behind it
		return
	}
	if !p.batch.bindsBehind() {
		r.next = r.block
	} // else the client has a portal in it, which another block would lack
}

// bindsBehind tells that a portal is made behind the last statement.
func (b *batch) bindsBehind() bool {
	is := false
	for i := range b.ops {
		o := &b.ops[i]
		is = o.kind == opBind || is && !o.isStatement()
	}
	return is
}

// finished takes a batch of which nothing is due but its end, behind a COMMIT AND CHAIN that was
// answered.
func (r *redo) finished(p *pending) {
	if r.isChained && p.verdict == verdictFinish && p.next == pgwire.TxInBlock {
		r.next = r.block
	}
}

// endsWithCommit tells that no statement is left behind the one in doubt.
func (b *batch) endsWithCommit() bool {
	is := false
	for i := range b.ops {
		if o := &b.ops[i]; o.isStatement() && !o.internal {
			is = o.commits
		}
	}
	return is
}
