package election

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"holdfast/pgwire"
)

// The form of WAL files, the same in all releases from 9.5 to 18 (access/xlogrecord.h,
// access/xlog_internal.h), in the byte order of the machine.
const (
	walRecordHeader = 24
	walShortHeader  = 24 // of a page
	walLongHeader   = 40 // of the first page of a file

	walFirstIsContinued = 0x01 // flags of a page
	walHasLongHeader    = 0x02
	walOverwritesFirst  = 0x08

	walRecordMax = 1 << 30 // PostgreSQL's own bound is a little lower
	walSwitch    = 0x40    // xl_info of XLOG_SWITCH, of resource manager 0
)

var walCRC = crc32.MakeTable(crc32.Castagnoli)

// walFound is how far whole records go.
type walFound struct {
	end      pgwire.LSN // 0: there is no record
	timeline uint32
	// nextXid is an id that is above none of those in use: all ids that were seen are below it.
	nextXid uint64
}

// walReader reads WAL files as recovery does, in constant memory. A scan that was cut off goes on
// where it was.
type walReader struct {
	dir            string
	lines          []walLine // the newest first
	block, segment uint64
	systemID       uint64

	// at is where the next record is expected, prev where the last one begins (0: none was read),
	// tl the newest timeline of which a file was needed for the records up to there.
	at, prev uint64
	tl       uint32
	found    walFound

	newest uint32 // timeline of which a file was opened: recovery never goes back to older ones
	file   *os.File
	fileAt uint64  // where file begins
	line   walLine // of file
	magic  uint16
	page   []byte
	pageAt uint64 // where page begins, if isRead
	isRead bool
}

// walLine is a timeline and where it begins.
type walLine struct {
	tl    uint32
	begin pgwire.LSN
}

// errWALEnds ends a scan: what comes next is no record. That is where WAL ends, and no failure.
var errWALEnds = errors.New("no whole record")

// scan reads records from where it is to the last that is whole.
func (r *walReader) scan(ctx context.Context) (walFound, error) {
	if r.page == nil {
		r.page = make([]byte, r.block)
	}
	// A record that was being read may have reached a file of a newer timeline; it is read anew.
	r.isRead, r.newest = false, r.tl
	defer r.close()
	for {
		rec, err := r.record(ctx, r.at)
		switch {
		case errors.Is(err, errWALEnds):
			return r.found, nil
		case err != nil:
			return r.found, fmt.Errorf("read WAL at %s: %w", pgwire.LSN(r.at), err)
		case rec.overwritten != 0:
			r.at = rec.overwritten // the record was given up by the server that wrote it
			continue
		case r.prev != 0 && rec.prev != r.prev:
			return r.found, nil
		}
		r.prev, r.at, r.tl = rec.at, rec.end, r.newest
		r.found.end, r.found.timeline = pgwire.LSN(rec.end), r.timelineAt(pgwire.LSN(rec.at))
		// Ids are of 32 bits, and less than half of them from each other.
		if d := int32(rec.xid - uint32(r.found.nextXid)); rec.xid != 0 && d >= 0 {
			r.found.nextXid += uint64(d) + 1
		}
	}
}

// walRecord is a record that was read.
type walRecord struct {
	at, end, prev uint64
	xid           uint32
	// overwritten is not 0 if it ends in a page that begins anew.
	overwritten uint64
}

// record reads the record at a position, which may be the begin of a page.
func (r *walReader) record(ctx context.Context, at uint64) (walRecord, error) {
	if at%8 != 0 {
		return walRecord{}, errWALEnds
	}
	off := at % r.block
	flags, _, err := r.read(ctx, at-off)
	if err != nil {
		return walRecord{}, err
	}
	if head := pageHeader(flags); off == 0 && flags&walFirstIsContinued == 0 {
		off, at = head, at+head
	} else if off < head {
		return walRecord{}, errWALEnds
	}
	total := uint64(binary.NativeEndian.Uint32(r.page[off:]))
	if total < walRecordHeader || total > walRecordMax {
		return walRecord{}, errWALEnds
	}
	var head []byte
	sum := uint32(0)
	addr := at - off
	for left := total; ; {
		part := r.page[off:min(off+left, r.block)]
		left -= uint64(len(part))
		off += uint64(len(part))
		n := min(walRecordHeader-len(head), len(part))
		head = append(head, part[:n]...)
		sum = crc32.Update(sum, walCRC, part[n:])
		if left == 0 {
			break
		}
		addr += r.block
		flags, rest, err := r.read(ctx, addr)
		switch {
		case err != nil:
			return walRecord{}, err
		case flags&walOverwritesFirst != 0:
			return walRecord{overwritten: addr}, nil
		case flags&walFirstIsContinued == 0 || uint64(rest) != left:
			return walRecord{}, errWALEnds
		}
		off = pageHeader(flags)
	}
	if crc32.Update(sum, walCRC, head[:20]) != binary.NativeEndian.Uint32(head[20:]) {
		return walRecord{}, errWALEnds
	}
	rec := walRecord{at: at, end: addr + (off+7)&^7, xid: binary.NativeEndian.Uint32(head[4:]),
		prev: binary.NativeEndian.Uint64(head[8:])}
	if head[17] == 0 && head[16]&0xF0 == walSwitch {
		rec.end += (r.segment - rec.end%r.segment) % r.segment // the rest of the file is empty
	}
	return rec, nil
}

func pageHeader(flags uint16) uint64 {
	if flags&walHasLongHeader != 0 {
		return walLongHeader
	}
	return walShortHeader
}

// read reads the page at a position, and returns its flags and how much of its first record, which
// began before, is left.
func (r *walReader) read(ctx context.Context, at uint64) (flags uint16, rest uint32, err error) {
	order := binary.NativeEndian
	if r.isRead && r.pageAt == at {
		return order.Uint16(r.page[2:]), order.Uint32(r.page[16:]), nil
	}
	r.isRead = false
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	if r.file == nil || at < r.fileAt || at >= r.fileAt+r.segment {
		if err := r.open(at); err != nil {
			return 0, 0, err
		}
	}
	// A disk that does not give what it has is no end of WAL.
	if _, err := r.file.ReadAt(r.page, int64(at-r.fileAt)); errors.Is(err, io.EOF) {
		return 0, 0, errWALEnds
	} else if err != nil {
		return 0, 0, err
	}
	magic, flags := order.Uint16(r.page), order.Uint16(r.page[2:])
	if r.magic == 0 {
		r.magic = magic
	}
	isFirst := at%r.segment == 0
	switch {
	case magic == 0, magic != r.magic, order.Uint64(r.page[8:]) != at,
		order.Uint32(r.page[4:]) > r.line.tl, isFirst != (flags&walHasLongHeader != 0),
		isFirst && order.Uint64(r.page[24:]) != r.systemID:
		return 0, 0, errWALEnds
	}
	r.pageAt, r.isRead = at, true
	return flags, order.Uint32(r.page[16:]), nil
}

// open opens the file of the newest timeline that has begun by then and has one, but none of an
// older timeline than was opened before.
func (r *walReader) open(at uint64) error {
	r.close()
	number := at / r.segment
	for _, line := range r.lines {
		if uint64(line.begin)/r.segment > number {
			continue
		}
		if line.tl < r.newest {
			break
		}
		f, err := os.Open(filepath.Join(r.dir, walFileName(line.tl, number, r.segment)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		r.file, r.fileAt, r.line, r.newest = f, number*r.segment, line, line.tl
		return nil
	}
	return errWALEnds
}

// timelineAt is the timeline of the record at a position of the open file: a file has what comes
// before the begin of its timeline, too.
func (r *walReader) timelineAt(at pgwire.LSN) uint32 {
	for _, line := range r.lines {
		if line.tl <= r.line.tl && line.begin <= at {
			return line.tl
		}
	}
	return 0
}

func (r *walReader) close() {
	if r.file != nil {
		_ = r.file.Close() // it was read only
		r.file = nil
	}
}

func walFileName(timeline uint32, number, segment uint64) string {
	perID := (uint64(1) << 32) / segment
	return fmt.Sprintf("%08X%08X%08X", timeline, number/perID, number%perID)
}

// errNotWhole says that a copy has not replayed to the end of its backup: there is no position that
// it could be promoted at.
var errNotWhole = errors.New("the copy that it was made from is not whole yet")

// walControl is pg_control of a standby whose WAL can be scanned.
func (a *PostgresAgent) walControl(ctx context.Context) (pgControl, error) {
	c, err := a.controlData(ctx)
	if err != nil {
		return c, err
	}
	if c.state != "in archive recovery" && c.state != "shut down in recovery" {
		return c, fmt.Errorf("%w: by pg_control it is %s", ErrAgentRole, c.state)
	}
	if !c.isWhole() {
		return c, errNotWhole
	}
	if _, err := strconv.ParseUint(c.systemID, 10, 64); err != nil || c.segment == 0 ||
		c.block < 1024 || c.redo == 0 {
		return c, errors.New("pg_controldata: output not understood")
	}
	return c, nil
}

// readWALEnd reads how far the WAL of a standby goes, from its files: what is whole in them is what
// its recovery will have replayed when it ends. The caller knows that nobody writes any more, or
// takes an answer that is about to be overtaken. What was read is kept, also if ctx ends: WAL since
// the last restart point may take longer than an order.
func (a *PostgresAgent) readWALEnd(ctx context.Context) (OrderResult, error) {
	return a.scanWAL(ctx, a.walControl)
}

func (a *PostgresAgent) scanWAL(ctx context.Context,
	control func(context.Context) (pgControl, error),
) (OrderResult, error) {
	c, err := control(ctx)
	for {
		if err != nil {
			return OrderResult{}, err
		}
		lines, err := walLines(filepath.Join(a.cfg.DataDir, "pg_wal"), c)
		if err != nil {
			return OrderResult{}, err
		}
		if !a.scan.isOf(c, lines) {
			a.scan = newWALReader(filepath.Join(a.cfg.DataDir, "pg_wal"), c, lines)
		}
		found, err := a.scan.scan(ctx)
		if err != nil {
			return OrderResult{}, err
		}
		begun := c.redo
		if c, err = control(ctx); err != nil {
			return OrderResult{}, err
		}
		if found.end < c.redo && c.redo != begun {
			continue // a restart point has removed what was to be read: that is no end of WAL
		}
		if found.end < max(c.minLSN, c.redo) {
			return OrderResult{}, fmt.Errorf("pg_wal ends at %s, and the data need WAL up to %s",
				found.end, c.minLSN)
		}
		return OrderResult{Timeline: max(found.timeline, c.minTL), LSN: found.end,
			SystemID: c.systemID, XidLo: found.nextXid}, nil
	}
}

// newWALReader begins where recovery would.
func newWALReader(dir string, c pgControl, lines []walLine) *walReader {
	id, _ := strconv.ParseUint(c.systemID, 10, 64) // walControl has looked at it
	return &walReader{dir: dir, lines: lines, block: c.block, segment: c.segment, systemID: id,
		at: uint64(c.redo), found: walFound{nextXid: c.nextXid}}
}

// isOf tells that the scan is one of that recovery, and that the files where it goes on are there:
// those before redo may be gone.
func (r *walReader) isOf(c pgControl, lines []walLine) bool {
	return r != nil && r.at >= uint64(c.redo) && strconv.FormatUint(r.systemID, 10) == c.systemID &&
		r.block == c.block && r.segment == c.segment && slices.Equal(r.lines, lines)
}

// walLines is the newest timeline whose history comes from that of the last checkpoint, which is
// the one that recovery goes to, and its ancestors down to that.
func walLines(dir string, c pgControl) ([]walLine, error) {
	best := []walLine{{tl: c.timeline}}
	tls, err := histories(dir) // in order
	if err != nil {
		return nil, err
	}
	for _, tl := range tls {
		if tl <= best[0].tl {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%08X.history", tl)))
		if err != nil {
			return nil, fmt.Errorf("read history of timeline %d: %w", tl, err)
		}
		if lines := walLinesOf(tl, pgParseHistory(string(b)), c); lines != nil {
			best = lines
		}
	}
	return best, nil
}

func walLinesOf(tl uint32, forks []pgFork, c pgControl) []walLine {
	lines := []walLine{}
	for _, f := range slices.Backward(forks) {
		lines = append(lines, walLine{tl, f.at})
		if tl = f.tl; tl == c.timeline {
			if f.at < c.redo {
				return nil // it went another way before
			}
			return append(lines, walLine{tl: tl})
		}
	}
	return nil
}

// syncWAL makes durable what is in pg_wal from the last restart point on: a stop in a hurry leaves
// WAL that was written and not flushed, and who answers for it must have it after a loss of power.
func (a *PostgresAgent) syncWAL() error {
	dir := filepath.Join(a.cfg.DataDir, "pg_wal")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("flush WAL: %w", err)
	}
	for _, e := range entries {
		if len(e.Name()) != 24 {
			continue
		}
		if err := pgSyncDir(filepath.Join(dir, e.Name())); err != nil { // the same for a file
			return fmt.Errorf("flush WAL: %w", err)
		}
	}
	return pgSyncDir(dir)
}
