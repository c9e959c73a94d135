package proxy

import (
	"strings"
	"testing"

	"holdfast/pgwire"
)

// The server knows statements and portals by the first 63 bytes of their names: what goes by
// another name and is the same counts as the same.
func TestLongNamesAreTheServersNames(t *testing.T) {
	long := strings.Repeat("n", 63)
	s := inspectRig('T')
	s.ask(t, pgwire.AppendParse(nil, "", "SELECT 1", nil), pgwire.AppendBind(nil, long+"2", ""),
		pgwire.AppendClose(nil, 'P', long+"1"),
		pgwire.AppendParse(nil, "", "INSERT INTO t VALUES (1)", nil),
		pgwire.AppendBind(nil, long+"1", ""), pgwire.AppendExecute(nil, long+"2", 0))
	if o := s.flow.ops[len(s.flow.ops)-1]; !o.cls.has(clsMayWrite) {
		t.Errorf("a portal by another name: %b", o.cls)
	}
	s = inspectRig('T')
	s.ask(t, pgwire.AppendParse(nil, long+"1", "INSERT INTO t VALUES (1)", nil),
		pgwire.AppendBind(nil, "", long+"2"), pgwire.AppendExecute(nil, "", 0))
	o := s.flow.ops[len(s.flow.ops)-1]
	if !o.cls.has(clsMayWrite) || o.cls.has(clsOpaque) {
		t.Errorf("a statement by another name: %b", o.cls)
	}
}

// What is kept of portals is bounded in number and in bytes.
func TestPortalsAreBounded(t *testing.T) {
	s := inspectRig('T')
	portalsMax := s.proxy.cfg.PortalsMax
	s.ask(t, pgwire.AppendParse(nil, "", "SELECT 1", nil))
	for i := range 3 * portalsMax {
		name := string(rune('a'+i%26)) + strings.Repeat(string(rune('a'+i/26%26)), 5000) +
			string(rune('a'+i/676))
		s.ask(t, pgwire.AppendBind(nil, name, ""))
	}
	bytes := 0
	for name := range s.portals {
		bytes += len(name)
	}
	if len(s.portals) > portalsMax || bytes > portalsMax*serverNameBytes {
		t.Errorf("%d portals, %d bytes", len(s.portals), bytes)
	}
}
