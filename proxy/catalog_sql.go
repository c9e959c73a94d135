package proxy

import (
	"strconv"
	"strings"

	"holdfast/pgwire"
)

// catalogSQL asks for all in the database that the names may mean: in any schema where none is
// named, since the search_path of the session, and of the functions in between, is not known.
// What is harmless whatever it is called with is left out of the answer. Columns: what, name,
// built-in, volatility, kind, language, extension, text.
//
// rel are the relations, with those that inherit from them; typ the types, with what they are made
// of and with the types of columns and of arguments (a constant that becomes a domain's value runs
// the domain's constraints); fn the functions called by name, by operators (also those that the
// planner may put in their place), in aggregates, by casts, and to read and write types. The first
// round asks for what no name shows: casts, and support functions of operator classes. These take
// a superuser; C ones among the latter are taken at their word, as PostgreSQL does.
func catalogSQL(w *catalogWant, isFirst bool) string {
	var b strings.Builder
	b.WriteString("WITH RECURSIVE wf(s, n) AS (")
	writeNames(&b, w.needs.Functions)
	b.WriteString("), wo(s, n) AS (")
	writeNames(&b, w.needs.Objects)
	b.WriteString("), wop(s, n) AS (")
	var ops []pgwire.Name
	if isFirst {
		for _, o := range pgwire.ImpliedOperators() {
			ops = append(ops, pgwire.Name{Name: o})
		}
	}
	for _, o := range w.needs.Operators {
		ops = append(ops, pgwire.Name{Name: o})
	}
	writeNames(&b, ops)
	b.WriteString("), wt(oid) AS (SELECT x.oid FROM (VALUES (0::oid)")
	for _, t := range w.types {
		b.WriteString(",(" + strconv.FormatUint(uint64(t), 10) + ")")
	}
	b.WriteString(") AS x(oid)), always(oid) AS (")
	if isFirst {
		b.WriteString(catalogAlways)
	} else {
		b.WriteString("SELECT 0::oid WHERE false")
	}
	b.WriteString("), ")
	b.WriteString(catalogClosure)
	b.WriteString(" LIMIT " + strconv.Itoa(catalogRowsMax+1))
	return b.String()
}

func writeNames(b *strings.Builder, names []pgwire.Name) {
	if len(names) == 0 {
		b.WriteString("SELECT ''::name, ''::name WHERE false")
		return
	}
	b.WriteString("VALUES ")
	for i, n := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString("(" + quoteLiteral(n.Schema) + "::name," + quoteLiteral(n.Name) + "::name)")
	}
}

// catalogAlways are the functions of casts and operator classes that users have made.
const catalogAlways = `SELECT castfunc FROM pg_cast WHERE castfunc >= 16384
 UNION SELECT p.oid FROM pg_amproc a JOIN pg_proc p ON p.oid = a.amproc
  JOIN pg_language l ON l.oid = p.prolang
  WHERE p.oid >= 16384 AND l.lanname NOT IN ('c', 'internal')`

// catalogClosure follows what is named, and answers with what has to be judged. It runs on 13 to
// 18. Bodies over 64 KiB are not read. Of what PostgreSQL itself brings only volatile functions
// and those that run queries have to be; none of its operators, casts, types and aggregates uses
// such a one (TestBuiltinsAreHarmless).
var catalogClosure = `rel(oid) AS (
 SELECT c.oid FROM wo JOIN pg_class c ON c.relname = wo.n
  JOIN pg_namespace ns ON ns.oid = c.relnamespace
  WHERE (wo.s = '' OR ns.nspname = wo.s) AND c.relkind NOT IN ('i', 'I', 't')
 UNION SELECT i.inhrelid FROM rel JOIN pg_inherits i ON i.inhparent = rel.oid),
fn0(oid) AS (
 SELECT p.oid FROM wf JOIN pg_proc p ON p.proname = wf.n
  JOIN pg_namespace ns ON ns.oid = p.pronamespace WHERE (wf.s = '' OR ns.nspname = wf.s)
   AND (p.oid >= 16384 OR p.provolatile = 'v' OR p.proname = ANY (` + runsQueriesArray + `))
 UNION SELECT x.f FROM wop JOIN pg_operator o ON o.oprname = wop.n
  LEFT JOIN pg_operator n ON n.oid = o.oprnegate LEFT JOIN pg_operator c ON c.oid = o.oprcom
  CROSS JOIN LATERAL (VALUES (o.oprcode::oid), (n.oprcode::oid), (c.oprcode::oid)) x(f)
  WHERE o.oid >= 16384
 UNION SELECT oid FROM always),
fn1(oid) AS (
 SELECT oid FROM fn0
 UNION SELECT x.f FROM fn0 JOIN pg_aggregate a ON a.aggfnoid = fn0.oid
  LEFT JOIN pg_operator o ON o.oid = a.aggsortop
  CROSS JOIN LATERAL (VALUES (a.aggtransfn::oid), (a.aggfinalfn::oid), (a.aggcombinefn::oid),
   (a.aggserialfn::oid), (a.aggdeserialfn::oid), (a.aggmtransfn::oid), (a.aggminvtransfn::oid),
   (a.aggmfinalfn::oid), (o.oprcode::oid)) x(f) WHERE fn0.oid >= 16384),
typ(oid) AS (
 (SELECT t.oid FROM wo JOIN pg_type t ON t.typname = wo.n
   JOIN pg_namespace ns ON ns.oid = t.typnamespace
   WHERE t.oid >= 16384 AND (wo.s = '' OR ns.nspname = wo.s)
  UNION SELECT oid FROM wt
  UNION SELECT a.atttypid FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid
   WHERE a.attnum > 0 AND a.atttypid >= 16384
  UNION SELECT unnest(p.proargtypes::oid[] || p.prorettype || p.proallargtypes)
   FROM fn1 JOIN pg_proc p ON p.oid = fn1.oid WHERE p.oid >= 16384)
 UNION SELECT x.t FROM typ JOIN pg_type t ON t.oid = typ.oid CROSS JOIN LATERAL (
   SELECT t.typelem UNION ALL SELECT t.typbasetype
   UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
   UNION ALL SELECT a.atttypid FROM pg_attribute a
    WHERE a.attrelid = t.typrelid AND a.attnum > 0) x(t)
  WHERE t.oid >= 16384 AND x.t >= 16384),
fn(oid) AS (
 SELECT oid FROM fn1
 UNION SELECT x.f FROM typ JOIN pg_type t ON t.oid = typ.oid CROSS JOIN LATERAL (VALUES
  (t.typinput::oid), (t.typoutput::oid), (t.typreceive::oid), (t.typsend::oid),
  (t.typmodin::oid), (t.typmodout::oid)) x(f) WHERE t.oid >= 16384 AND x.f >= 16384
 UNION SELECT x.f FROM typ JOIN pg_range r ON r.rngtypid = typ.oid CROSS JOIN LATERAL (VALUES
  (r.rngcanonical::oid), (r.rngsubdiff::oid)) x(f) WHERE x.f >= 16384)
SELECT 'function', p.proname::text, p.oid < 16384, p.provolatile::text, p.prokind::text,
  l.lanname::text, e.extname::text, CASE WHEN p.oid < 16384 OR length(p.prosrc) > 65536 THEN ''
   WHEN p.prosrc <> '' THEN p.prosrc
   WHEN p.provolatile <> 'v' AND p.prokind IN ('f', 'w') THEN pg_get_functiondef(p.oid)
   ELSE '' END
 FROM fn JOIN pg_proc p ON p.oid = fn.oid LEFT JOIN pg_language l ON l.oid = p.prolang
  LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
   AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
  LEFT JOIN pg_extension e ON e.oid = d.refobjid
UNION ALL SELECT 'text', '', false, '', '', '', '', pg_get_expr(p.proargdefaults, 0)
 FROM fn JOIN pg_proc p ON p.oid = fn.oid WHERE p.proargdefaults IS NOT NULL AND p.oid >= 16384
UNION ALL SELECT 'text', '', false, '', '', '', '', pg_get_expr(c.conbin, 0)
 FROM typ JOIN pg_constraint c ON c.contypid = typ.oid WHERE c.conbin IS NOT NULL
UNION ALL SELECT 'text', '', false, '', '', '', '', pg_get_expr(p.polqual, p.polrelid)
 FROM rel JOIN pg_policy p ON p.polrelid = rel.oid WHERE p.polqual IS NOT NULL
UNION ALL SELECT 'type', '', false, '', '', '', '', ''
 FROM typ JOIN pg_type t ON t.oid = typ.oid WHERE t.oid >= 16384 AND t.typisdefined
  AND t.typtype NOT IN ('b', 'c', 'd', 'e', 'r')
UNION ALL SELECT CASE WHEN c.relkind = 'v' THEN 'view' ELSE 'relation' END, '', false, '', '', '',
  '', CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END
 FROM rel JOIN pg_class c ON c.oid = rel.oid
 WHERE c.relkind NOT IN ('r', 'p', 'm', 'S', 'c') OR c.relam >= 16384`
