package main_test

import (
	"strings"
	"testing"
	"time"

	holdfast "holdfast/cmd/holdfast"
)

func TestLabTwoPrimaries(t *testing.T) {
	begin := time.Now()
	ack := func(node, timeline string, sent, acked int) labAck {
		return labAck{node: node, timeline: timeline, sent: begin.Add(time.Duration(sent)),
			acked: begin.Add(time.Duration(acked))}
	}
	for _, tt := range []struct {
		name string
		acks []labAck
		want string // part of the answer; empty if all is well
	}{
		{"one primary", []labAck{ack("node1", "01", 1, 2), ack("node1", "01", 3, 4)}, ""},
		{"a failover", []labAck{ack("node1", "01", 1, 2), ack("node2", "02", 3, 4)}, ""},
		{"there and back", []labAck{ack("node1", "01", 1, 2), ack("node2", "02", 3, 4),
			ack("node1", "03", 5, 6)}, ""},
		{"at the same time, order unknown", []labAck{ack("node1", "01", 1, 4),
			ack("node2", "02", 2, 3)}, ""},
		{"old one after the new one", []labAck{ack("node1", "01", 1, 2),
			ack("node2", "02", 3, 4), ack("node1", "01", 5, 6)}, "node1 (timeline 01)"},
		{"in any order of the list", []labAck{ack("node1", "01", 5, 6),
			ack("node2", "02", 3, 4)}, "node1 (timeline 01)"},
		{"same timeline", []labAck{ack("node1", "01", 1, 2), ack("node2", "01", 3, 4)},
			"node2 (timeline 01)"},
	} {
		got := twoPrimaries(tt.acks)
		if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestLabMemberIsWell holds the word for an old primary that is back.
func TestLabMemberIsWell(t *testing.T) {
	st := holdfast.Status{Primary: "node2"}
	for _, tt := range []struct {
		m    holdfast.MemberStatus
		want bool
	}{
		{holdfast.MemberStatus{Name: "node1", Role: "standby", Streaming: true}, true},
		{holdfast.MemberStatus{Name: "node1", Role: "standby"}, false},
		{holdfast.MemberStatus{Name: "node1", Role: "primary"}, false},
		{holdfast.MemberStatus{Name: "node2", Role: "primary"}, true},
		{holdfast.MemberStatus{Name: "node2", Role: "stopped"}, false},
	} {
		if got := memberIsWell(st, tt.m); got != tt.want {
			t.Errorf("%+v: %v", tt.m, got)
		}
	}
}

func TestLabPacket(t *testing.T) {
	b := make([]byte, 40)
	b[0], b[9] = 0x46, 6 // one word of options, TCP
	copy(b[12:], []byte{10, 99, 0, 1, 10, 99, 1, 2})
	copy(b[24:], []byte{0x15, 0x38, 0x1c, 0xe8}) // 5432, 7400
	p, ok := parseLabPacket(b)
	if !ok || p.src.String() != "10.99.0.1" || p.dst.String() != "10.99.1.2" ||
		p.srcPort != 5432 || p.dstPort != 7400 {
		t.Errorf("%v %+v", ok, p)
	}
	if !isControl(p) || isReplication(p) {
		t.Error("a proxy's address is taken for a standby's, or 7400 for no voter's")
	}
	b[18] = 0 // to 10.99.0.2
	if p, _ := parseLabPacket(b); !isReplication(p) {
		t.Error("not replication")
	}
	for _, bad := range [][]byte{nil, b[:19], append([]byte{0x60}, b[1:]...)} {
		if _, ok := parseLabPacket(bad); ok {
			t.Errorf("%x is taken for IPv4", bad)
		}
	}
}
