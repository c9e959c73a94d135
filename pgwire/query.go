package pgwire

import (
	"fmt"
	"net"
)

// queryBytesMax bounds the rows of a SimpleQuery.
const queryBytesMax = 16 << 20

// SimpleQuery runs one statement on an idle connection that the caller owns, and returns its
// rows as text; NULL is nil. A server's ErrorResponse is returned as *Error after the connection
// is ready again, unless it was FATAL. After any other error the connection cannot be used any
// more. Rows over 16 MiB are an error, and so is COPY.
func SimpleQuery(conn net.Conn, r *Reader, sql string) ([][][]byte, error) {
	if _, err := conn.Write(AppendQuery(nil, sql)); err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	var rows [][][]byte
	var failed *Error
	size := 0
	for {
		typ, b, err := r.ReadMessage()
		if err != nil {
			return nil, fmt.Errorf("query: %w", err)
		}
		switch typ {
		case SrvDataRow:
			cols, err := ParseDataRow(b)
			if err != nil {
				return nil, unusable(err)
			}
			// A row of no columns takes memory too.
			if size += len(b) + 24*(len(cols)+1); size > queryBytesMax {
				return nil, unusable(NewError(CodeProgramLimit, "result is too large"))
			}
			rows = append(rows, CloneRow(cols))
		case SrvError:
			if failed, err = ParseError(b); err != nil {
				return nil, unusable(err)
			}
			if failed.Severity == "FATAL" || failed.Severity == "PANIC" {
				return nil, failed
			}
		case SrvCopyInResponse, SrvCopyOutResponse, SrvCopyBothResponse:
			return nil, unusable(NewError(CodeFeatureNotSupported, "copy is not supported"))
		case SrvReadyForQuery:
			if failed != nil {
				return nil, failed
			}
			return rows, nil
		}
	}
}

// unusable is an error of this side, behind which answers may come that nobody reads: it is no
// *Error itself, as an answer of the server is.
func unusable(err error) error { return fmt.Errorf("query: %w", err) }

// CloneRow copies a row whose columns alias a message; NULL stays nil.
func CloneRow(cols [][]byte) [][]byte {
	out := make([][]byte, len(cols))
	for i, c := range cols {
		if c != nil {
			out[i] = append([]byte{}, c...)
		}
	}
	return out
}
