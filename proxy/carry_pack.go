package proxy

import (
	"crypto/sha256"
	_ "embed" // the questions
	"fmt"
	"strconv"
	"strings"
	"time"

	"holdfast/pgwire"
)

//go:embed carry_hindrance.sql
var hindranceSQL string

//go:embed carry_tables.sql
var tablesSQL string

// carrySettingsSQL makes the rest of a transaction independent of what the session has set: how
// SQL is read and written, and constants in it (a default of type float8, say, which would lose
// digits), time limits, and where tables are put. Of what is not there in all versions nothing is
// set. The session's own search_path is in force while it runs.
const carrySettingsSQL = `SELECT pg_catalog.set_config(name, value, true) FROM (VALUES` +
	` ('search_path', ''), ('client_encoding', pg_catalog.current_setting('server_encoding')),` +
	` ('statement_timeout', '0'), ('lock_timeout', '0'), ('transaction_timeout', '0'),` +
	` ('idle_in_transaction_session_timeout', '0'), ('synchronous_commit', 'off'),` +
	` ('standard_conforming_strings', 'on'), ('transform_null_equals', 'off'),` +
	` ('quote_all_identifiers', 'off'), ('row_security', 'off'), ('temp_tablespaces', ''),` +
	` ('extra_float_digits', '3'), ('DateStyle', 'ISO, YMD'), ('IntervalStyle', 'postgres'),` +
	` ('TimeZone', 'GMT'), ('bytea_output', 'hex'), ('lc_monetary', 'C'),` +
	` ('xmloption', 'content'),` +
	` ('jit', 'off')) v(name, value) WHERE EXISTS (SELECT FROM pg_catalog.pg_settings s` +
	` WHERE s.name OPERATOR(pg_catalog.=) v.name)`

// packer takes temporary tables from a backend that its session is about to leave.
type packer struct {
	s  *session
	b  *backend
	c  *carry
	as string // the role of the transaction, for SQL; empty while it is the session's
}

// run packs all tables. Two transactions: the first only reads. The second finds out of tables
// without rows what no catalogue tells, ON COMMIT, and costs them their columns.
func (p *packer) run() error {
	p.extend()
	err := p.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; " + carrySettingsSQL)
	if err != nil {
		return err
	}
	rows, err := p.rows(hindranceSQL)
	if err != nil {
		return err
	}
	if len(rows) > 0 {
		return &cannotCarry{why: text(rows[0], 0)}
	}
	if err := p.readTables(); err != nil {
		return err
	}
	for i := range p.c.tables {
		if err := p.readRows(&p.c.tables[i]); err != nil {
			return err
		}
	}
	if err := p.ask("ROLLBACK"); err != nil {
		return err
	}
	return p.findEmptied()
}

// extend gives the server time for one more step. What bounds them all is the drain.
func (p *packer) extend() { _ = p.b.conn.SetDeadline(time.Now().Add(p.s.proxy.cfg.DialTimeout)) }

func (p *packer) rows(sql string) ([][]string, error) {
	p.extend()
	return p.b.question(sql)
}

func (p *packer) ask(sql string) error {
	_, err := p.rows(sql)
	return err
}

// text is a column of a row, empty if it is not there.
func text(row []string, i int) string {
	if i >= len(row) {
		return ""
	}
	return row[i]
}

// readTables learns how the tables are made.
func (p *packer) readTables() error {
	rows, err := p.rows(tablesSQL)
	if err != nil {
		return err
	}
	if most := p.s.proxy.cfg.CarryTempTablesMax; len(rows) > most {
		return &cannotCarry{
			why:   fmt.Sprintf("more than %d of them, proxy.carry_temp_tables_max", most),
			limit: limitCarryTables,
		}
	}
	for _, row := range rows {
		t := carriedTable{
			name: text(row, 1), owner: text(row, 2), create: text(row, 3), drop: text(row, 4),
			finish: text(row, 5), rest: text(row, 6), generated: text(row, 7), bare: text(row, 8),
			describes: sha256.Sum256([]byte(text(row, 9))), types: [2]string{text(row, 10), text(row, 11)},
		}
		if p.s.hasParameterOf(t.types) {
			return &cannotCarry{why: "a prepared statement has a parameter of the type of " + t.name}
		}
		size := 0
		for i, col := range row {
			if i != 9 {
				size += len(col)
			}
		}
		if err := p.keep(size); err != nil {
			return err
		}
		p.c.tables = append(p.c.tables, t)
	}
	return nil
}

// hasParameterOf tells that a statement was prepared with one of these types, by its number, which
// is another one on the next server.
func (s *session) hasParameterOf(types [2]string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _, oids, _ := pgwire.ParseParse(s.unnamedQ)
	if hasType(oids, types) {
		return true
	}
	for _, ps := range s.track.statements {
		if hasType(ps.oids, types) {
			return true
		}
	}
	return false
}

func hasType(oids []uint32, types [2]string) bool {
	for _, oid := range oids {
		if n := strconv.FormatUint(uint64(oid), 10); n == types[0] || n == types[1] {
			return true
		}
	}
	return false
}

// keep accounts for n more bytes.
func (p *packer) keep(n int) error {
	cfg := &p.s.proxy.cfg
	if p.c.bytes+n > cfg.CarryTempBytesMax {
		return &cannotCarry{
			why: fmt.Sprintf("more than %d bytes of them, proxy.carry_temp_bytes_max",
				cfg.CarryTempBytesMax),
			limit: limitCarryBytes, cutsOff: true,
		}
	}
	if p.s.proxy.carried.Add(int64(n)) > int64(cfg.CarryTempTotalBytesMax) {
		p.s.proxy.carried.Add(-int64(n))
		return &cannotCarry{
			why: fmt.Sprintf("more than %d bytes of all sessions, proxy.carry_temp_total_bytes_max",
				cfg.CarryTempTotalBytesMax),
			limit: limitCarryTotal, cutsOff: true,
		}
	}
	p.c.bytes += n
	return nil
}

// become makes the transaction that of the role which owns a table: nobody else need be allowed
// to read it.
func (p *packer) become(owner string) error {
	if p.as == owner {
		return nil
	}
	p.as = owner
	return p.ask("SET LOCAL ROLE " + owner)
}

// readRows takes the rows of a table.
func (p *packer) readRows(t *carriedTable) error {
	if err := p.become(t.owner); err != nil {
		return err
	}
	p.extend()
	var err error
	t.sum, err = p.b.copyOut(copySQL(t.name), func(data []byte) error {
		if err := p.keep(len(data)); err != nil {
			return err
		}
		p.extend()
		t.rows = append(t.rows, data...)
		return nil
	})
	if err != nil || t.generated == "" {
		return err
	}
	t.made, err = p.b.copyOut(generatedSQL(t), discardRows)
	return err
}

func copySQL(name string) string { return "COPY " + name + " TO STDOUT (FORMAT binary)" }

func generatedSQL(t *carriedTable) string {
	return "COPY (SELECT " + t.generated + " FROM ONLY " + t.name + ") TO STDOUT (FORMAT binary)"
}

// discardRows is for a digest alone.
func discardRows([]byte) error { return nil }

// noRows is the tag of a COPY of nothing.
const noRows = "COPY 0"

// findEmptied finds out which tables lose their rows at each commit. One that has rows at a safe
// point does not. Each other one, which is left behind in any case, gets a row: so that nothing
// forbids that, it has no columns first.
func (p *packer) findEmptied() error {
	var empty []*carriedTable
	for i := range p.c.tables {
		if t := &p.c.tables[i]; t.sum.tag == noRows {
			empty = append(empty, t)
		}
	}
	if len(empty) == 0 {
		return nil
	}
	if err := p.ask("BEGIN READ WRITE; " + carrySettingsSQL); err != nil {
		return err
	}
	p.as = ""
	for _, t := range empty {
		if err := p.become(t.owner); err != nil {
			return err
		}
		if t.bare != "" {
			if err := p.ask(t.bare); err != nil {
				return err
			}
		}
		if err := p.ask("INSERT INTO " + t.name + " DEFAULT VALUES"); err != nil {
			return err
		}
	}
	if err := p.ask("COMMIT"); err != nil {
		return err
	}
	return p.seeWhatIsLeft(empty)
}

// seeWhatIsLeft looks which of the tables still have their row.
func (p *packer) seeWhatIsLeft(tables []*carriedTable) error {
	if err := p.ask("BEGIN READ ONLY; " + carrySettingsSQL); err != nil {
		return err
	}
	p.as = ""
	for _, t := range tables {
		if err := p.become(t.owner); err != nil {
			return err
		}
		rows, err := p.rows("SELECT FROM ONLY " + t.name)
		if err != nil {
			return err
		}
		t.isEmptied = len(rows) == 0
	}
	return p.ask("ROLLBACK")
}

// sql makes the table, without its rows.
func (t *carriedTable) sql() string {
	parts := []string{t.create + " ON COMMIT PRESERVE ROWS"}
	if t.isEmptied {
		parts[0] = t.create + " ON COMMIT DELETE ROWS"
	}
	if t.drop != "" {
		parts = append(parts, t.drop)
	}
	return strings.Join(parts, "; ")
}
