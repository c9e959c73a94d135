-- The session's temporary tables, in the order in which they were made: how each is made again,
-- and a description, which has to be the same of what was made. It runs with an empty
-- search_path, where names of relations and types may still be temporary ones: only those are
-- qualified.
WITH r AS MATERIALIZED (
 SELECT c.*, pg_catalog.pg_get_userbyid(c.relowner) AS owner, m.amname,
  'pg_temp.' || pg_catalog.quote_ident(c.relname) AS name,
  pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS other,
  (SELECT o.reloptions FROM pg_catalog.pg_class o WHERE o.oid = c.reltoastrelid) AS toastoptions
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 LEFT JOIN pg_catalog.pg_am m ON m.oid = c.relam
 WHERE c.relnamespace = pg_catalog.pg_my_temp_schema() AND c.relkind = 'r'),
con AS MATERIALIZED (
 SELECT c.*, pg_catalog.pg_get_constraintdef(c.oid) AS def,
  pg_catalog.obj_description(c.oid, 'pg_constraint') AS comment
 FROM r JOIN pg_catalog.pg_constraint c ON c.conrelid = r.oid),
col AS MATERIALIZED (
 SELECT a.*, pg_catalog.format_type(a.atttypid, a.atttypmod) AS typ,
  pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS expr,
  pg_catalog.col_description(a.attrelid, a.attnum) AS comment,
  CASE WHEN a.attcollation <> y.typcollation THEN (
   SELECT pg_catalog.format(' COLLATE %I.%I', n.nspname, l.collname)
   FROM pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace
   WHERE l.oid = a.attcollation) END AS coll,
  EXISTS (SELECT FROM con WHERE con.contype = 'n' AND con.conrelid = a.attrelid
   AND con.conkey[1] = a.attnum) AS isnamed -- since 18 NOT NULL is a constraint
 FROM r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
 LEFT JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
 LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum),
idx AS MATERIALIZED (
 SELECT i.*, c.relname, c.relam, c.reloptions, con.conname, con.def AS condef,
  pg_catalog.obj_description(i.indexrelid, 'pg_class') AS comment,
  -- Up to 14 the text has the number of the temporary schema.
  p.pre || r.name || pg_catalog.substr(f.def, 1 + pg_catalog.length(p.pre) + CASE
   WHEN pg_catalog.starts_with(f.def, p.pre || r.name || ' ') THEN pg_catalog.length(r.name)
   WHEN pg_catalog.starts_with(f.def, p.pre || r.other || ' ')
    THEN pg_catalog.length(r.other) END) AS def
 FROM r JOIN pg_catalog.pg_index i ON i.indrelid = r.oid
 JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
 LEFT JOIN con ON con.conindid = i.indexrelid
 CROSS JOIN LATERAL (SELECT pg_catalog.pg_get_indexdef(i.indexrelid) AS def) f
 CROSS JOIN LATERAL (
  SELECT CASE WHEN i.indisunique THEN 'CREATE UNIQUE INDEX ' ELSE 'CREATE INDEX ' END
   || pg_catalog.quote_ident(c.relname) || ' ON ' AS pre) p),
acl AS (
 SELECT r.oid, x.grantee, x.privilege_type, x.is_grantable, CASE WHEN x.grantee = 0 THEN 'PUBLIC'
  ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(x.grantee)) END AS who
 FROM r CROSS JOIN LATERAL
  pg_catalog.aclexplode(coalesce(r.relacl, pg_catalog.acldefault('r', r.relowner))) x)
SELECT r.relname, r.name, pg_catalog.quote_ident(r.owner),
 -- How it is made.
 'CREATE TEMPORARY TABLE ' || r.name || ' (' || coalesce((
  SELECT pg_catalog.string_agg(CASE WHEN attisdropped
    THEN pg_catalog.format('%I pg_catalog.int4', 'holdfast dropped ' || attnum)
   ELSE pg_catalog.format('%I %s', attname, typ) || coalesce(coll, '') ||
    CASE WHEN attgenerated = 's' THEN ' GENERATED ALWAYS AS (' || expr || ') STORED'
    WHEN attgenerated <> '' THEN ' GENERATED ALWAYS AS (' || expr || ') VIRTUAL'
    ELSE coalesce(' DEFAULT ' || expr, '') END ||
    CASE WHEN attnotnull AND NOT isnamed THEN ' NOT NULL' ELSE '' END END,
   ', ' ORDER BY attnum) FROM col WHERE attrelid = r.oid), '') || ')' ||
 coalesce(' USING ' || pg_catalog.quote_ident(r.amname), '') ||
 coalesce(' WITH (' || (
  SELECT pg_catalog.string_agg(p || pg_catalog.format('%I=%L', pg_catalog.split_part(o, '=', 1),
   pg_catalog.substr(o, pg_catalog.strpos(o, '=') + 1)), ', ' ORDER BY p, n)
  FROM (SELECT '' AS p, o, n FROM pg_catalog.unnest(r.reloptions) WITH ORDINALITY u(o, n)
   UNION ALL SELECT 'toast.', o, n
   FROM pg_catalog.unnest(r.toastoptions) WITH ORDINALITY u(o, n)) u) || ')', ''),
 -- What takes away the columns that stand for dropped ones.
 coalesce((SELECT 'ALTER TABLE ' || r.name || pg_catalog.string_agg(
   pg_catalog.format(' DROP COLUMN %I', 'holdfast dropped ' || attnum), ',' ORDER BY attnum)
  FROM col WHERE attrelid = r.oid AND attisdropped), ''),
 -- What comes behind the rows.
 coalesce((SELECT pg_catalog.string_agg(s, '; ' ORDER BY k, o) FROM (
  SELECT 0 AS k, con.oid AS o,
   pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', r.name, conname, def) AS s
   FROM con WHERE conrelid = r.oid AND contype IN ('c', 'n')
  UNION ALL SELECT 1, indexrelid, CASE WHEN conname IS NULL THEN def ELSE
   pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', r.name, conname, condef) END
   FROM idx WHERE indrelid = r.oid) u), ''),
 pg_catalog.concat_ws('; ', (
  SELECT pg_catalog.format('REVOKE ALL ON %s FROM PUBLIC, %I', r.name, r.owner) || coalesce(
   '; ' || pg_catalog.string_agg(pg_catalog.format('GRANT %s ON %s TO %s', privilege_type,
    r.name, who) || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END, '; '), '')
   FROM acl WHERE acl.oid = r.oid HAVING r.relacl IS NOT NULL),
  'COMMENT ON TABLE ' || r.name || ' IS ' ||
   pg_catalog.quote_literal(pg_catalog.obj_description(r.oid, 'pg_class')),
  (SELECT pg_catalog.string_agg(
   pg_catalog.format('COMMENT ON COLUMN %s.%I IS %L', r.name, attname, comment), '; ')
   FROM col WHERE attrelid = r.oid AND comment IS NOT NULL),
  (SELECT pg_catalog.string_agg(
   pg_catalog.format('COMMENT ON CONSTRAINT %I ON %s IS %L', conname, r.name, comment), '; ')
   FROM con WHERE conrelid = r.oid AND comment IS NOT NULL),
  (SELECT pg_catalog.string_agg(
   pg_catalog.format('COMMENT ON INDEX pg_temp.%I IS %L', relname, comment), '; ')
   FROM idx WHERE indrelid = r.oid AND comment IS NOT NULL),
  -- It was analyzed, or has an index, which counts too.
  CASE WHEN r.relpages > 0 THEN 'ANALYZE ' || r.name END),
 -- What COPY leaves out.
 coalesce((SELECT pg_catalog.string_agg(pg_catalog.quote_ident(attname), ', ' ORDER BY attnum)
  FROM col WHERE attrelid = r.oid AND attgenerated <> ''), ''),
 -- What makes room for a row without columns.
 coalesce((SELECT 'ALTER TABLE ' || r.name || pg_catalog.string_agg(
   pg_catalog.format(' DROP COLUMN IF EXISTS %I CASCADE', attname), ',')
  FROM col WHERE attrelid = r.oid AND NOT attisdropped), ''),
 pg_catalog.jsonb_build_object(
  'table', pg_catalog.to_jsonb(r) - ARRAY['oid', 'relnamespace', 'reltype', 'relfilenode',
   'reltoastrelid', 'relpages', 'reltuples', 'relallvisible', 'relallfrozen', 'relfrozenxid',
   'relminmxid', 'relacl', 'other', -- and those that stay true when it has none any more:
   'relhasindex', 'relhasrules', 'relhastriggers', 'relhassubclass'],
  'comment', pg_catalog.obj_description(r.oid, 'pg_class'),
  'columns', (
   SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(col) - ARRAY['attrelid', 'attcacheoff',
    'atthasmissing', 'attmissingval', 'attndims', 'attoptions'] ORDER BY attnum)
   FROM col WHERE attrelid = r.oid AND NOT attisdropped),
  'constraints', (
   SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(con) - ARRAY['oid', 'connamespace',
    'conrelid', 'conindid', 'conbin'] ORDER BY conname)
   FROM con WHERE conrelid = r.oid),
  'indexes', (
   SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(idx) - ARRAY['indexrelid', 'indrelid',
    'indexprs', 'indpred', 'indcheckxmin'] ORDER BY relname)
   FROM idx WHERE indrelid = r.oid),
  'privileges', (
   SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(acl) - 'oid' ORDER BY who, privilege_type)
   FROM acl WHERE acl.oid = r.oid))::pg_catalog.text,
 r.reltype::pg_catalog.text,
 (SELECT typarray::pg_catalog.text FROM pg_catalog.pg_type y WHERE y.oid = r.reltype)
FROM r ORDER BY r.oid
