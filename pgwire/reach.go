package pgwire

// Reach tells how far beyond its transaction a statement reaches, as far as its text shows.
type Reach uint8

// Reaches, the farther the greater.
const (
	// ReachTransaction is what a rollback takes back.
	ReachTransaction Reach = iota
	// ReachSequence is a sequence: another execution is harmless, and gives another value.
	ReachSequence
	// ReachOutside is what no rollback takes back: files, programs, other servers, other
	// sessions. It must never be executed again in silence.
	ReachOutside
)

// ReachOf reads a string of any statements. It knows functions of PostgreSQL and of its contrib
// modules by their names; what a function of the database does inside shows in no text. The text
// of a DO block is read, and so is any other constant: a name in it that looks like a call counts.
func ReachOf(sql []byte, conforming bool) Reach {
	return reachOf(sql, conforming, reachDepth)
}

// reachDepth bounds how deep constants are read inside constants.
const reachDepth = 3

func reachOf(sql []byte, conforming bool, depth int) Reach {
	s := needsScan{}
	s.lexer = lexer{sql: sql, conforming: conforming}
	r, isCopy, first := ReachTransaction, false, true
	for {
		more := s.step()
		t := s.tok
		if !more && t.kind != tokSemicolon && !s.bad {
			break
		}
		if t.kind == tokUnfinished || t.kind == tokEOF {
			break // nothing of it runs
		}
		s.bad = false
		switch {
		case first && t.kind == tokWord:
			isCopy = s.isWord(t, "copy")
			r = max(r, s.reachOfFirst(t))
		case isCopy && s.isCopyFile():
			r = ReachOutside
		case t.kind == tokQuoted && s.text(t)[0] != '"':
			r = ReachOutside // U&"..." may be any name
		case t.kind == tokString && depth > 0:
			r = max(r, reachOf(constantText(s.text(t)), conforming, depth-1))
		}
		first = t.kind == tokSemicolon
		r = max(r, reachOfNames(s.needs.Functions))
		s.needs = Needs{Functions: s.needs.Functions[:0]}
	}
	return max(r, reachOfNames(s.needs.Functions))
}

// reachOfFirst judges a statement by its first word.
func (s *needsScan) reachOfFirst(t token) Reach {
	for _, w := range [...]string{"checkpoint", "load"} {
		if s.isWord(t, w) {
			return ReachOutside
		}
	}
	return ReachTransaction
}

// isCopyFile tells that COPY reads or writes a file or a program of the server's host.
func (s *needsScan) isCopyFile() bool {
	isTo := s.isWord(s.last[0], "to") || s.isWord(s.last[0], "from")
	return s.depth == 0 && isTo && (s.tok.kind == tokString || s.isWord(s.tok, "program"))
}

// constantText is what is between the quotes of a constant, with doubled quotes and escapes as
// they are: names have none.
func constantText(w []byte) []byte {
	if w[0] == '$' {
		for i := 1; i < len(w); i++ {
			if w[i] == '$' {
				return w[i+1 : max(i+1, len(w)-i-1)]
			}
		}
	}
	for i, c := range w {
		if c == '\'' {
			return w[i+1 : max(i+1, len(w)-1)]
		}
	}
	return nil
}

func reachOfNames(names []Name) Reach {
	r := ReachTransaction
	for _, n := range names {
		r = max(r, reachOfFunction(n.Name))
	}
	return r
}

// reachOfFunction knows what reaches outside by its name, in any schema.
func reachOfFunction(name string) Reach {
	switch name {
	case "nextval", "setval":
		return ReachSequence
	case "treat":
		return ReachOutside // TREAT(x AS f) calls f
	case "lo_import", "lo_export":
		return ReachOutside // files of the server
	case "pg_file_write", "pg_file_sync", "pg_file_rename", "pg_file_unlink", "pg_logdir_ls":
		return ReachOutside // adminpack
	case "pg_terminate_backend", "pg_cancel_backend", "pg_log_backend_memory_contexts":
		return ReachOutside // other sessions
	case "pg_reload_conf", "pg_rotate_logfile", "pg_rotate_logfile_old", "pg_promote",
		"pg_switch_wal", "pg_create_restore_point", "pg_wal_replay_pause",
		"pg_wal_replay_resume", "pg_backup_start", "pg_backup_stop", "pg_start_backup",
		"pg_stop_backup", "pg_export_snapshot", "pg_log_standby_snapshot":
		return ReachOutside // the server
	case "pg_create_physical_replication_slot", "pg_create_logical_replication_slot",
		"pg_copy_physical_replication_slot", "pg_copy_logical_replication_slot",
		"pg_drop_replication_slot", "pg_replication_slot_advance", "pg_sync_replication_slots",
		"pg_logical_slot_get_changes", "pg_logical_slot_get_binary_changes",
		"pg_replication_origin_advance", "pg_logical_emit_message":
		return ReachOutside // replication
	}
	for _, prefix := range [...]string{"dblink", "pg_stat_reset", "pg_stat_statements_reset",
		"postgres_fdw_disconnect"} {
		if len(name) >= len(prefix) && name[:len(prefix)] == prefix {
			return ReachOutside
		}
	}
	return ReachTransaction
}
