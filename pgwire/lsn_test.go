package pgwire_test

import (
	"testing"

	"holdfast/pgwire"
)

func TestLSN(t *testing.T) {
	for _, c := range []struct {
		text string
		want pgwire.LSN
	}{
		{"16/B374D848", 0x16B374D848},
		{"0/0", 0},
		{"FFFFFFFF/FFFFFFFF", 1<<64 - 1},
		{"1/A", 1<<32 | 10},
	} {
		got, err := pgwire.ParseLSN(c.text)
		if err != nil || got != c.want || got.String() != c.text {
			t.Errorf("%s: %x prints %s, %v", c.text, uint64(got), got, err)
		}
	}
	if l, err := pgwire.ParseLSN("16/b374d848"); err != nil || l != 0x16B374D848 {
		t.Errorf("lower case: %v %v", l, err)
	}
	for _, bad := range []string{"", "/", "1", "1/", "/1", "x/1", "1/x", "1/1/1", "-1/1", "+1/1",
		"100000000/0", "0/100000000", "0x1/1", " 1/1"} {
		if l, err := pgwire.ParseLSN(bad); err == nil {
			t.Errorf("%q is read as %v", bad, l)
		}
	}
}
