package proxy

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"holdfast/pgwire"
)

// talker is a server that says the same thing for ever.
type talker struct {
	link
	next func() []byte
	left []byte
}

func (t *talker) Write(p []byte) (int, error) { return len(p), nil }

func (t *talker) Read(p []byte) (int, error) {
	if len(t.left) == 0 {
		t.left = t.next()
	}
	n := copy(p, t.left)
	t.left = t.left[n:]
	return n, nil
}

var _ net.Conn = (*talker)(nil)

// A server that tells of ever new parameters while a session is restored takes no memory for ever.
func TestExchangeBoundsParameters(t *testing.T) {
	told := 0
	conn := &talker{next: func() []byte {
		told++
		return pgwire.AppendParameterStatus(nil, fmt.Sprintf("p%d", told), "x")
	}}
	p := &Proxy{cfg: DefaultConfig(), metrics: newMetrics(nil)}
	p.cfg.ServerParametersBytesMax = 16 << 10
	b := &backend{proxy: p, conn: conn}
	_, _, err := b.exchange(pgwire.AppendQuery(nil, "SET x = 1"), 1, func(string, string) {
		if told > 16<<10/paramCost {
			t.Fatal("there is no bound")
		}
	})
	if !errors.Is(err, errTooManyParams) {
		t.Errorf("after %d parameters: %v", told, err)
	}
}
