-- Ways by which one thing leads to another: how, from and to, each an oid behind f or r (function,
-- relation), and the relations' names. How: w where it is written to, a always. Runs on 13 to 18.
SELECT way, x, c.relname, y, d.relname FROM (
 SELECT 'w' AS way, 'r' AS xc, tgrelid AS xo, 'f' AS yc, tgfoid AS yo FROM pg_trigger
 UNION SELECT 'a', 'r', inhparent, 'r', inhrelid FROM pg_inherits
 UNION SELECT 'w', 'r', confrelid, 'r', conrelid FROM pg_constraint WHERE contype = 'f'
  AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
 -- views and rules
 UNION SELECT 'a', 'r', w.ev_class, CASE d.refclassid WHEN 'pg_proc'::regclass THEN 'f' ELSE 'r' END,
  d.refobjid FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid
  WHERE d.classid = 'pg_rewrite'::regclass
   AND d.refclassid IN ('pg_proc'::regclass, 'pg_class'::regclass)
 UNION SELECT 'w', 'r', a.adrelid, 'f', d.refobjid
  FROM pg_depend d JOIN pg_attrdef a ON a.oid = d.objid
  WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_proc'::regclass
 UNION SELECT 'w', 'r', c.conrelid, 'f', d.refobjid
  FROM pg_depend d JOIN pg_constraint c ON c.oid = d.objid
  WHERE d.classid = 'pg_constraint'::regclass AND d.refclassid = 'pg_proc'::regclass
 UNION SELECT 'w', 'r', t.attrelid, 'f', d.refobjid -- a domain's constraint
  FROM pg_depend d JOIN pg_constraint c ON c.oid = d.objid AND c.contypid <> 0
  JOIN pg_attribute t ON t.atttypid = c.contypid AND t.attnum > 0
  WHERE d.classid = 'pg_constraint'::regclass AND d.refclassid = 'pg_proc'::regclass
 UNION SELECT 'a', 'r', p.polrelid, 'f', d.refobjid
  FROM pg_depend d JOIN pg_policy p ON p.oid = d.objid
  WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_proc'::regclass
 -- bodies that are no text, aggregates, defaults of arguments
 UNION SELECT 'a', 'f', d.objid, CASE d.refclassid WHEN 'pg_proc'::regclass THEN 'f' ELSE 'r' END,
  d.refobjid FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass
   AND d.refclassid IN ('pg_proc'::regclass, 'pg_class'::regclass)) w
CROSS JOIN LATERAL (SELECT concat(xc, xo) AS x, concat(yc, yo) AS y) n
LEFT JOIN pg_class c ON xc = 'r' AND c.oid = xo LEFT JOIN pg_class d ON yc = 'r' AND d.oid = yo
WHERE xo >= 16384 AND yo >= 16384 AND x <> y
