package main_test

import (
	"net/netip"
	"os"
	"path/filepath"
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

// TestLabSlotsMissed holds the look into a server's log: only what is new counts, and a log that
// was begun anew is read from its beginning.
func TestLabSlotsMissed(t *testing.T) {
	n := &holdfast.ClusterNode{Name: "node1", DataDir: filepath.Join(t.TempDir(), "data")}
	if _, _, err := slotsMissed(n, 0); err == nil {
		t.Error("a log that is not there is well")
	}
	const well = "LOG:  started streaming WAL from primary\n"
	const bad = `ERROR:  replication slot "holdfast_node2" does not exist` + "\n"
	if err := os.MkdirAll(filepath.Dir(serverLogPath(n)), 0o700); err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, tt := range []struct {
		text string
		want int
	}{{well, 0}, {well + bad + well, 1}, {well + bad + well + well, 0}, {bad, 1}} {
		if err := os.WriteFile(serverLogPath(n), []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		lines, end, err := slotsMissed(n, at)
		if err != nil || len(lines) != tt.want || end != int64(len(tt.text)) {
			t.Errorf("%q from %d on: %q, %d, %v", tt.text, at, lines, end, err)
		}
		at = end
	}
}

// TestLabBehind holds the word for a node that has caught up.
func TestLabBehind(t *testing.T) {
	group := holdfast.Status{Node: "node2", Leader: "node2", RaftIndex: 9, RaftLastIndex: 9}
	own := holdfast.Status{Node: "node1", Leader: "node2", RaftIndex: 9, RaftLastIndex: 9,
		Problems: []string{"node2: something"}}
	for _, tt := range []struct {
		what string
		edit func(*holdfast.Status)
		want string // part of the answer; empty if it has caught up
	}{
		{"as the group", func(*holdfast.Status) {}, ""},
		{"silent", func(s *holdfast.Status) { s.Problems = []string{"node1: the disk fails"} },
			"the disk fails"},
		{"without a leader", func(s *holdfast.Status) { s.Leader = "" }, "no leader"},
		{"state", func(s *holdfast.Status) { s.RaftIndex = 8 }, "applied 8 of 9"},
		{"log", func(s *holdfast.Status) { s.RaftLastIndex = 8 }, "ends at 8"},
	} {
		st := own
		tt.edit(&st)
		if got := behind(st, group); (got == "") != (tt.want == "") ||
			!strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, got, tt.want)
		}
	}
}

// TestLabAim holds what the report says of an aim, which is no verdict.
func TestLabAim(t *testing.T) {
	for _, tt := range []struct {
		aim, gap int64
		want     string
	}{
		{0, 9000, ""},
		{4000, 3999, " (aim: under 4000 ms; 3999 ms through the worst proxy, met)"},
		{4000, 4000, " (aim: under 4000 ms; 4000 ms through the worst proxy, not met)"},
	} {
		o := &labOutcomeOf{AimMS: tt.aim, AimGapMS: tt.gap, Passed: true}
		if got := o.aimText(); got != tt.want || o.verdict() != "ok" {
			t.Errorf("aim %d, %d: %q, verdict %s", tt.aim, tt.gap, got, o.verdict())
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
	if p.isSyn {
		t.Error("a packet without the flag opens a connection")
	}
	b[24+13] = tcpSyn
	if p, _ := parseLabPacket(b); !p.isSyn {
		t.Error("SYN opens no connection")
	}
	b[24+13] = tcpSyn | tcpAck
	if p, _ := parseLabPacket(b); p.isSyn {
		t.Error("the answer to SYN opens a connection")
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

// TestLabSocketOwner holds the word for who has opened a connection.
func TestLabSocketOwner(t *testing.T) {
	const table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   " +
		"uid  timeout inode\n" +
		"   0: 0200630A:A3F2 0100630A:1538 01 00000000:00000000 02:0000 00000000   104        0 7\n" +
		"   1: 0200630A:A3F4 0100630A:1538 02 00000000:00000000 01:0000 00000000     0        0 8\n"
	for socket, want := range map[string]string{
		"10.99.0.2:41970": "104", "10.99.0.2:41972": "0", "10.99.0.2:1": "0",
		"10.99.0.1:5432": "0",
	} {
		if got := socketOwner(table, netip.MustParseAddrPort(socket)); got != want {
			t.Errorf("%s is owned by %s, want %s", socket, got, want)
		}
	}
}
