package proxy

import (
	"bytes"

	"holdfast/pgwire"
)

// judgeable is how much of a message of that size, of which p is what has come, has to be there
// before it is judged. The severity and SQLSTATE of an ErrorResponse are in its first bytes; what
// ends the backend is taken as a whole, unless it is larger than a message of a login may be.
func judgeable(typ byte, p []byte, size int) int {
	switch {
	case size <= relayBufferBytes:
		return size
	case typ != pgwire.SrvError:
		return len(p)
	}
	if len(p) < relayBufferBytes || size > loginBodyMax {
		return min(size, relayBufferBytes)
	}
	e, err := pgwire.ParseError(wholeFields(p[pgwire.HeaderLen:relayBufferBytes]))
	if err != nil || !endsBackend(e) {
		return len(p)
	}
	return size
}

// endsBackend tells so of an error by its severity.
func endsBackend(e *pgwire.Error) bool { return e.Severity == "FATAL" || e.Severity == "PANIC" }

// wholeFields is an ErrorResponse of the fields that are whole in the first part of one.
func wholeFields(part []byte) []byte {
	return append(bytes.Clone(part[:bytes.LastIndexByte(part, 0)+1]), 0)
}

// isFatal takes an ErrorResponse that ends the backend. It is kept back: whether the server, or
// only this session, was told to end is not known yet.
func (b *backend) isFatal(s *session, body []byte, isPart bool) bool {
	if isPart {
		body = wholeFields(body)
	}
	e, err := pgwire.ParseError(body)
	if err != nil || !endsBackend(e) {
		return false
	}
	s.losing().fatal = e
	return true
}

// isFarewell tells that a notice only announces the end of the backend, which the client is to
// outlive: a crash of another process makes the postmaster send it.
func isFarewell(body []byte) bool {
	e, err := pgwire.ParseError(body)
	return err == nil && (e.Code == pgwire.CodeCrashShutdown || e.Code == pgwire.CodeAdminShutdown)
}
