package main

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"holdfast/pgwire"
)

// TestVersionTellsTheClientProtocols: what is told is what a client's first packet is answered by.
func TestVersionTellsTheClientProtocols(t *testing.T) {
	spoken := func(version uint32) uint32 {
		body := []byte("user\x00u\x00\x00")
		packet := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
		packet = append(binary.BigEndian.AppendUint32(packet, version), body...)
		st, err := pgwire.ReadStartup(pgwire.NewReader(bytes.NewReader(packet), 0))
		if err != nil {
			return 0
		}
		return st.Protocol
	}
	if spoken(2<<16) != 0 || spoken(3<<16) != 3<<16 || spoken(3<<16|99) != 3<<16|2 {
		t.Fatalf("clients get %x, %x and %x", spoken(2<<16), spoken(3<<16), spoken(3<<16|99))
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"version"}, &out, &out); code != 0 ||
		!strings.Contains(out.String(), "client protocol 3.0 to 3.2\n") {
		t.Errorf("exit code %d: %s", code, out.String())
	}
}
