package pgwire_test

import (
	"testing"

	"holdfast/pgwire"
)

var (
	shortSQL = []byte("SELECT abalance FROM pgbench_accounts WHERE aid = 5")
	longSQL  = []byte("/* a comment */ UPDATE pgbench_accounts SET abalance = abalance + $1, " +
		"note = 'it''s a longer text; with a semicolon', other = $$and another one$$ " +
		"WHERE aid = $2 AND (bid = 1 OR bid IN (SELECT bid FROM pgbench_branches)) RETURNING *")
)

// TestClassifyDoesNotAllocate: I14.
func TestClassifyDoesNotAllocate(t *testing.T) {
	dst := make([]pgwire.Statement, 0, 4)
	for _, sql := range []string{
		string(shortSQL), string(longSQL), "BEGIN", "COMMIT AND CHAIN", "SET ROLE x",
		"SELECT 1; SELECT now()", "CREATE TEMP TABLE x (a int)", "SELECT 'no end",
	} {
		text := []byte(sql)
		f := func() { dst = pgwire.Classify(dst[:0], text, true) }
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", sql, n)
		}
	}
}

func BenchmarkClassify(b *testing.B) {
	for name, sql := range map[string][]byte{
		"begin": []byte("BEGIN"), "short": shortSQL, "long": longSQL,
		"set": []byte("SET LOCAL work_mem = '1MB'"),
	} {
		b.Run(name, func(b *testing.B) {
			dst := make([]pgwire.Statement, 0, 4)
			b.SetBytes(int64(len(sql)))
			b.ReportAllocs()
			for b.Loop() {
				dst = pgwire.Classify(dst[:0], sql, true)
			}
		})
	}
}

// BenchmarkHeaderWalk steps over the messages of a result of 1000 rows.
func BenchmarkHeaderWalk(b *testing.B) {
	var stream []byte
	row := [][]byte{[]byte("12345"), []byte("a text of some length"), nil}
	for range 1000 {
		stream = pgwire.AppendDataRow(stream, row...)
	}
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		messages := 0
		for rest := stream; len(rest) >= pgwire.HeaderLen; messages++ {
			_, n, err := pgwire.Header(rest)
			if err != nil {
				b.Fatal(err)
			}
			rest = rest[pgwire.HeaderLen+n:]
		}
		if messages != 1000 {
			b.Fatal(messages)
		}
	}
}

func BenchmarkAppendDataRow(b *testing.B) {
	row := [][]byte{[]byte("12345"), []byte("a text of some length"), nil}
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		buf = pgwire.AppendDataRow(buf[:0], row...)
	}
}
