package proxy

import (
	"fmt"

	"holdfast/pgwire"
)

// opaque stands for a text that was too large to be read.
var opaque = parsed{cls: clsOpaque | clsMayWrite}

// inspect records a message of the client that is about to be sent, and decides how. body is
// whole unless the message is larger than inspect_bytes_max. The caller holds s.mu.
func (s *session) inspect(typ byte, body []byte, whole bool, at int) (forwarding, error) {
	switch typ {
	case pgwire.CliQuery:
		return s.inspectQuery(body, whole, at)
	case pgwire.CliParse:
		return forwardIt, s.inspectParse(body, whole, at)
	case pgwire.CliBind:
		return forwardIt, s.inspectBind(body, at)
	case pgwire.CliExecute:
		return s.inspectExecute(body, at)
	case pgwire.CliDescribe, pgwire.CliClose:
		kind, name, err := pgwire.ParseTarget(body)
		if err != nil {
			return forwardIt, err
		}
		o := op{kind: opDescribe, start: at}
		if typ == pgwire.CliClose {
			o.kind = opClose
			if kind == 'S' {
				o.name = string(name)
			}
		}
		s.push(o)
	case pgwire.CliSync:
		s.push(op{kind: opSync, start: at})
	case pgwire.CliFunctionCall:
		s.push(op{kind: opFunctionCall, cls: clsMayWrite, start: at})
	case pgwire.CliCopyDone, pgwire.CliCopyFail:
		s.flow.copyEnd()
		s.journaled = false
	case pgwire.CliCopyData:
		s.journaled = false
	case pgwire.CliFlush:
	case pgwire.CliTerminate:
		return forwardStop, nil
	default:
		return forwardIt, pgwire.NewError(pgwire.CodeProtocolViolation,
			fmt.Sprintf("invalid frontend message type %d", typ))
	}
	return forwardIt, nil
}

func (s *session) inspectQuery(body []byte, whole bool, at int) (forwarding, error) {
	p := opaque
	if whole {
		sql, err := pgwire.ParseQuery(body)
		if err != nil {
			return forwardIt, err
		}
		p = classify(&s.scratch, sql, s.conf)
		s.resolveExecute(&p, sql)
	}
	if p.cls.has(clsCommit) && s.wantsGuard() {
		s.guarded = p.cls
		return forwardGuard, nil
	}
	s.push(op{kind: opQuery, cls: p.cls, effects: p.effects, start: at})
	return forwardIt, nil
}

// resolveExecute lets the SQL command EXECUTE count as what was prepared.
func (s *session) resolveExecute(p *parsed, sql []byte) {
	for i := range s.scratch {
		st := &s.scratch[i]
		if st.Kind != pgwire.KindExecute {
			continue
		}
		if ps := s.track.statements[st.Name]; ps != nil && !ps.bySQL {
			p.cls |= ps.parsed.cls
			p.effects = append(p.effects, ps.parsed.effects...)
		}
	}
}

func (s *session) inspectParse(body []byte, whole bool, at int) error {
	o := op{kind: opParse, start: at}
	p := opaque
	if !whole {
		s.push(o)
		s.unnamed, s.unnamedQ = opaque, s.unnamedQ[:0]
		return nil
	}
	name, sql, oids, err := pgwire.ParseParse(body)
	if err != nil {
		return err
	}
	p = classify(&s.scratch, sql, s.conf)
	s.resolveExecute(&p, sql)
	if name == "" {
		s.unnamed = p
		s.unnamedQ = append(s.unnamedQ[:0], body...)
		s.push(o)
		return nil
	}
	o.name, o.stmt = name, &prepared{sql: string(sql), oids: oids, parsed: p}
	s.push(o)
	if old := s.track.statements[name]; old == nil || !old.live {
		s.track.prepare(name, o.stmt) // for a Bind in the same batch
	}
	return nil
}

func (s *session) inspectBind(body []byte, at int) error {
	portal, stmt, err := pgwire.ParseBindNames(body)
	if err != nil {
		return err
	}
	p := s.unnamed
	if len(stmt) > 0 {
		if ps := s.track.statements[string(stmt)]; ps != nil {
			p = ps.parsed
			if ps.bySQL {
				p.cls |= clsMayWrite
			}
		} else {
			p = opaque
		}
	}
	if len(portal) == 0 {
		s.portal = p
	} else {
		if s.portals == nil {
			s.portals = make(map[string]parsed)
		}
		if s.flow.isSafePoint() {
			clear(s.portals)
		}
		s.portals[string(portal)] = p
	}
	s.push(op{kind: opBind, start: at})
	return nil
}

func (s *session) inspectExecute(body []byte, at int) (forwarding, error) {
	portal, _, err := pgwire.ParseExecute(body)
	if err != nil {
		return forwardIt, err
	}
	p := s.portal
	if len(portal) > 0 {
		var ok bool
		if p, ok = s.portals[string(portal)]; !ok {
			p = opaque // a cursor, perhaps
		}
	}
	if p.cls.has(clsCommit) && s.wantsGuard() {
		return forwardGuard, nil
	}
	s.push(op{kind: opExecute, cls: p.cls, effects: p.effects, start: at})
	return forwardIt, nil
}

// wantsGuard tells whether a COMMIT that comes now has to wait for its xid.
func (s *session) wantsGuard() bool {
	if s.proxy.cfg.CommitGuard == GuardOff || s.inDoubt || s.flow.skipping {
		return false
	}
	return !s.flow.isSettled() || s.flow.status == pgwire.TxInBlock
}
