package proxy

import (
	"strconv"

	"holdfast/pgwire"
)

// A rule may answer a write with the rows of a SELECT. They come in the simple protocol only:
// Describe does not announce them, and in the extended protocol the server drops them (pquery.c,
// PORTAL_MULTI_QUERY). So a Query that may meet such a rule is sent as it is, and its commit, if it
// is lost, is not looked up.

// answeringMax bounds the relations that are learnt; in a database with more of them all writes are
// sent as they are.
const answeringMax = 1000

// answeringSQL finds relations whose rules for writes have a SELECT, and those whose own rules, as
// those of views do, lead to them. In the text of a rule's action a statement of its own, unlike
// one within another, is at the beginning of the list or behind another one.
var answeringSQL = `WITH RECURSIVE a(class) AS (
 SELECT ev_class FROM pg_rewrite WHERE ev_type IN ('2', '3', '4') AND ev_class >= 16384
  AND ev_action::text ~ '(^\(|\} )\{QUERY :commandType 1 '
 UNION SELECT r.ev_class FROM a JOIN pg_rewrite r ON r.ev_class <> a.class AND r.ev_class >= 16384
  AND r.ev_action::text LIKE '%:relid ' || a.class || ' %')
 SELECT DISTINCT c.relname FROM a JOIN pg_class c ON c.oid = a.class
 LIMIT ` + strconv.Itoa(answeringMax+1)

// mayAnswer tells that a Query which writes may meet a rule that answers it with rows.
func (s *session) mayAnswer(sql []byte) bool {
	known := s.setters.known()
	if known == nil || known.answering == 0 {
		return false
	}
	if known.mayAnswer(sql) {
		return true
	}
	for i := range s.scratch {
		st := &s.scratch[i]
		if st.Kind != pgwire.KindExecute {
			continue
		}
		if ps := s.track.statements[st.Name]; ps == nil || ps.sql == "" ||
			known.mayAnswer([]byte(ps.sql)) {
			return true
		}
	}
	return false
}

// mayAnswer tells that a text names one of the relations, wherever it does.
func (s *setters) mayAnswer(sql []byte) bool {
	return s.answering > answeringMax || s.names.in(lowered(sql))&nameAnswers != 0
}
