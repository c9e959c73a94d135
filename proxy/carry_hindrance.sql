-- What of the session's temporary schema cannot be made again exactly: one row, or none.
-- It runs with an empty search_path, where names of relations and types may still be temporary
-- ones: only those are qualified.
WITH RECURSIVE t AS MATERIALIZED (
 SELECT c.* FROM pg_catalog.pg_class c WHERE c.relnamespace = pg_catalog.pg_my_temp_schema()),
r AS (SELECT * FROM t WHERE relkind = 'r'),
col AS (
 SELECT a.*, r.relname FROM r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid
 WHERE a.attnum > 0 AND NOT a.attisdropped),
con AS (
 SELECT c.*, r.relname FROM r JOIN pg_catalog.pg_constraint c ON c.conrelid = r.oid
 WHERE c.contype IN ('c', 'p', 'u', 'n')),
class(rel, typ, constr, def, trig, proc, oper, ext, nsp) AS (
 SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_type'::pg_catalog.regclass,
  'pg_catalog.pg_constraint'::pg_catalog.regclass, 'pg_catalog.pg_attrdef'::pg_catalog.regclass,
  'pg_catalog.pg_trigger'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass,
  'pg_catalog.pg_operator'::pg_catalog.regclass,
  'pg_catalog.pg_extension'::pg_catalog.regclass,
  'pg_catalog.pg_namespace'::pg_catalog.regclass),
-- What is made again with a table.
own(classid, objid) AS (
 SELECT class.rel::pg_catalog.oid, t.oid FROM t, class WHERE relkind IN ('r', 'i')
 UNION ALL SELECT class.typ, reltype FROM r, class
 UNION ALL SELECT class.typ, y.typarray FROM class, r
  JOIN pg_catalog.pg_type y ON y.oid = r.reltype
 UNION ALL SELECT class.constr, con.oid FROM con, class
 UNION ALL SELECT class.def, d.oid FROM class, r
  JOIN pg_catalog.pg_attrdef d ON d.adrelid = r.oid),
-- The types of columns, and those that these are made of.
ty(oid, relname) AS (
 SELECT atttypid, relname FROM col
 UNION SELECT n.oid, ty.relname FROM ty JOIN pg_catalog.pg_type y ON y.oid = ty.oid
  CROSS JOIN LATERAL (
   SELECT y.typbasetype WHERE y.typbasetype <> 0
   UNION ALL SELECT y.typelem WHERE y.typelem <> 0
   UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped
   UNION ALL SELECT g.rngsubtype FROM pg_catalog.pg_range g WHERE g.rngtypid = y.oid
    OR (pg_catalog.to_jsonb(g) ->> 'rngmultitypid')::pg_catalog.oid = y.oid) n(oid)),
-- What runs when rows are written.
checks(what, oid, def) AS (
 SELECT 'table ' || relname, oid, pg_catalog.pg_get_constraintdef(oid) FROM con
  WHERE contype = 'c'
 UNION ALL SELECT 'type ' || pg_catalog.format_type(ty.oid, NULL), c.oid,
  pg_catalog.pg_get_constraintdef(c.oid)
  FROM ty JOIN pg_catalog.pg_constraint c ON c.contypid = ty.oid)
SELECT pg_catalog.pg_describe_object(class.rel, t.oid, 0) FROM t, class
 WHERE relkind NOT IN ('r', 'i')
UNION ALL
SELECT pg_catalog.pg_describe_object(d.classid, d.objid, 0) FROM class, pg_catalog.pg_depend d
 JOIN (SELECT classid, objid FROM own
  UNION ALL SELECT class.nsp, pg_catalog.pg_my_temp_schema() FROM class) o
  ON d.refclassid = o.classid AND d.refobjid = o.objid
 WHERE (d.classid, d.objid) NOT IN (SELECT classid, objid FROM own)
  AND NOT (d.classid = class.rel AND d.objid IN (SELECT reltoastrelid FROM r))
  AND NOT (d.classid = class.trig AND EXISTS (
   SELECT FROM pg_catalog.pg_trigger g JOIN con ON con.oid = g.tgconstraint
   WHERE g.oid = d.objid AND g.tgisinternal)) -- of a deferrable constraint
UNION ALL
SELECT 'extension with table ' || r.relname FROM class, pg_catalog.pg_depend d
 JOIN r ON r.oid = d.objid WHERE d.classid = class.rel AND d.refclassid = class.ext
UNION ALL
SELECT w.what || ' of table ' || r.relname FROM class, r CROSS JOIN LATERAL (VALUES
 ('row security', relrowsecurity OR relforcerowsecurity),
 ('type', reloftype <> 0),
 ('tablespace', reltablespace <> 0),
 ('replica identity', relreplident <> 'd'),
 ('inheritance', relispartition OR EXISTS (
  SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = r.oid OR i.inhparent = r.oid)),
 ('privileges', EXISTS (
  SELECT FROM pg_catalog.aclexplode(relacl) x WHERE x.grantor <> relowner)),
 ('security label', EXISTS (
  SELECT FROM pg_catalog.pg_seclabel l WHERE l.objoid = r.oid AND l.classoid = class.rel))
 ) w(what, found) WHERE w.found
UNION ALL
SELECT w.what || ' of column ' || attname || ' of table ' || col.relname
 FROM col JOIN pg_catalog.pg_type y ON y.oid = col.atttypid CROSS JOIN LATERAL (VALUES
 ('identity', attidentity <> ''),
 ('privileges', attacl IS NOT NULL),
 -- 17.12 keeps a number of its own among the options.
 ('options', EXISTS (SELECT FROM pg_catalog.unnest(attoptions) o WHERE o NOT LIKE 'pg\_attver=%')
  OR attfdwoptions IS NOT NULL OR attstorage <> y.typstorage
  OR coalesce(pg_catalog.to_jsonb(col) ->> 'attcompression', '') <> ''
  OR coalesce(attstattarget, -1) <> -1)) w(what, found) WHERE w.found
UNION ALL
SELECT w.what || ' of index ' || t.relname
 FROM t JOIN pg_catalog.pg_index i ON i.indexrelid = t.oid CROSS JOIN LATERAL (VALUES
 ('invalid state', NOT (i.indisvalid AND i.indisready AND i.indislive)),
 ('clustering', i.indisclustered),
 ('tablespace', t.reltablespace <> 0),
 ('options', EXISTS (SELECT FROM pg_catalog.pg_attribute a
   WHERE a.attrelid = t.oid AND coalesce(a.attstattarget, -1) <> -1)
  OR t.reloptions IS NOT NULL AND EXISTS (SELECT FROM con WHERE con.conindid = t.oid))
 ) w(what, found) WHERE w.found
UNION ALL
SELECT 'type ' || pg_catalog.format_type(ty.oid, NULL) || ' in table ' || ty.relname
 FROM ty JOIN pg_catalog.pg_type y ON y.oid = ty.oid
 -- Without a binary form; regclass, regtype and regnamespace, which may mean a temporary one.
 WHERE y.typsend = 0 OR y.typreceive = 0 OR y.oid IN (2205, 2206, 4089)
  OR y.typnamespace = pg_catalog.pg_my_temp_schema()
UNION ALL
SELECT 'check of ' || what || ' by a function that is not immutable' FROM checks WHERE EXISTS (
  SELECT FROM class, pg_catalog.pg_depend d
  LEFT JOIN pg_catalog.pg_operator o ON o.oid = d.refobjid
  JOIN pg_catalog.pg_proc p ON p.oid = CASE d.refclassid
   WHEN (SELECT proc FROM class) THEN d.refobjid
   WHEN (SELECT oper FROM class) THEN o.oprcode::pg_catalog.oid END
  WHERE d.classid = class.constr AND d.objid = checks.oid AND p.provolatile <> 'i')
 OR EXISTS ( -- nothing is recorded of PostgreSQL's own
  SELECT FROM pg_catalog.pg_proc p WHERE p.provolatile = 'v'
   AND p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
   AND pg_catalog.strpos(def, p.proname || '(') > 0)
UNION ALL
SELECT 'event trigger ' || evtname || ', which CREATE TABLE runs'
 FROM pg_catalog.pg_event_trigger WHERE evtenabled <> 'D' AND evtevent <> 'login'
LIMIT 1
