package pgwire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// Reader reads whole messages where decoding is wanted: login, control queries. The relay has
// its own buffers. Not safe for concurrent use.
type Reader struct {
	r    *bufio.Reader
	max  int
	body []byte
	src  source
}

// source tells which buffer r has, so that it can be wiped.
type source struct {
	io.Reader
	buf []byte
}

// Read implements io.Reader. The first one is of a header, which bufio reads into its buffer.
func (s *source) Read(p []byte) (int, error) {
	if s.buf == nil {
		s.buf = p
	}
	return s.Reader.Read(p)
}

// readerBytes is the size of a Reader's buffer.
const readerBytes = 4 << 10

// NewReader reads from r; a body over bodyMax bytes is an error.
func NewReader(r io.Reader, bodyMax int) *Reader {
	rd := &Reader{max: bodyMax, src: source{Reader: r}}
	rd.r = bufio.NewReaderSize(&rd.src, readerBytes)
	return rd
}

// Wipe overwrites what was read and taken: the last message may hold a password.
func (r *Reader) Wipe() {
	clear(r.body[:cap(r.body)])
	rest := r.Buffered() // its capacity goes to the end of the buffer
	at := len(r.src.buf)
	if len(rest) > 0 {
		at -= cap(rest)
	}
	clear(r.src.buf[:max(0, at)])
	clear(r.src.buf[min(len(r.src.buf), max(0, at)+len(rest)):])
}

// ReadMessage blocks for the next message. The body is valid until the next call. After an error
// the stream cannot be used any more. The error is io.EOF only between two messages (I4).
func (r *Reader) ReadMessage() (typ byte, body []byte, err error) {
	var head [HeaderLen]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("read message: %w", err)
	}
	typ, n, err := Header(head[:])
	if err != nil {
		return typ, nil, err
	}
	if n > r.max {
		return typ, nil, protocolError("message of %d bytes is over the limit of %d", n, r.max)
	}
	if err := r.fill(n); err != nil {
		return typ, nil, err
	}
	return typ, r.body, nil
}

// fill reads n bytes into body. The buffer grows with what arrives, not with what is claimed
// (I3).
func (r *Reader) fill(n int) error {
	const step = 64 << 10
	r.body = r.body[:0]
	for len(r.body) < n {
		part := min(step, n-len(r.body))
		at := len(r.body)
		r.body = append(r.body, make([]byte, part)...)
		if _, err := io.ReadFull(r.r, r.body[at:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // a message was begun (I4)
			}
			return fmt.Errorf("read message: %w", err)
		}
	}
	return nil
}

// Buffered returns what was read ahead and not taken; it aliases the buffer and is valid until
// the next read.
func (r *Reader) Buffered() []byte {
	b, _ := r.r.Peek(r.r.Buffered())
	return b
}

// TLSHandshakeByte begins every connection that starts with TLS: the type of a handshake record.
const TLSHandshakeByte = 0x16

// Peek waits for the next byte and leaves it there.
func (r *Reader) Peek() (byte, error) {
	b, err := r.r.Peek(1)
	if err != nil {
		return 0, fmt.Errorf("read message: %w", err)
	}
	return b[0], nil
}
