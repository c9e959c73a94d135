package proxy

import (
	"slices"
	"testing"

	"holdfast/pgwire"
)

// FuzzFramer: the messages of a stream are the same wherever its pieces end, and a stream that is
// cut inside a message is told from a whole one.
func FuzzFramer(f *testing.F) {
	stream := pgwire.AppendReadyForQuery(nil, pgwire.TxIdle)
	stream = pgwire.AppendError(stream, fatal(pgwire.NewError("57P01", "over")))
	stream = pgwire.AppendMessage(stream, pgwire.SrvCopyData, make([]byte, 300))
	f.Add(stream, uint8(1))
	f.Add(stream[:7], uint8(3))
	f.Add([]byte{'d', 0, 0, 0, 0, 'Z'}, uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		var whole, pieces framer
		var want, got []byte
		whole.pass(b, func(typ byte) { want = append(want, typ) })
		for rest := b; len(rest) > 0; {
			n := min(len(rest), int(step)+1)
			pieces.pass(rest[:n], func(typ byte) { got = append(got, typ) })
			rest = rest[n:]
		}
		if !slices.Equal(want, got) || whole.isWhole() != pieces.isWhole() ||
			whole.fatal != pieces.fatal {
			t.Errorf("in one piece %q %v %v, in others %q %v %v", want, whole.isWhole(), whole.fatal,
				got, pieces.isWhole(), pieces.fatal)
		}
	})
}
