-- What leads to the functions :oids, with the text of functions, a row for each way of one step;
-- f and r before an oid are functions and relations. Runs on 13 to 18.
WITH RECURSIVE b AS MATERIALIZED (
 SELECT oid, lower(name) AS name, lower(body) AS low, body FROM (:bodies) x),
reach(class, oid, fromclass, fromoid) AS (
 SELECT 'f'::"char", oid, ''::"char", 0::oid FROM unnest(ARRAY[:oids]::oid[]) oid
 UNION
 SELECT n.class, n.oid, r.class, r.oid FROM (
  SELECT r.class, r.oid, CASE r.class WHEN 'f' THEN 'pg_proc'::regclass
    ELSE 'pg_class'::regclass END AS catalogue,
   lower(CASE r.class WHEN 'f' THEN (SELECT p.proname FROM pg_proc p WHERE p.oid = r.oid)
    ELSE (SELECT c.relname FROM pg_class c WHERE c.oid = r.oid) END) AS name
  FROM reach r) r CROSS JOIN LATERAL (
  -- a trigger, by what it calls
  SELECT 'r'::"char" AS class, t.tgrelid AS oid FROM pg_trigger t
  WHERE r.class = 'f' AND t.tgfoid = r.oid
  -- a partition or a child, by what is written to
  UNION ALL SELECT 'r', i.inhparent FROM pg_inherits i WHERE r.class = 'r' AND i.inhrelid = r.oid
  -- what a foreign key changes, by what it looks at
  UNION ALL SELECT 'r', c.confrelid FROM pg_constraint c WHERE r.class = 'r' AND c.contype = 'f'
   AND c.conrelid = r.oid AND (c.confdeltype IN ('c', 'n', 'd') OR c.confupdtype IN ('c', 'n', 'd'))
  -- views, rules, defaults, constraints, policies, bodies that are no text, aggregates
  UNION ALL SELECT 'r', w.ev_class FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid
   WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = r.catalogue AND d.refobjid = r.oid
  UNION ALL SELECT 'r', a.adrelid FROM pg_depend d JOIN pg_attrdef a ON a.oid = d.objid
   WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = r.catalogue AND d.refobjid = r.oid
   AND r.class = 'f'
  UNION ALL SELECT 'r', c.conrelid FROM pg_depend d JOIN pg_constraint c ON c.oid = d.objid
   WHERE d.classid = 'pg_constraint'::regclass AND d.refclassid = r.catalogue
   AND d.refobjid = r.oid AND r.class = 'f' AND c.conrelid <> 0
  UNION ALL SELECT 'r', p.polrelid FROM pg_depend d JOIN pg_policy p ON p.oid = d.objid
   WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = r.catalogue AND d.refobjid = r.oid
   AND r.class = 'f'
  UNION ALL SELECT 'f', d.objid FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass
   AND d.refclassid = r.catalogue AND d.refobjid = r.oid AND r.class = 'f'
  -- a body that names it
  UNION ALL SELECT 'f', b.oid FROM b WHERE strpos(b.low, r.name) > 0
   AND (r.name !~ '^[a-z0-9_]+$' OR b.low ~ ('\m' || r.name || '\M'))
  ) n WHERE n.oid >= 16384 AND (n.class, n.oid) <> (r.class, r.oid))
SELECT concat(r.class, r.oid), CASE r.class WHEN 'f' THEN p.proname ELSE c.relname END,
 coalesce(b.body, ''), CASE WHEN r.fromoid = 0 THEN '' ELSE concat(r.fromclass, r.fromoid) END
FROM reach r LEFT JOIN pg_proc p ON r.class = 'f' AND p.oid = r.oid
 LEFT JOIN pg_class c ON r.class = 'r' AND c.oid = r.oid LEFT JOIN b ON r.class = 'f' AND b.oid = r.oid
WHERE coalesce(p.proname, c.relname) IS NOT NULL
