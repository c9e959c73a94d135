package proxy

import (
	"slices"
	"strings"

	"holdfast/pgwire"
)

// What set_config sets is known without asking the server, where a SELECT does nothing but call it
// and its names and values are constants, or parameters that came with the Bind. What ends with the
// transaction needs no question at all (DESIGN.md I16).

// knowSetConfig reads what a SELECT of nothing but set_config sets, if that is in its text.
func (e *effect) knowSetConfig(sql []byte, conforming bool) {
	calls := pgwire.ParseSetConfig(sql, conforming)
	if calls == nil {
		return
	}
	e.know(calls, nil)
	if !e.isKnown || e.other {
		e.calls = calls
	}
}

// know takes what the calls set; quoted gives their parameters.
func (e *effect) know(calls pgwire.SetConfigCalls, quoted func(int) (string, bool)) {
	e.again, e.isKnown = calls.Again(quoted)
}

// bindSettings reads what a portal sets by the parameters that it is given.
func (s *session) bindSettings(p parsed, stmt, body []byte) parsed {
	i := slices.IndexFunc(p.effects, func(e effect) bool { return e.calls != nil })
	if i < 0 {
		return s.bindGiven(p, stmt, body)
	}
	p.effects = slices.Clone(p.effects)
	e := &p.effects[i] // the only one: it is all of a statement, and Parse takes one
	value := func(param int) (string, bool) {
		if !isTextOID(s.paramType(stmt, param)) {
			return "", false
		}
		v, format, ok := pgwire.ParseBindParam(body, param)
		if !ok || v == nil || format > 1 || len(v) > overlayBytesMax || s.isAmbiguous(v) {
			return "", false
		}
		return string(v), true // text is the same in both formats
	}
	e.know(e.calls, func(param int) (string, bool) {
		v, ok := value(param)
		return quoteLiteral(v), ok
	})
	names, known := slices.Clone(e.names), true
	for _, c := range e.calls {
		if c.NameParam == 0 {
			continue
		}
		name, ok := value(c.NameParam)
		names, known = append(names, strings.ToLower(name)), known && ok
	}
	if known {
		e.names, e.other = names, false
	}
	e.calls = nil
	return p
}

// givenMax bounds the parameters of a portal that are looked at for names of settings.
const givenMax = 64

// bindGiven takes the parameters of a portal that may be names of settings which it gives to a
// function.
func (s *session) bindGiven(p parsed, stmt, body []byte) parsed {
	i := slices.IndexFunc(p.effects, func(e effect) bool { return e.isGiven })
	if i < 0 {
		return p
	}
	var given []string
	for param := 1; param <= givenMax; param++ {
		v, format, ok := pgwire.ParseBindParam(body, param)
		if !ok {
			break
		}
		isText := format == 0 || isTextOID(s.paramType(stmt, param))
		if name := strings.ToLower(string(v)); isText && len(v) < 256 && pgwire.IsSettingName(name) {
			given = append(given, name)
		}
	}
	p.effects = slices.Clone(p.effects)
	for ; i < len(p.effects) && len(given) > 0; i++ {
		if e := &p.effects[i]; e.isGiven {
			e.names, e.other = append(slices.Clip(e.names), given...), false
		}
	}
	return p
}

// isTextOID tells of text, varchar, unknown, or none (pg_type.dat).
func isTextOID(oid uint32) bool { return oid == 0 || oid == 25 || oid == 1043 || oid == 705 }
