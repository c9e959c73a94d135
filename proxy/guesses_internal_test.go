package proxy

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

func TestGuessesAreBounded(t *testing.T) {
	now := time.Now()
	g := newGuesses(60)
	g.now = func() time.Time { return now }
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	tries := func(a netip.Addr) (n int) {
		for ; n < 1000 && !g.isSpent(a); n++ {
			g.failed(a)
		}
		return n
	}
	if n := tries(a); n != 60 {
		t.Errorf("%d at once", n)
	}
	if !g.isSpent(netip.MustParseAddr("::ffff:10.0.0.1")) || g.isSpent(b) {
		t.Error("another address is meant")
	}
	now = now.Add(10 * time.Second)
	if n := tries(a); n != 10 {
		t.Errorf("%d after 10 s", n)
	}
	now = now.Add(time.Hour)
	if n := tries(a); n != 60 {
		t.Errorf("%d after an hour", n)
	}
	if tries(netip.MustParseAddr("2001:db8::1")) != 60 ||
		!g.isSpent(netip.MustParseAddr("2001:db8::2")) {
		t.Error("a network of IPv6 has more than its share")
	}
	if newGuesses(0).isSpent(a) {
		t.Error("0 is a bound")
	}
}

func TestGuessesKeepFewAddresses(t *testing.T) {
	g := newGuesses(1)
	for i := range uint32(3 * guessesMax) {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], i)
		g.failed(netip.AddrFrom4(b))
	}
	if n := len(g.young) + len(g.old); n > guessesMax {
		t.Errorf("%d addresses", n)
	}
}
