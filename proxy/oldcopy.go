package proxy

import (
	"fmt"
	"strconv"
	"strings"

	"holdfast/pgwire"
)

// Inside a COPY FROM STDIN, PostgreSQL 13 answers what is no data with an error, drops it, and goes
// on (copy.c, CopyGetData); from 14 on the session ends. What is dropped has no answer of its own,
// and answers would be taken for those of other messages. So the session ends with both.

// isOldServer tells of a server before 14 by its server_version.
func isOldServer(version string) bool {
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	return err == nil && n < 14
}

// isCopyMessage tells of what may come inside a COPY FROM STDIN.
func isCopyMessage(typ byte) bool {
	switch typ {
	case pgwire.CliCopyData, pgwire.CliCopyDone, pgwire.CliCopyFail, pgwire.CliFlush,
		pgwire.CliSync, pgwire.CliTerminate:
		return true
	}
	return false
}

// copyLookMax bounds the outstanding messages that are looked through; behind more of them the
// next one waits.
const copyLookMax = 256

// mayTakeData tells that the server may take nothing but data when it gets to the next message,
// since a COPY is outstanding whose end was not sent.
func (f *flow) mayTakeData() bool {
	if len(f.ops)-f.head > copyLookMax {
		return true
	}
	may := false
	for i := f.head; i < len(f.ops); i++ {
		o := &f.ops[i]
		switch {
		case o.kind == opCopyEnd:
			may = false
		case o.cls.has(clsCopy):
			may = !o.ended
		}
	}
	return may
}

// inCopy judges a message of the client for an older server: forwardCopy has to wait for what the
// server says. The caller holds s.mu.
func (s *session) inCopy(typ byte) (forwarding, error) {
	if isCopyMessage(typ) {
		return forwardIt, nil
	}
	switch f := &s.flow; {
	case f.copying || f.copyIn:
		return forwardIt, pgwire.NewError(pgwire.CodeProtocolViolation,
			fmt.Sprintf("unexpected message type 0x%02X during COPY from stdin", typ))
	case f.mayTakeData():
		return forwardCopy, nil
	}
	return forwardIt, nil
}

// awaitsCopy tells that it is not known yet whether the server takes data. The caller holds s.mu.
func (s *session) awaitsCopy() bool {
	f := &s.flow
	return !f.copying && !f.copyIn && f.mayTakeData()
}
