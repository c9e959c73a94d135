package pgwire

// decide sets the kind and the details of the statement from its first tokens.
func (p *classifier) decide(h []token) {
	s := &p.s
	if h[0].kind == tokOpen {
		s.Kind = KindSelect // (SELECT ...)
		s.harmless = false
		return
	}
	if h[0].kind != tokWord {
		s.Kind = KindUnknown
		return
	}
	is := func(i int, w string) bool {
		return i < len(h) && h[i].kind == tokWord && fold(p.text(h[i]), w)
	}
	switch {
	case is(0, "select"), is(0, "values"), is(0, "table"), is(0, "with"):
		s.Kind = KindSelect
		s.CreatesTemp = p.seen.temp || p.seen.into && p.seen.pgTemp
		if is(0, "with") {
			s.HasSetConfig = s.HasSetConfig || p.seen.pgSettings
			if !s.CreatesTemp && withWrites(p.sql[s.Start:s.End], p.conforming) {
				s.Kind = KindWrite
			}
		}
	case is(0, "insert"), is(0, "update"), is(0, "delete"), is(0, "merge"):
		s.Kind = KindWrite
		s.HasSetConfig = s.HasSetConfig || p.seen.pgSettings
	case p.decideTransaction(h, is), p.decideSetting(h, is), p.decidePrepared(h, is),
		p.decideCursor(h, is):
	case is(0, "copy"):
		s.Kind = KindCopy
	case is(0, "call"):
		s.Kind = KindCall
	case is(0, "do"):
		s.Kind = KindDo
	case is(0, "explain"):
		s.Kind = KindExplain // with ANALYZE it does what it explains
		s.CreatesTemp = p.seen.temp || p.seen.pgTemp
		s.HasSetConfig = s.HasSetConfig || p.seen.pgSettings
	case is(0, "lock"):
		s.Kind = KindLock
	case is(0, "load"):
		s.Kind = KindLoad
	default:
		s.Kind = KindUtility
		s.CreatesTemp = is(0, "create") && (p.seen.temp || p.seen.pgTemp)
	}
}

// decideTransaction reads the commands that control transactions.
func (p *classifier) decideTransaction(h []token, is func(int, string) bool) bool {
	s := &p.s
	// An optional WORK or TRANSACTION.
	i := 1
	if is(1, "work") || is(1, "transaction") {
		i = 2
	}
	switch {
	case is(0, "begin"), is(0, "start") && is(1, "transaction"):
		s.Kind = KindBegin
	case is(0, "commit") && is(1, "prepared"):
		s.Kind = KindCommitPrepared
		s.Name = p.nameAt(h, 2)
	case is(0, "rollback") && is(1, "prepared"):
		s.Kind = KindRollbackPrepared
		s.Name = p.nameAt(h, 2)
	case is(0, "commit"), is(0, "end"):
		s.Kind = KindCommit
		s.Chain = is(i, "and") && is(i+1, "chain")
	case is(0, "rollback") && is(i, "to"), is(0, "abort") && is(i, "to"):
		s.Kind = KindRollbackTo
		if i++; is(i, "savepoint") && i+1 < len(h) {
			i++
		}
		s.Name = p.nameAt(h, i)
	case is(0, "rollback"), is(0, "abort"):
		s.Kind = KindRollback
		s.Chain = is(i, "and") && is(i+1, "chain")
	case is(0, "savepoint"):
		s.Kind = KindSavepoint
		s.Name = p.nameAt(h, 1)
	case is(0, "release"):
		s.Kind = KindRelease
		if i = 1; is(1, "savepoint") && len(h) > 2 {
			i = 2
		}
		s.Name = p.nameAt(h, i)
	case is(0, "prepare") && is(1, "transaction") && len(h) > 2 && h[2].kind == tokString:
		s.Kind = KindPrepareTransaction
		s.Name = p.nameAt(h, 2)
	default:
		return false
	}
	switch s.Kind {
	case KindBegin, KindCommit, KindRollback:
		if len(h) > 1 && !isWholeTransaction(p.sql[s.Start:s.End], p.conforming) {
			s.Kind, s.Chain = KindUnknown, false
		}
	}
	return true
}

// decideSetting reads the commands that change the session.
func (p *classifier) decideSetting(h []token, is func(int, string) bool) bool {
	s := &p.s
	switch {
	case is(0, "set"):
		p.decideSet(h, is)
	case is(0, "reset"):
		s.Kind, s.All = KindReset, is(1, "all")
		switch {
		case is(1, "session") && is(2, "authorization"):
			s.Kind = KindSetSessionAuthorization
		case is(1, "time") && is(2, "zone"):
			s.Name = "timezone"
		case is(1, "transaction") && is(2, "isolation"):
			s.Name = "transaction_isolation"
		default:
			s.Name = p.settingAt(h, 1)
			p.special()
		}
	case is(0, "show"):
		s.Kind = KindShow
	case is(0, "discard"):
		s.Kind = KindDiscard
		s.Name = p.nameAt(h, 1)
	case is(0, "listen"):
		s.Kind = KindListen
		s.Name = p.nameAt(h, 1)
	case is(0, "unlisten"):
		s.Kind = KindUnlisten
		s.Name = p.nameAt(h, 1)
		s.All = s.Name == "*" && h[1].kind == tokOperator
	case is(0, "notify"):
		s.Kind = KindNotify
		s.Name = p.nameAt(h, 1)
	default:
		return false
	}
	return true
}

// decideSet reads SET in its many forms. A keyword with a dot behind it is a setting's name, as
// in SET session.user_id = '5'.
func (p *classifier) decideSet(h []token, is func(int, string) bool) {
	s := &p.s
	key := func(i int, w string) bool {
		return is(i, w) && (i+1 >= len(h) || h[i+1].kind != tokDot && !is(i+1, "to") &&
			!p.isOperator(h[i+1], '='))
	}
	i := 1
	s.Local = key(1, "local")
	if s.Local || key(1, "session") && !is(2, "authorization") && !is(2, "characteristics") {
		i = 2
	}
	switch {
	case key(1, "constraints"):
		s.Kind, s.fires = KindSetTransaction, true
	case key(i, "transaction"):
		s.Kind = KindSetTransaction
	case key(i, "session") && is(i+1, "characteristics"):
		s.Kind, s.Name = KindSet, "default_transaction_isolation"
		if is(i+4, "read") {
			s.Name = "default_transaction_read_only"
		} else if is(i+4, "deferrable") || is(i+4, "not") {
			s.Name = "default_transaction_deferrable"
		}
	case key(i, "session") && is(i+1, "authorization"):
		s.Kind = KindSetSessionAuthorization
	case key(i, "role"):
		s.Kind = KindSetRole
	case is(i, "time") && is(i+1, "zone"):
		s.Kind, s.Name = KindSet, "timezone"
	case is(i, "xml") && is(i+1, "option"):
		s.Kind, s.Name = KindSet, "xmloption"
	case key(i, "names"):
		s.Kind, s.Name = KindSet, "client_encoding"
	case key(i, "schema"):
		s.Kind, s.Name = KindSet, "search_path"
	default:
		s.Kind, s.Name = KindSet, p.settingAt(h, i)
		p.special()
	}
}

// isOperator tells whether the token is that character.
func (p *classifier) isOperator(t token, c byte) bool {
	return t.kind == tokOperator && p.sql[t.start] == c
}

// special gives the settings that have commands of their own the kind of those.
func (p *classifier) special() {
	s := &p.s
	switch s.Name {
	case "role":
		s.Kind, s.Name = KindSetRole, ""
	case "session_authorization":
		s.Kind, s.Name = KindSetSessionAuthorization, ""
	case "transaction_isolation", "transaction_read_only", "transaction_deferrable":
		if s.Kind == KindSet {
			s.Kind, s.Name = KindSetTransaction, ""
		}
	}
}

// decidePrepared reads the commands about prepared statements.
func (p *classifier) decidePrepared(h []token, is func(int, string) bool) bool {
	s := &p.s
	switch {
	case is(0, "prepare"):
		s.Kind, s.Name = KindPrepare, p.nameAt(h, 1)
	case is(0, "execute"):
		s.Kind, s.Name = KindExecute, p.nameAt(h, 1)
	case is(0, "deallocate"):
		s.Kind = KindDeallocate
		i := 1
		if is(1, "prepare") && len(h) > 2 {
			i = 2
		}
		s.All = is(i, "all")
		s.Name = p.nameAt(h, i)
	default:
		return false
	}
	return true
}

// decideCursor reads the commands about cursors.
func (p *classifier) decideCursor(h []token, is func(int, string) bool) bool {
	s := &p.s
	switch {
	case is(0, "declare"):
		s.Kind, s.Name = KindDeclare, p.nameAt(h, 1)
		s.WithHold = p.seen.withHold
	case is(0, "fetch"), is(0, "move"):
		s.Kind = KindFetch
	case is(0, "close"):
		s.Kind, s.Name = KindCloseCursor, p.nameAt(h, 1)
	default:
		return false
	}
	return true
}

func (p *classifier) nameAt(h []token, i int) string {
	if i >= len(h) {
		return ""
	}
	return p.name(h[i])
}

// settingAt reads the name of a setting, which may have a dot in it and has no case, quoted or
// not.
func (p *classifier) settingAt(h []token, i int) string {
	name := p.nameAt(h, i)
	for i+2 < len(h) && h[i+1].kind == tokDot {
		name += "." + p.name(h[i+2])
		i += 2
	}
	return lower(name)
}
