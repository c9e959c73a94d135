package proxy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"

	"holdfast/pgwire"
)

// rowSum stands for the rows of a COPY: how many there are, and a digest of their binary form,
// which has all bits of each value.
type rowSum struct {
	tag string
	sum [sha256.Size]byte
}

// copyOut runs a COPY TO STDOUT on an idle backend that is not attached, and gives its data to
// take, whose error leaves the connection in the middle of it.
func (b *backend) copyOut(sql string, take func([]byte) error) (rowSum, error) {
	var sum rowSum
	if _, err := b.conn.Write(pgwire.AppendQuery(nil, sql)); err != nil {
		return sum, fmt.Errorf("write to backend: %w", err)
	}
	var h hash.Hash = sha256.New()
	err := b.answers(func(typ byte, body []byte) error {
		switch typ {
		case pgwire.SrvCopyData:
			_, _ = h.Write(body)
			return take(body)
		case pgwire.SrvCommandComplete:
			tag, err := pgwire.ParseCommandTag(body)
			sum.tag = string(tag)
			return err
		}
		return nil
	})
	h.Sum(sum.sum[:0])
	return sum, err
}

// questionBytesMax bounds the answer to a question about tables.
const questionBytesMax = 8 << 20

// question runs statements on an idle backend that is not attached and returns their rows as text;
// NULL is empty. An answer that is too large leaves the connection in the middle of it.
func (b *backend) question(sql string) ([][]string, error) {
	if _, err := b.conn.Write(pgwire.AppendQuery(nil, sql)); err != nil {
		return nil, fmt.Errorf("write to backend: %w", err)
	}
	var rows [][]string
	size := 0
	err := b.answers(func(typ byte, body []byte) error {
		switch typ {
		case pgwire.SrvDataRow:
			cols, err := pgwire.ParseDataRow(body)
			if err != nil {
				return err
			}
			if size += len(body) + 16*(len(cols)+2); size > questionBytesMax {
				return errLongAnswer
			}
			row := make([]string, len(cols))
			for i, c := range cols {
				row[i] = string(c)
			}
			rows = append(rows, row)
		case pgwire.SrvCopyInResponse, pgwire.SrvCopyBothResponse:
			return errNonsense(typ, &flow{})
		}
		return nil
	})
	return rows, err
}

var errLongAnswer = errors.New("the answer is too large")

// copyChunk is how much data a message of COPY has.
const copyChunk = 32 << 10

// errNoCopy is a COPY FROM STDIN whose server asks for no data.
var errNoCopy = errors.New("server takes no data")

// copyIn runs a COPY FROM STDIN on an idle backend that is not attached. A server that refuses
// rows takes the rest of them nevertheless.
func (b *backend) copyIn(sql string, data []byte) error {
	if _, err := b.conn.Write(pgwire.AppendQuery(nil, sql)); err != nil {
		return fmt.Errorf("write to backend: %w", err)
	}
	took := false
	err := b.answers(func(typ byte, _ []byte) error {
		if typ != pgwire.SrvCopyInResponse {
			return nil
		}
		took = true
		var out []byte
		for len(data) > 0 {
			n := min(len(data), copyChunk)
			out = pgwire.AppendMessage(out[:0], pgwire.CliCopyData, data[:n])
			if _, err := b.conn.Write(out); err != nil {
				return fmt.Errorf("write to backend: %w", err)
			}
			data = data[n:]
		}
		_, err := b.conn.Write(pgwire.AppendMessage(nil, pgwire.CliCopyDone, nil))
		return err
	})
	if err == nil && !took {
		err = errNoCopy
	}
	return err
}

// answers reads up to ReadyForQuery. It returns the server's error once the connection is ready
// again, a FATAL one at once, and what each returns at once.
func (b *backend) answers(each func(typ byte, body []byte) error) error {
	var failed *pgwire.Error
	for {
		typ, body, err := b.reader.ReadMessage()
		if err != nil {
			return fmt.Errorf("read from backend: %w", err)
		}
		switch typ {
		case pgwire.SrvParameterStatus:
			if name, value, err := pgwire.ParseParameterStatus(body); err == nil {
				b.note(name, value)
			}
		case pgwire.SrvError:
			if failed, err = pgwire.ParseError(body); err != nil {
				return err
			}
			if failed.Severity == "FATAL" || failed.Severity == "PANIC" {
				return failed
			}
		case pgwire.SrvReadyForQuery:
			if failed != nil {
				return failed
			}
			return nil
		default:
			if err := each(typ, body); err != nil {
				return err
			}
		}
	}
}
