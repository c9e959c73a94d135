package proxy

import (
	"bytes"
	"fmt"

	"holdfast/pgwire"
)

// opaque stands for a text that was too large to be read, or that cannot be read for sure.
var opaque = parsed{cls: clsOpaque | clsMayWrite}

// classify reads a text of the client. One whose meaning depends on what is not known here is
// taken for what it may be at worst.
func (s *session) classify(sql []byte) parsed {
	if s.isAmbiguous(sql) {
		s.scratch = s.scratch[:0]
		return opaque
	}
	p := classify(&s.scratch, sql, s.conf)
	if p.cls.has(clsSelfCommit) && needsDatabase(sql) {
		s.proxy.leaveDatabases()
	}
	if bytes.IndexByte(sql, '\\') < 0 || s.flow.setting == 0 {
		return p
	}
	// A SET standard_conforming_strings may be under way.
	other := classify(&s.scratch, sql, !s.conf)
	p = classify(&s.scratch, sql, s.conf)
	if other.cls != p.cls || other.stmts != p.stmts || len(other.effects) != len(p.effects) {
		return opaque
	}
	return p
}

// isAmbiguous tells that a backslash in a text may be half of a character.
func (s *session) isAmbiguous(text []byte) bool {
	return hasHighByte(text) &&
		(s.flow.setting > 0 || trailsBackslash(s.params.value("client_encoding")))
}

func hasHighByte(sql []byte) bool {
	for _, c := range sql {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

// trailsBackslash tells of a client encoding in which a byte of a longer character may look like
// a backslash (charset in the manual: not allowed as a server's encoding for that reason).
func trailsBackslash(encoding string) bool {
	switch encoding {
	case "SJIS", "SHIFT_JIS_2004", "BIG5", "GBK", "GB18030", "UHC", "JOHAB":
		return true
	}
	return false
}

// inspect records a message of the client that is about to be sent, and decides how. body is
// whole unless the message is larger than inspect_bytes_max. The caller holds s.mu.
func (s *session) inspect(typ byte, body []byte, whole bool, at int) (forwarding, error) {
	if s.flow.stale && isExtended(typ) && !s.flow.skipping {
		return forwardPrepare, nil
	}
	switch typ {
	case pgwire.CliQuery:
		return s.inspectQuery(body, whole, at)
	case pgwire.CliParse:
		return forwardIt, s.inspectParse(body, whole, at)
	case pgwire.CliBind:
		return s.inspectBind(body, at)
	case pgwire.CliExecute:
		return s.inspectExecute(body, at)
	case pgwire.CliDescribe, pgwire.CliClose:
		kind, name, err := pgwire.ParseTarget(body)
		if err != nil {
			return forwardIt, err
		}
		if typ == pgwire.CliDescribe && kind == 'S' && s.isAway(name) {
			return forwardPrepare, nil
		}
		o := op{kind: opDescribe, start: at}
		if typ == pgwire.CliClose {
			o.kind = opClose
			switch kind {
			case 'S':
				if o.name = serverName(name); o.name == "" {
					o.unnamed = true
					s.replaceUnnamed(at)
				}
			case 'P':
				delete(s.portals, serverName(name))
			}
		} else {
			o.ofEnd = kind == 'P' && len(name) == 0 && s.portal.cls.has(clsCommit)
		}
		s.push(o)
	case pgwire.CliSync:
		if s.wantsSyncGuard() {
			s.guarded = parsed{cls: s.flow.unsent}
			return forwardGuard, nil
		}
		s.push(op{kind: opSync, start: at})
	case pgwire.CliFunctionCall:
		o := op{kind: opFunctionCall, cls: clsMayWrite, start: at}
		if isAdvisoryFunction(body) {
			o.cls |= clsAdvisory
		}
		s.push(o)
	case pgwire.CliCopyDone, pgwire.CliCopyFail:
		if s.flow.copyEnd(at) {
			s.pushed++
		}
	case pgwire.CliCopyData, pgwire.CliFlush:
	case pgwire.CliTerminate:
		return forwardStop, nil
	default:
		return forwardIt, errClientMessage(typ)
	}
	return forwardIt, nil
}

// isClientMessage tells of the types that a client may send once it has logged in.
func isClientMessage(typ byte) bool {
	switch typ {
	case pgwire.CliQuery, pgwire.CliParse, pgwire.CliBind, pgwire.CliExecute, pgwire.CliDescribe,
		pgwire.CliClose, pgwire.CliSync, pgwire.CliFlush, pgwire.CliFunctionCall,
		pgwire.CliCopyData, pgwire.CliCopyDone, pgwire.CliCopyFail, pgwire.CliTerminate:
		return true
	}
	return false
}

func errClientMessage(typ byte) error {
	return pgwire.NewError(pgwire.CodeProtocolViolation,
		fmt.Sprintf("invalid frontend message type %d", typ))
}

func (s *session) inspectQuery(body []byte, whole bool, at int) (forwarding, error) {
	p := opaque
	if whole {
		sql, err := pgwire.ParseQuery(body)
		if err != nil {
			return forwardIt, err
		}
		p = s.classify(sql)
		s.noteSetters(&p, sql)
		s.resolveExecute(&p)
		s.noteBlindness(&p)
		if p.cls.has(clsDML) && (pgwire.HasParameter(sql, s.conf) || s.mayAnswer(sql)) {
			p.cls &^= clsDML // as a Query it fails with another error, or has other rows
		}
	}
	s.replaceUnnamed(at)
	s.unnamedQ = nil // the server drops the unnamed statement too
	if p.cls.has(clsCommit) && s.flow.head == len(s.flow.ops) && s.knowsXID() {
		s.pushCommit(opQuery, p.cls, at)
		return forwardIt, nil
	}
	if p.cls.has(clsCommit) && s.wantsGuard() || s.wantsQueryGuard(p.cls) ||
		s.wantsStringGuard(p.cls) || s.wantsPreparedGuard(p.cls) {
		s.guarded = p
		return forwardGuard, nil
	}
	s.push(op{kind: opQuery, cls: p.cls, effects: p.effects, start: at})
	return forwardIt, nil
}

// resolveExecute lets the SQL command EXECUTE count as what was prepared.
func (s *session) resolveExecute(p *parsed) {
	for i := range s.scratch {
		st := &s.scratch[i]
		if st.Kind != pgwire.KindExecute || p.cls.has(clsOpaque) {
			continue
		}
		ps := s.statementNamed(st.Name)
		if len(p.effects)+len(ps.effects) > effectsMax {
			*p = opaque
			return
		}
		p.cls |= ps.cls
		for _, e := range ps.effects {
			e.lock, e.calls = nil, nil // its arguments are not read here
			p.effects = append(p.effects, e)
		}
	}
}

// renamingMax bounds the statements under way that are looked through for what a name means: who
// has more of them would keep the loop from others, with each Bind.
const renamingMax = 1000

// statementNamed tells what a named statement does, as the server will find it when it gets
// there: while something is under way that may change what the name means, anything.
func (s *session) statementNamed(name string) parsed {
	p, known := opaque, false
	if ps := s.track.statements[name]; ps != nil {
		p, known = s.parsedOf(ps), true
		if ps.bySQL {
			// It was not read in depth. What it sets is known to be nothing if its text names
			// neither set_config nor a function that sets settings.
			e := effect{kind: pgwire.KindExecute, cls: clsState}
			called := s.setters.calledIn(ps.sql, ps.conf, &e)
			e.isKnown = ps.sql != "" && !ps.parsed.cls.has(clsState) && !called
			p.cls |= clsMayWrite | clsState
			if mentionsAdvisory(ps.sql) {
				e.cls |= clsAdvisory
			}
			p.cls |= e.cls
			p.effects = []effect{e}
		}
	}
	left := s.flow.renaming // none, nearly always; else they are near the head of a long pipeline
	if left > renamingMax {
		return opaque
	}
	for i := s.flow.head; i < len(s.flow.ops) && left > 0; i++ {
		o := &s.flow.ops[i]
		if o.renames {
			left--
		}
		switch {
		case !o.mayMean(name):
		case o.kind == opParse && o.stmt != nil && !known:
			p, known = s.parsedOf(o.stmt), true // the usual case: prepared and used in one go
		default:
			return opaque
		}
	}
	return p
}

func (s *session) inspectParse(body []byte, whole bool, at int) error {
	o := op{kind: opParse, start: at}
	if !whole {
		name, _, ok := bytes.Cut(body, []byte{0})
		if !ok {
			return pgwire.NewError(pgwire.CodeProtocolViolation, "name of a statement is too long")
		}
		if len(name) > 0 {
			o.name, o.stmt = serverName(name), &prepared{parsed: opaque, lost: true}
		} else {
			s.replaceUnnamed(at)
			s.unnamed = opaque
		}
		s.push(o)
		return nil
	}
	name, sql, oids, err := pgwire.ParseParse(body)
	if err != nil {
		return err
	}
	name = name[:min(len(name), serverNameBytes)]
	p := s.readParse(name, sql, oids)
	if name == "" {
		s.replaceUnnamed(at)
		s.unnamed = p
		s.unnamedQ = append(s.unnamedQ, body...)
		s.push(o)
		return nil
	}
	o.name, o.stmt = name, &prepared{sql: string(sql), oids: oids, parsed: p, conf: s.conf}
	if hasHighByte(sql) {
		o.stmt.encoding = s.params.value("client_encoding")
	}
	s.push(o)
	return nil
}

// readParse tells what a statement does that is prepared under that name.
func (s *session) readParse(name string, sql []byte, oids []uint32) parsed {
	p := s.classify(sql)
	s.askSetters(p.cls, sql)
	if p.cls.has(clsMulti) {
		p.effects = nil // the server takes one statement only
	} else if name == "" {
		s.noteSetters(&p, sql) // those of others with each Bind
	}
	s.resolveExecute(&p)
	if hasUserType(oids) {
		p.cls |= clsMayWrite // the input of a domain's value may call a function
	}
	return p
}

// hasUserType tells of a parameter type that is not one of PostgreSQL's own (FirstNormalObjectId).
func hasUserType(oids []uint32) bool {
	for _, oid := range oids {
		if oid >= 16384 {
			return true
		}
	}
	return false
}

// serverName is the name that the server knows a portal or a statement by: it keeps 63 bytes
// (portalmem.c, MAX_PORTALNAME_LEN), so that two longer names may mean the same one.
func serverName[T string | []byte](name T) string {
	return string(name[:min(len(name), serverNameBytes)])
}

const serverNameBytes = 63

func (s *session) inspectBind(body []byte, at int) (forwarding, error) {
	portal, stmt, err := pgwire.ParseBindNames(body)
	if err != nil {
		return forwardIt, err
	}
	if s.isAway(stmt) {
		return forwardPrepare, nil
	}
	stmt = stmt[:min(len(stmt), serverNameBytes)]
	if s.flow.lostParse {
		s.flow.lostParse = false
		s.unnamed, s.unnamedQ = opaque, nil
	}
	p := s.unnamed
	if len(stmt) > 0 {
		p = s.statementNamed(string(stmt))
	}
	p = s.bindSettings(s.bindLocks(p, stmt, body), stmt, body)
	s.noteBlindness(&p)
	switch {
	case len(portal) == 0:
		s.portal = p
	default:
		full := len(s.portals) >= s.proxy.cfg.PortalsMax
		if full {
			s.proxy.metrics.limit(limitPortals)
		}
		if s.portals == nil || s.flow.isSafePoint() || full {
			s.portals = make(map[string]parsed)
		}
		s.portals[serverName(portal)] = p
	}
	s.push(op{kind: opBind, start: at})
	return forwardIt, nil
}

func (s *session) inspectExecute(body []byte, at int) (forwarding, error) {
	portal, _, err := pgwire.ParseExecute(body)
	if err != nil {
		return forwardIt, err
	}
	p := s.portal
	if len(portal) > 0 {
		var ok bool
		if p, ok = s.portals[serverName(portal)]; !ok {
			p = opaque // a cursor, perhaps
		}
	}
	if p.cls.has(clsCommit) && s.knowsXID() {
		s.pushCommit(opExecute, p.cls, at)
		return forwardIt, nil
	}
	if p.cls.has(clsCommit) && s.wantsGuard() || s.wantsPreparedGuard(p.cls) {
		s.guarded = p
		return forwardGuard, nil
	}
	s.push(op{kind: opExecute, cls: p.cls, effects: p.effects, start: at})
	return forwardIt, nil
}

// unguarded are statements that commit by themselves, or cannot be read, or during which the server
// takes no question: nothing can be asked in between.
const unguarded = clsSelfCommit | clsEnds | clsOpaque | clsCommit | clsRollback | clsBegin |
	clsChain | clsMulti | clsOpens | clsCopy

// wantsSyncGuard tells whether a Sync that comes now commits a statement outside a block whose
// outcome can be made known.
func (s *session) wantsSyncGuard() bool {
	f := &s.flow
	return s.proxy.cfg.CommitGuard == GuardAll && f.unsent.has(clsDML) &&
		!f.unsent.has(unguarded) && f.expected() == pgwire.TxIdle && !f.skipping && !f.copyIn
}

// wantsQueryGuard tells the same of a Query.
func (s *session) wantsQueryGuard(c class) bool {
	f := &s.flow
	return s.proxy.cfg.CommitGuard == GuardAll && c.has(clsDML) && !c.has(unguarded) &&
		f.expected() == pgwire.TxIdle && !f.skipping && f.unsynced == 0
}

// wantsGuard tells whether a COMMIT that comes now has to wait for its xid.
func (s *session) wantsGuard() bool {
	if s.proxy.cfg.CommitGuard == GuardOff || s.flow.skipping {
		return false
	}
	return !s.flow.isSettled() || s.flow.expected() != pgwire.TxIdle
}
