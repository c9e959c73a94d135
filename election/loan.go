package election

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"go.uber.org/zap"
)

// This file is what sidecars borrow by: one request and its answer at a time, in binary, on a
// connection that lives as long as the loan is renewed. Thousands ask twice a second each; HTTP
// and JSON were more than half of what a request cost (docs/failover.md, TestFleet).
//
// A message is its length in two bytes and as many bytes, integers in network order. What newer
// releases append is skipped. The lessee is the name in the certificate: nobody speaks for another.

// What a borrower asks for.
const (
	loanBorrow = 'b'
	loanReturn = 'r'
)

const (
	// loanRequestLen is version, what is asked for, incarnation, sequence number and epoch; if
	// there is something to be said of advisory locks, a byte with that follows, and behind it what
	// one that is blind sees (fleet.go).
	loanRequestLen = 1 + 1 + 8 + 8 + 8
	// loanAnswerLen is version, whether it is granted, sequence number, endorsed epoch and what
	// is left of the lease and until its doubt; the reason of a refusal follows, or of a grant
	// under which nothing may begin yet.
	loanAnswerLen = 1 + 1 + 8 + 8 + 8 + 8
	// loanMax bounds a message, either way.
	loanMax = 512
	// loanIdle is how long a connection may ask for nothing: no profile renews less often.
	loanIdle = 2 * time.Minute
)

var errLoanMessage = errors.New("loan: malformed message")

// appendLoanRequest encodes a request; r's lessee does not travel.
func appendLoanRequest(b []byte, what byte, r Renewal) []byte {
	flags := byte(0)
	if r.Retakes {
		flags |= loanRetakes
	}
	if r.Holds {
		flags |= loanHolds
	}
	var more []byte
	switch {
	case r.BlindFor > 0:
		more = appendLoanSight([]byte{flags | loanBlind}, r)
	case flags != 0:
		more = []byte{flags}
	}
	b = binary.BigEndian.AppendUint16(b, uint16(loanRequestLen+len(more)))
	b = append(b, byte(Version), what)
	b = binary.BigEndian.AppendUint64(b, r.Incarnation)
	b = binary.BigEndian.AppendUint64(b, r.Seq)
	b = binary.BigEndian.AppendUint64(b, r.Epoch)
	return append(b, more...)
}

// What a request says of advisory locks, and that what its lessee sees follows.
const (
	loanRetakes = 1 << iota
	loanHolds
	loanBlind
)

// loanShut is the reason that comes with a loan whose barrier is shut.
const loanShut = "shut"

// parseLoanRequest decodes what follows a request's length.
func parseLoanRequest(p []byte) (what byte, r Renewal, err error) {
	if len(p) < loanRequestLen || p[1] != loanBorrow && p[1] != loanReturn {
		return 0, r, errLoanMessage
	}
	if err := checkLoanVersion(p[0]); err != nil {
		return 0, r, err
	}
	r = Renewal{V: int(p[0]), Incarnation: binary.BigEndian.Uint64(p[2:]),
		Seq: binary.BigEndian.Uint64(p[10:]), Epoch: binary.BigEndian.Uint64(p[18:])}
	if len(p) > loanRequestLen {
		flags := p[loanRequestLen]
		r.Retakes, r.Holds = flags&loanRetakes != 0, flags&loanHolds != 0
		if flags&loanBlind != 0 {
			parseLoanSight(p[loanRequestLen+1:], &r)
		}
	}
	return p[1], r, nil
}

// appendLoanAnswer encodes an answer.
func appendLoanAnswer(b []byte, a RenewalAnswer) []byte {
	reason := a.Reason[:min(len(a.Reason), loanMax-loanAnswerLen)]
	if a.Shut {
		reason = loanShut
	}
	granted := byte(0)
	if a.Granted {
		granted = 1
	}
	b = binary.BigEndian.AppendUint16(b, uint16(loanAnswerLen+len(reason)))
	b = append(b, byte(Version), granted)
	b = binary.BigEndian.AppendUint64(b, a.Seq)
	b = binary.BigEndian.AppendUint64(b, a.Endorsed)
	b = binary.BigEndian.AppendUint64(b, uint64(a.Left))
	b = binary.BigEndian.AppendUint64(b, uint64(a.DoubtLeft))
	return append(b, reason...)
}

// parseLoanAnswer decodes what follows an answer's length.
func parseLoanAnswer(p []byte) (RenewalAnswer, error) {
	if len(p) < loanAnswerLen || p[1] > 1 {
		return RenewalAnswer{}, errLoanMessage
	}
	if err := checkLoanVersion(p[0]); err != nil {
		return RenewalAnswer{}, err
	}
	a := RenewalAnswer{V: int(p[0]), Granted: p[1] == 1, Seq: binary.BigEndian.Uint64(p[2:]),
		Endorsed:  binary.BigEndian.Uint64(p[10:]),
		Left:      int64(binary.BigEndian.Uint64(p[18:])),
		DoubtLeft: int64(binary.BigEndian.Uint64(p[26:])), Reason: string(p[34:])}
	if a.Granted && a.Reason == loanShut {
		a.Shut, a.Reason = true, ""
	}
	return a, nil
}

func checkLoanVersion(v byte) error {
	if v == 0 || int(v) > Version {
		return fmt.Errorf("loan: version %d is newer than %d: upgrade this node", v, Version)
	}
	return nil
}

// readLoan reads a message into buf, which holds loanMax bytes, and returns what follows its
// length.
func readLoan(c io.Reader, buf []byte) ([]byte, error) {
	if _, err := io.ReadFull(c, buf[:2]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(buf))
	if n > loanMax {
		return nil, errLoanMessage
	}
	_, err := io.ReadFull(c, buf[:n])
	return buf[:n], err
}

// runLoans serves borrowers until the port is closed.
func (n *Node) runLoans() {
	defer n.work.Done()
	for {
		c, err := n.port.loans.Accept()
		if err != nil {
			return
		}
		n.work.Add(1)
		go n.runLoan(c)
	}
}

// runLoan owns a borrower's connection. Who sends nonsense, or nothing, loses it, and the lease
// with it when that has run out.
func (n *Node) runLoan(c net.Conn) {
	defer n.work.Done()
	defer c.Close()
	stop := context.AfterFunc(n.ctx, func() { _ = c.Close() })
	defer stop()
	t, ok := c.(*tls.Conn)
	if !ok {
		return
	}
	st := t.ConnectionState()
	if err := n.serveLoan(c, peerName(&st)); !errors.Is(err, io.EOF) && n.ctx.Err() == nil {
		n.log.Debug("loan ended", zap.String("borrower", peerName(&st)), zap.Error(err))
	}
}

func (n *Node) serveLoan(c net.Conn, borrower string) error {
	borrows := n.metrics.requests.WithLabelValues("borrow")
	returns := n.metrics.requests.WithLabelValues("return")
	buf := make([]byte, 2+loanMax)
	for {
		_ = c.SetDeadline(time.Now().Add(loanIdle))
		p, err := readLoan(c, buf)
		if err != nil {
			return err
		}
		what, r, err := parseLoanRequest(p)
		if err != nil {
			return err
		}
		r.Lessee = borrower
		var a RenewalAnswer
		if what == loanBorrow {
			borrows.Inc()
			a = n.lessee.lendSoon(n.ctx, r)
		} else {
			returns.Inc()
			a = n.lessee.takeBack(r)
		}
		if _, err := c.Write(appendLoanAnswer(buf[:0], a)); err != nil {
			return err
		}
	}
}
