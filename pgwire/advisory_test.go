package pgwire_test

import (
	"strconv"
	"testing"

	"holdfast/pgwire"
)

// Calls that are the whole of their statement are read, with their arguments; everything else is
// no plain call.
func TestParseAdvisory(t *testing.T) {
	for _, tc := range []struct {
		sql  string
		want string
	}{
		{"SELECT pg_advisory_lock(42)", "1/0/42/1"},
		{"select PG_CATALOG . pg_try_advisory_lock ( -1 ) as got", "2/4294967295/4294967295/1"},
		{"SELECT pg_advisory_unlock_shared('7'::bigint) x", "3/0/7/1 shared"},
		{"SELECT * FROM pg_advisory_lock_shared(1, -2) AS l /* c */", "1/1/4294967294/2 shared"},
		{"SELECT pg_advisory_lock(9223372036854775807)", "1/2147483647/4294967295/1"},
		{"SELECT pg_advisory_lock($1)", "1 of $1"},
		{"SELECT pg_try_advisory_lock($2::int4, 5)", "2 of $2"},
		{"SELECT pg_advisory_lock(hashtext('job'))", "1 of ?"},
		{"SELECT pg_advisory_lock(-(3))", "1 of ?"},
		{"SELECT pg_advisory_lock(1::numeric)", "1 of ?"},
		{"SELECT pg_advisory_lock(5000000000, 1)", "1 of ?"},
		{"SELECT pg_advisory_unlock_all()", "4 of ?"},
		{"SELECT pg_advisory_lock(1), pg_advisory_lock(2)", ""},
		{"SELECT pg_advisory_lock(id) FROM t", ""},
		{"SELECT pg_try_advisory_lock(1) ISNULL", ""},
		{"SELECT pg_try_advisory_lock(1)::int", ""},
		{"SELECT NOT pg_try_advisory_lock(1)", ""},
		{"SELECT pg_try_advisory_lock(1) FROM generate_series(1, 3)", ""},
		{"SELECT pg_advisory_lock(1) LIMIT 0", ""},
		{"SELECT pg_advisory_lock((SELECT 1))", ""},
		{"SELECT pg_advisory_lock(pg_advisory_unlock(1)::int)", ""},
		{"SELECT pg_advisory_xact_lock(1)", ""},
		{"SELECT pg_advisory_lock()", ""},
		{"SELECT pg_advisory_lock(1", ""},
		{"SELECT pg_advisory_lock(1) AS", ""},
		{"SELECT mine.pg_advisory_lock(1)", ""},
		{"WITH a AS (SELECT 1) SELECT pg_advisory_lock(1)", ""},
		{"SELECT * FROM pg_advisory_lock(1) WITH ORDINALITY", ""},
	} {
		if got := advisoryText(pgwire.ParseAdvisory([]byte(tc.sql), true)); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.sql, got, tc.want)
		}
	}
}

func itoa(i int64) string { return strconv.FormatInt(i, 10) }

// The integers among the parameters of a Bind, as text and in binary.
func TestParseBindInteger(t *testing.T) {
	text := "p\x00s\x00" + "\x00\x00" + "\x00\x02" + "\x00\x00\x00\x03-12" + "\xff\xff\xff\xff"
	each := "\x00\x00" + "\x00\x02\x00\x00\x00\x01" + "\x00\x02" + "\x00\x00\x00\x017" +
		"\x00\x00\x00\x04\xff\xff\xff\xfe"
	binary := "\x00\x00" + "\x00\x01\x00\x01" + "\x00\x01" +
		"\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x02"
	for _, tc := range []struct {
		body  string
		param int
		want  int64
		ok    bool
	}{
		{text, 1, -12, true},
		{text, 2, 0, false},
		{text, 3, 0, false},
		{text, 0, 0, false},
		{text[:12], 1, 0, false},
		{each, 1, 7, true},
		{each, 2, -2, true},
		{binary, 1, 1<<32 + 2, true},
		{"\x00\x00\xff\xff", 1, 0, false},
	} {
		got, ok := pgwire.ParseBindInteger([]byte(tc.body), tc.param)
		if got != tc.want || ok != tc.ok {
			t.Errorf("%q $%d: %d %v", tc.body, tc.param, got, ok)
		}
	}
}

func advisoryText(c *pgwire.AdvisoryCall) string {
	if c == nil {
		return ""
	}
	s := itoa(int64(c.Op))
	k, ok := c.Key()
	switch {
	case c.Args[0].Param > 0:
		return s + " of $" + itoa(int64(c.Args[0].Param))
	case !ok:
		return s + " of ?"
	}
	s += "/" + itoa(int64(k.Class)) + "/" + itoa(int64(k.Obj)) + "/" + itoa(int64(k.Sub))
	if k.Shared {
		s += " shared"
	}
	return s
}
