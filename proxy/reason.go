package proxy

// reason is why a new backend cannot stand in for the old one: state that only the old one has.
// The zero value is none.
type reason uint16

const (
	reasonTemp reason = 1 << iota
	reasonHold
	reasonAdvisory
	reasonPrepared
	reasonSettings
	reasonOpaque
	reasonLoad
)

// reasonTexts are for people, in the order of the bits.
var reasonTexts = []string{
	"temporary table",
	"cursor WITH HOLD",
	"session advisory lock that was taken nobody knows how often, or too many of them",
	"prepared statements larger than prepared_bytes_max, or one of unknown text",
	"settings whose names are not known, or too many of them",
	"a statement too large to be inspected, or that could not be read",
	"too many libraries that were loaded",
}

// String names the first reason; empty if there is none.
func (r reason) String() string {
	for i, text := range reasonTexts {
		if r&(1<<i) != 0 {
			return text
		}
	}
	return ""
}

// reasonsAsked are those that the server can be asked about.
const reasonsAsked = reasonTemp | reasonHold | reasonAdvisory
