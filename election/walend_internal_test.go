package election

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"holdfast/pgwire"
)

const (
	walTestBlock   = 8192
	walTestSegment = 1 << 20
	walTestSystem  = 4711
)

// walWriter makes WAL of one timeline as a server does; its files begin at 2 MB.
type walWriter struct {
	tl   uint32
	data []byte
	prev uint64
	flag uint16 // of the next page
}

const walTestBegin = 2 * walTestSegment

func (w *walWriter) at() uint64 { return walTestBegin + uint64(len(w.data)) }

// newPage begins a page, of whose first record so much is left.
func (w *walWriter) newPage(rest int) {
	var b [walLongHeader]byte
	at, n, flags := w.at(), walShortHeader, w.flag
	w.flag = 0
	if at%walTestSegment == 0 {
		flags |= walHasLongHeader
		n = walLongHeader
		binary.NativeEndian.PutUint64(b[24:], walTestSystem)
	}
	if rest > 0 {
		flags |= walFirstIsContinued
	}
	binary.NativeEndian.PutUint16(b[:], 0xD110)
	binary.NativeEndian.PutUint16(b[2:], flags)
	binary.NativeEndian.PutUint32(b[4:], w.tl)
	binary.NativeEndian.PutUint64(b[8:], at)
	binary.NativeEndian.PutUint32(b[16:], uint32(rest))
	w.data = append(w.data, b[:n]...)
}

// record appends one, and returns where it begins.
func (w *walWriter) record(xid uint32, payload int, info byte) uint64 {
	if len(w.data)%walTestBlock == 0 {
		w.newPage(0)
	}
	begin := w.at()
	rec := append(make([]byte, walRecordHeader), bytes.Repeat([]byte{byte(xid)}, payload)...)
	binary.NativeEndian.PutUint32(rec, uint32(len(rec)))
	binary.NativeEndian.PutUint32(rec[4:], xid)
	binary.NativeEndian.PutUint64(rec[8:], w.prev)
	rec[16] = info
	sum := crc32.Update(crc32.Checksum(rec[24:], walCRC), walCRC, rec[:20])
	binary.NativeEndian.PutUint32(rec[20:], sum)
	for len(rec) > 0 {
		if len(w.data)%walTestBlock == 0 {
			w.newPage(len(rec))
		}
		n := min(len(rec), walTestBlock-len(w.data)%walTestBlock)
		w.data, rec = append(w.data, rec[:n]...), rec[n:]
	}
	for len(w.data)%8 != 0 {
		w.data = append(w.data, 0)
	}
	w.prev = begin
	return begin
}

// fill goes on to the end of the page or file.
func (w *walWriter) fill(size int) {
	for len(w.data)%size != 0 {
		w.data = append(w.data, 0)
	}
}

// walScan writes files for the servers' WAL and reads them from the first record on.
func walScan(t *testing.T, lines []walLine, writers ...*walWriter) walFound {
	t.Helper()
	dir := t.TempDir()
	for _, w := range writers {
		data := append(bytes.Clone(w.data), make([]byte, walTestSegment)...)
		for i := 0; (i+1)*walTestSegment <= len(data); i++ {
			name := walFileName(w.tl, walTestBegin/walTestSegment+uint64(i), walTestSegment)
			err := os.WriteFile(filepath.Join(dir, name),
				data[i*walTestSegment:(i+1)*walTestSegment], 0o600)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	r := &walReader{dir: dir, lines: lines, block: walTestBlock, segment: walTestSegment,
		systemID: walTestSystem, at: walTestBegin, found: walFound{nextXid: 100}}
	found, err := r.scan(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestWALEnd: the end of WAL is that of the last whole record, as recovery finds it. To say more
// would have a standby promoted that lacks a commit.
func TestWALEnd(t *testing.T) {
	line := []walLine{{tl: 1}}
	for _, tc := range []struct {
		name string
		make func(w *walWriter) (end uint64)
		xid  uint64
	}{
		{"nothing", func(*walWriter) uint64 { return 0 }, 100},
		{"records of all sizes", func(w *walWriter) uint64 {
			for i := range 200 {
				w.record(100+uint32(i), i*37, 0)
			}
			return w.at()
		}, 300},
		{"a record over two files", func(w *walWriter) uint64 {
			w.record(101, 2*walTestSegment, 0)
			w.record(0, 8, 0)
			return w.at()
		}, 102},
		{"a file that was left", func(w *walWriter) uint64 {
			w.record(7, 0, walSwitch)
			w.fill(walTestSegment)
			w.record(105, 0, 0)
			return w.at()
		}, 106},
		{"left, and nothing after it", func(w *walWriter) uint64 {
			w.record(105, 0, walSwitch)
			return walTestBegin + walTestSegment
		}, 106},
		{"a damaged record", func(w *walWriter) uint64 {
			w.record(103, 8, 0)
			end := w.at()
			w.record(104, 20000, 0)
			w.data[len(w.data)-10] ^= 1
			w.record(105, 8, 0)
			return end
		}, 104},
		{"half a record", func(w *walWriter) uint64 {
			w.record(103, 8, 0)
			end := w.at()
			w.record(104, 20000, 0)
			w.data = w.data[:len(w.data)-9000]
			return end
		}, 104},
		{"an old record behind the end", func(w *walWriter) uint64 {
			w.record(103, 8, 0)
			end := w.at()
			w.prev = walTestBegin - 1000
			w.record(104, 8, 0)
			return end
		}, 104},
		{"a record that was given up", func(w *walWriter) uint64 {
			w.record(103, 8, 0)
			was := w.prev
			w.record(104, 20000, 0)
			w.data = w.data[:walTestBlock]
			w.prev, w.flag = was, walOverwritesFirst
			w.record(0, 8, 0)
			w.record(110, 8, 0)
			return w.at()
		}, 111},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := &walWriter{tl: 1}
			want := tc.make(w)
			got := walScan(t, line, w)
			if uint64(got.end) != want || got.nextXid != tc.xid {
				t.Errorf("ends at %v with next id %d, want %v and %d", got.end, got.nextXid,
					pgwire.LSN(want), tc.xid)
			}
		})
	}
}

// TestWALEndOfTimelines: a file of the newer timeline goes before that of the older, and what the
// older one has past the fork does not count.
func TestWALEndOfTimelines(t *testing.T) {
	older := &walWriter{tl: 1}
	older.record(101, 100, 0)
	fork := older.at()
	newer := &walWriter{tl: 2, data: bytes.Clone(older.data), prev: older.prev}
	older.record(150, 5000, 0)
	lines := []walLine{{2, pgwire.LSN(fork)}, {tl: 1}}
	if got := walScan(t, lines, older); uint64(got.end) != older.at() || got.timeline != 1 {
		t.Errorf("without a file of timeline 2: %+v", got)
	}
	if got := walScan(t, lines, older, newer); uint64(got.end) != fork || got.timeline != 1 {
		t.Errorf("with nothing on timeline 2: %+v", got)
	}
	newer.record(120, 0, 0)
	got := walScan(t, lines, older, newer)
	if uint64(got.end) != newer.at() || got.timeline != 2 || got.nextXid != 121 {
		t.Errorf("with a record of timeline 2: %+v", got)
	}
}

// TestWALLines: recovery goes to the newest timeline that comes from where the server was.
func TestWALLines(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"00000002.history": "1\t0/5000\tx\n",
		"00000003.history": "1\t0/5000\tx\n2\t0/7000\tx\n",
		"00000004.history": "1\t0/2000\tleft before the checkpoint\n",
		"0000000A.history": "8\t0/9000\tof somebody else\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for from, want := range map[uint32]string{
		1: "[{3 28672} {2 20480} {1 0}]", 2: "[{3 28672} {2 0}]", 3: "[{3 0}]",
	} {
		lines, err := walLines(dir, pgControl{timeline: from, redo: 0x4000})
		if got := fmt.Sprint(lines); got != want || err != nil {
			t.Errorf("from timeline %d: %s, %v, want %s", from, got, err, want)
		}
	}
}

// TestWALEndOfABadDisk: what cannot be read may hold a commit, and is no end.
func TestWALEndOfABadDisk(t *testing.T) {
	dir := t.TempDir()
	w := &walWriter{tl: 1}
	w.record(101, walTestSegment-walTestBlock, 0)
	w.record(102, 2*walTestBlock, 0) // goes on in the next file
	first := walFileName(1, walTestBegin/walTestSegment, walTestSegment)
	if err := os.WriteFile(filepath.Join(dir, first), w.data[:walTestSegment], 0o600); err != nil {
		t.Fatal(err)
	}
	// A directory opens, and fails to be read as a bad disk does.
	next := walFileName(1, walTestBegin/walTestSegment+1, walTestSegment)
	if err := os.Mkdir(filepath.Join(dir, next), 0o700); err != nil {
		t.Fatal(err)
	}
	r := &walReader{dir: dir, lines: []walLine{{tl: 1}}, block: walTestBlock,
		segment: walTestSegment, systemID: walTestSystem, at: walTestBegin}
	if found, err := r.scan(context.Background()); err == nil {
		t.Errorf("ends at %v without an error", found.end)
	}
}

// cutContext ends after so many looks at it.
type cutContext struct {
	context.Context
	left int
}

func (c *cutContext) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestWALEndGoesOn: a scan that is cut off again and again comes to its end, the same as one that
// is not, also if it is cut off in a record that goes on in a file of a newer timeline. Begun anew
// by each order, it would never end, and nobody be promoted.
func TestWALEndGoesOn(t *testing.T) {
	older := &walWriter{tl: 1}
	for i := range 60 {
		older.record(100+uint32(i), 3000, 0)
	}
	older.record(170, walTestSegment, 0)
	newer := &walWriter{tl: 2, data: bytes.Clone(older.data), prev: older.prev}
	for i := range 60 {
		newer.record(200+uint32(i), 30000, 0)
	}
	// The files before the fork are there on the old timeline only.
	fork := older.at() / walTestSegment * walTestSegment
	older.fill(walTestSegment)
	dir := t.TempDir()
	for i := uint64(0); i*walTestSegment < uint64(len(newer.data)); i++ {
		w := newer
		if walTestBegin+i*walTestSegment < fork {
			w = older
		}
		data := append(bytes.Clone(w.data), make([]byte, walTestSegment)...)
		name := walFileName(w.tl, walTestBegin/walTestSegment+i, walTestSegment)
		err := os.WriteFile(filepath.Join(dir, name),
			data[i*walTestSegment:(i+1)*walTestSegment], 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}
	c := pgControl{systemID: "4711", block: walTestBlock, segment: walTestSegment,
		redo: walTestBegin, nextXid: 100}
	lines := []walLine{{2, pgwire.LSN(fork)}, {tl: 1}}
	r := newWALReader(dir, c, lines)
	cuts := 0
	for {
		at := r.at
		found, err := r.scan(&cutContext{context.Background(), 140})
		if err == nil {
			if want := newer.at(); uint64(found.end) != want || found.nextXid != 260 ||
				found.timeline != 2 {
				t.Errorf("ends with %+v, want %v", found, pgwire.LSN(want))
			}
			break
		}
		if cuts++; r.at == at {
			t.Fatalf("the scan does not get on at %v", pgwire.LSN(at))
		}
	}
	if cuts < 2 {
		t.Errorf("cut off %d times: it shows nothing", cuts)
	}
	// Where a restart point has removed what comes next, it begins anew.
	if c.redo = pgwire.LSN(r.at); !r.isOf(c, lines) {
		t.Error("what comes behind redo is there, and is not gone on with")
	}
	if c.redo++; r.isOf(c, lines) {
		t.Error("what comes before redo may be gone, and is gone on with")
	}
	if c.redo = walTestBegin; r.isOf(c, lines[1:]) {
		t.Error("a scan goes on along another timeline")
	}
}

// TestWALEndNeverGoesBack: behind a file of a newer timeline none of an older one is read, as in
// recovery: what is in it is not part of that history.
func TestWALEndNeverGoesBack(t *testing.T) {
	newer := &walWriter{tl: 2}
	newer.record(101, walTestSegment/2, 0)
	end := newer.at()
	older := &walWriter{tl: 1, data: bytes.Clone(newer.data), prev: newer.prev}
	for _, w := range []*walWriter{newer, older} {
		w.record(102, walTestSegment, 0)
	}
	newer.data = newer.data[:walTestSegment]
	dir := t.TempDir()
	for i, w := range []*walWriter{newer, older} {
		data := append(bytes.Clone(w.data), make([]byte, walTestSegment)...)
		name := walFileName(w.tl, walTestBegin/walTestSegment+uint64(i), walTestSegment)
		err := os.WriteFile(filepath.Join(dir, name),
			data[i*walTestSegment:(i+1)*walTestSegment], 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}
	r := newWALReader(dir, pgControl{systemID: "4711", block: walTestBlock, redo: walTestBegin,
		segment: walTestSegment}, []walLine{{2, walTestBegin}, {tl: 1}})
	if found, err := r.scan(context.Background()); err != nil || uint64(found.end) != end {
		t.Errorf("ends at %v, want %v: %v", found.end, pgwire.LSN(end), err)
	}
}

// TestConfName: the "=" of a setting may be left out.
func TestConfName(t *testing.T) {
	for line, want := range map[string]string{
		"primary_conninfo = 'x'\n": "primary_conninfo", "Primary_Conninfo='x'": "primary_conninfo",
		"primary_conninfo 'x=y'": "primary_conninfo", "\tport\t5": "port", "# port = 5": "",
		"holdfast.conf_seq = 'port'": "holdfast.conf_seq", "port": "port",
	} {
		if got := confName(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// TestControlOfACopy: a copy whose backup has not ended is not whole, in the words of all releases.
func TestControlOfACopy(t *testing.T) {
	for line, whole := range map[[2]string]bool{
		{"Backup start location", "0/2000028"}: false, {"Backup start location", "0/0"}: true,
		{"Backup start location", "0/00000000"}: true, {"End-of-backup record required", "yes"}: false,
		{"End-of-backup record required", "no"}: true,
	} {
		c := pgControl{minLSN: 1}
		if c.readWALKey(line[0], line[1]); c.isWhole() != whole {
			t.Errorf("%s: %s: whole is %v", line[0], line[1], c.isWhole())
		}
	}
}

// TestDropHistories: what was there before a promotion that was called off stays.
func TestDropHistories(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"00000002.history", "0000000A.history", "0000000B.history",
		"0000000B.history.tmp", "0000000B0000000000000001"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := dropHistories(dir, 10); err != nil {
		t.Fatal(err)
	}
	tls, err := histories(dir)
	if fmt.Sprint(tls) != "[2 10]" || err != nil {
		t.Errorf("left are %v, %v", tls, err)
	}
	if _, err := walLines(filepath.Join(dir, "none"), pgControl{timeline: 1}); err == nil {
		t.Error("a directory that cannot be read has no timelines")
	}
}

// TestScanWALGoesOn: orders that end before all WAL is read come to its end together; and a file
// that a restart point has removed under the scan is not taken for that end.
func TestScanWALGoesOn(t *testing.T) {
	dir := t.TempDir()
	w := &walWriter{tl: 1}
	redo := uint64(0)
	for i := range 200 {
		at := w.record(100+uint32(i), 20000, 0)
		if redo == 0 && at > walTestBegin+2*walTestSegment {
			redo = at
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "pg_wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := func(i int) string {
		return filepath.Join(dir, "pg_wal",
			walFileName(1, walTestBegin/walTestSegment+uint64(i), walTestSegment))
	}
	data := append(bytes.Clone(w.data), make([]byte, walTestSegment)...)
	for i := 0; (i+1)*walTestSegment <= len(data); i++ {
		err := os.WriteFile(file(i), data[i*walTestSegment:(i+1)*walTestSegment], 0o600)
		if err != nil {
			t.Fatal(err)
		}
	}
	c := pgControl{systemID: "4711", timeline: 1, minTL: 1, minLSN: walTestBegin, nextXid: 100,
		redo: walTestBegin, block: walTestBlock, segment: walTestSegment}
	control := func(context.Context) (pgControl, error) { return c, nil }
	check := func(res OrderResult, err error) {
		t.Helper()
		if err != nil || uint64(res.LSN) != w.at() || res.XidLo != 300 {
			t.Errorf("at %v with id %d, want %v: %v", res.LSN, res.XidLo, pgwire.LSN(w.at()), err)
		}
	}
	a := &PostgresAgent{cfg: AgentConfig{DataDir: dir}}
	orders := 1
	for ; orders < 20; orders++ {
		res, err := a.scanWAL(&cutContext{context.Background(), 200}, control)
		if err == nil {
			check(res, err)
			break
		}
	}
	if orders < 2 || orders == 20 {
		t.Errorf("%d orders", orders)
	}
	a.scan = nil
	looks := 0
	check(a.scanWAL(context.Background(), func(context.Context) (pgControl, error) {
		now := c
		if looks++; looks == 1 { // and a restart point is made then
			c.redo = pgwire.LSN(redo)
			return now, os.Remove(file(1))
		}
		return c, nil
	}))
	if looks != 3 {
		t.Errorf("pg_control was read %d times", looks)
	}
}
