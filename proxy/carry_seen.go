package proxy

import (
	"fmt"
	"strconv"
)

// tempSeen is what was seen of a session's temporary tables when the server was asked last, for
// people: packing asks for all of it anew.
type tempSeen struct {
	bytes     int64  // on disk
	hindrance string // something that is no plain table, if there is
}

// parseTemp reads a row of factsSQL; nil is no table.
func parseTemp(hindrance, bytes string) *tempSeen {
	n, err := strconv.ParseInt(bytes, 10, 64)
	if err != nil {
		return nil
	}
	return &tempSeen{bytes: n, hindrance: hindrance}
}

// describe tells whether a planned change would carry the tables, as far as was seen, and why a
// failure would not.
func (t *tempSeen) describe(bytesMax int) (planned bool, why string) {
	switch {
	case t == nil:
		return true, "temporary tables"
	case t.hindrance != "":
		return false, reasonTemp.String() + " (" + t.hindrance + ")"
	}
	return true, fmt.Sprintf("temporary tables, %d kB when they were made or altered last; a planned"+
		" change carries up to %d kB", (t.bytes+1023)>>10, bytesMax>>10)
}

// changedTables takes a utility statement, which may have dropped or altered temporary tables.
func (t *tracker) changedTables() {
	if t.suspect&reasonTemp != 0 {
		t.dirty = true
	}
}
