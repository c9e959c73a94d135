package oracletest_test

import "testing"

// FuzzAgainstParser: pgwire I11, I12, I16 and I17 on any text.
func FuzzAgainstParser(f *testing.F) {
	for _, sql := range corpus(f) {
		f.Add(sql)
	}
	for n := range uint64(50) {
		f.Add(newGenerator(n).text())
	}
	f.Fuzz(func(t *testing.T, sql string) {
		if len(sql) > 4096 {
			return
		}
		var c tally
		if err := c.check(sql); err != nil {
			t.Errorf("%q: %v", sql, err)
		}
	})
}
