package election

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestLoanMessages: the encoding is fixed, what a newer release appends is skipped, and a newer
// version is refused.
func TestLoanMessages(t *testing.T) {
	r := Renewal{V: 1, Incarnation: 0x1122334455667788, Seq: 9, Epoch: 0x0102030405060708}
	b := appendLoanRequest(nil, loanReturn, r)
	if got := hex.EncodeToString(b); got !=
		"001a01721122334455667788000000000000000901020304050607"+"08" {
		t.Errorf("request: %s", got)
	}
	for _, p := range [][]byte{b[2:], append(b[2:len(b):len(b)], 0, 2, 3)} {
		what, got, err := parseLoanRequest(p)
		if err != nil || what != loanReturn || got != r {
			t.Errorf("read %c %+v, %v", what, got, err)
		}
	}
	locks := r
	locks.Retakes, locks.Holds = true, true
	if _, got, err := parseLoanRequest(appendLoanRequest(nil, loanReturn, locks)[2:]); err != nil ||
		got != locks {
		t.Errorf("read %+v, %v", got, err)
	}
	shut := RenewalAnswer{V: 1, Granted: true, Shut: true}
	if got, err := parseLoanAnswer(appendLoanAnswer(nil, shut)[2:]); err != nil || got != shut {
		t.Errorf("read %+v, %v", got, err)
	}
	a := RenewalAnswer{V: 1, Granted: true, Seq: 9, Endorsed: 3, Left: -5, DoubtLeft: 1 << 40,
		Reason: "why"}
	b = appendLoanAnswer(nil, a)
	if got := hex.EncodeToString(b); got != "002501010000000000000009"+
		"0000000000000003fffffffffffffffb0000010000000000776879" {
		t.Errorf("answer: %s", got)
	}
	if got, err := parseLoanAnswer(b[2:]); err != nil || got != a {
		t.Errorf("read %+v, %v", got, err)
	}
	a.Reason = strings.Repeat("x", 2000)
	if n := len(appendLoanAnswer(nil, a)); n != 2+loanMax {
		t.Errorf("an answer of %d bytes", n)
	}
	request, answer := appendLoanRequest(nil, loanBorrow, r)[2:], appendLoanAnswer(nil, a)[2:]
	request[0], answer[0] = Version+1, Version+1
	_, _, errIn := parseLoanRequest(request)
	_, errOut := parseLoanAnswer(answer)
	for _, err := range []error{errIn, errOut} {
		if err == nil || !strings.Contains(err.Error(), "upgrade this node") {
			t.Errorf("a newer version: %v", err)
		}
	}
}

// FuzzLoan: whatever arrives is a message or an error, and a message means the same when it is
// written again.
func FuzzLoan(f *testing.F) {
	f.Add(appendLoanRequest(nil, loanBorrow, Renewal{Epoch: 1}))
	f.Add(appendLoanAnswer(nil, RenewalAnswer{Granted: true, Left: 1, Reason: "no"}))
	f.Add([]byte{0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		buf := make([]byte, 2+loanMax)
		p, err := readLoan(bytes.NewReader(b), buf)
		if err != nil {
			return
		}
		if what, r, err := parseLoanRequest(p); err == nil {
			w2, r2, err := parseLoanRequest(appendLoanRequest(nil, what, r)[2:])
			if err != nil || w2 != what || r2 != r {
				t.Errorf("%v became %v, %v", r, r2, err)
			}
		}
		if a, err := parseLoanAnswer(p); err == nil {
			a2, err := parseLoanAnswer(appendLoanAnswer(nil, a)[2:])
			if err != nil || a2 != a {
				t.Errorf("%v became %v, %v", a, a2, err)
			}
		}
	})
}

// loanServer answers the requests of one connection; limit is after how many it hangs up.
func loanServer(c net.Conn, limit int) {
	defer c.Close()
	buf := make([]byte, 2+loanMax)
	for range limit {
		p, err := readLoan(c, buf)
		if err != nil {
			return
		}
		_, r, _ := parseLoanRequest(p)
		a := RenewalAnswer{Granted: true, Seq: r.Seq, V: 1}
		if _, err := c.Write(appendLoanAnswer(nil, a)); err != nil {
			return
		}
	}
}

// TestLoanConnIsDialedAnew: a connection that has ended meanwhile is no refusal, an answer that
// comes too late is nobody's, and nothing is dialed after close.
func TestLoanConnIsDialedAnew(t *testing.T) {
	defer goleak.VerifyNone(t)
	dials, limit := 0, 2
	l := newLoanConn(func(context.Context) (net.Conn, error) {
		dials++
		a, b := net.Pipe()
		go loanServer(b, limit)
		return a, nil
	})
	for seq := uint64(1); seq <= 5; seq++ {
		a, err := l.ask(t.Context(), loanBorrow, Renewal{Seq: seq})
		if err != nil || a.Seq != seq {
			t.Fatalf("request %d: %+v, %v", seq, a, err)
		}
	}
	if dials != 3 {
		t.Errorf("%d connections for 5 requests, 2 each", dials)
	}
	limit = 0 // nobody answers any more: twice is enough
	if _, err := l.ask(t.Context(), loanBorrow, Renewal{Seq: 6}); err != nil {
		t.Errorf("what the connection had left: %v", err)
	}
	if _, err := l.ask(t.Context(), loanBorrow, Renewal{Seq: 7}); err == nil || dials != 4 {
		t.Errorf("without a server: %v after %d connections", err, dials)
	}
	silent := newLoanConn(func(context.Context) (net.Conn, error) {
		a, b := net.Pipe()
		t.Cleanup(func() { _ = b.Close() })
		return a, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := silent.ask(ctx, loanBorrow, Renewal{Seq: 1}); err == nil || silent.conn != nil {
		t.Errorf("a silent relay: %v, connection kept: %v", err, silent.conn != nil)
	}
	silent.close()
	l.close()
	limit = 2
	if _, err := l.ask(t.Context(), loanBorrow, Renewal{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}
