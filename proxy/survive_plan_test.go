package proxy_test

import (
	"slices"
	"strings"

	"holdfast/pgwire"
)

// fact is what a statement is to the contract (docs/contract.md 7): written down here once more,
// from the texts of the scripts, so that the expectation rests on nothing of the proxy.
type fact uint

const (
	factWrites fact = 1 << iota
	factBegins
	factCommits // COMMIT and PREPARE TRANSACTION, which are nothing but that in a good block
	factRollsBack
	factPrepares  // PREPARE TRANSACTION
	factSecond    // COMMIT PREPARED, ROLLBACK PREPARED
	factUnguarded // outside a block no guard can ask for its transaction id (docs/contract.md 10.15)
	factMakesTemp
	factDropsTemp
	factTakesNoID // a write that finds nothing to write
	factLooks     // a query of a table, which may be a view that writes
	factChains    // an end with AND CHAIN
	factGoesBack  // ROLLBACK TO
)

func (f fact) has(bits fact) bool { return f&bits != 0 }

// factOf reads a statement of the scripts.
func factOf(sql string) fact {
	s := strings.ToUpper(strings.TrimSpace(sql))
	var f fact
	switch word, _, _ := strings.Cut(s, " "); word {
	case "BEGIN", "START":
		return factBegins
	case "COMMIT", "END":
		f = factCommits
	case "ROLLBACK":
		f = factRollsBack
		if strings.HasPrefix(s, "ROLLBACK TO ") {
			return factGoesBack
		}
	case "INSERT", "UPDATE", "DELETE", "MERGE":
		f = factWrites
	case "NOTIFY", "CREATE", "DROP":
		f = factWrites | factUnguarded
	case "COPY":
		if strings.Contains(s, " FROM ") && !strings.Contains(s, "(") {
			return factWrites | factUnguarded
		}
	}
	switch {
	case strings.HasPrefix(s, "PREPARE TRANSACTION"):
		f = factCommits | factPrepares
	case strings.Contains(s, " PREPARED "):
		f = factSecond | factWrites
	case strings.HasSuffix(s, " AND CHAIN"):
		f |= factChains
	case strings.HasPrefix(s, "CREATE TEMP "):
		f |= factMakesTemp
	case strings.HasPrefix(s, "SELECT ") && strings.Contains(s, " FROM "):
		f |= factLooks
	case strings.HasPrefix(s, "DROP TABLE"):
		f |= factDropsTemp
	case strings.HasSuffix(s, "WHERE FALSE RETURNING A"):
		f |= factTakesNoID
	}
	if !strings.Contains(s, "TRANSACTION '") && !strings.Contains(s, "PREPARED '") &&
		f.has(factPrepares|factSecond) {
		f |= factUnguarded // its identifier is not read
	}
	return f
}

// deed is an atom of a conversation as the contract sees it.
type deed struct {
	stmts  []fact
	all    fact
	simple bool // of the simple protocol
	text   string
	mixed  bool // a Query behind a batch without a Sync
	// renews tells that the unnamed statement of before is not there any more behind it.
	renews bool
}

// conversation is a script as atoms, with what a server answers to them.
type conversation struct {
	*script
	atoms []randomAtom
	deeds []deed
	want  randomHeard
	// made and dropped are the atoms that commit a temporary table, and its end; -1: there is none.
	made, dropped int
}

// newConversation splits a script at its answers.
func newConversation(sc *script) *conversation {
	c := &conversation{script: sc, made: -1, dropped: -1}
	texts := map[string]string{} // of prepared statements
	var parts []scriptStep       // of an atom that has not ended
	for _, st := range sc.steps {
		if st.typ != 0 {
			parts = append(parts, st)
			continue
		}
		for i, msgs := range splitBatches(st.send, st.ends) {
			parts = append(parts, scriptStep{send: msgs, ends: 1})
			c.atoms = append(c.atoms, randomAtom{label: sc.name, parts: parts, joined: i > 0})
			c.deeds = append(c.deeds, deedOf(parts, texts))
			parts = nil
		}
	}
	open := fact(0)
	for i := range c.deeds {
		open |= c.deeds[i].all
		if d := &c.deeds[i]; d.all.has(factCommits) {
			if open.has(factMakesTemp) {
				c.made = i
			}
			if open.has(factDropsTemp) {
				c.dropped = i
			}
			open = 0
		}
	}
	return c
}

// splitBatches splits messages into so many parts that a server ends with ReadyForQuery. Data of a
// COPY belongs to the Query before it; the last part has all that is left.
func splitBatches(msgs []byte, n int) [][]byte {
	var out [][]byte
	from, isEnded := 0, false
	for at := 0; at < len(msgs); {
		typ, size, err := pgwire.Header(msgs[at:])
		if err != nil {
			panic(err)
		}
		if isEnded && len(out) < n-1 && !strings.ContainsRune("dcf", rune(typ)) {
			out = append(out, msgs[from:at])
			from, isEnded = at, false
		}
		isEnded = isEnded || typ == 'Q' || typ == 'S'
		at += pgwire.HeaderLen + size
	}
	return append(out, msgs[from:])
}

// deedOf reads the statements that an atom runs. texts are those of prepared statements, by name.
func deedOf(parts []scriptStep, texts map[string]string) deed {
	var d deed
	run := func(sql string) {
		for s := range strings.SplitSeq(sql, ";") {
			if strings.TrimSpace(s) != "" {
				d.stmts = append(d.stmts, factOf(s))
			}
		}
	}
	bound := ""
	isOpen := false
	for _, st := range parts {
		for msgs := st.send; len(msgs) > 0; {
			typ, size, err := pgwire.Header(msgs)
			if err != nil {
				panic(err)
			}
			body := msgs[pgwire.HeaderLen : pgwire.HeaderLen+size]
			msgs = msgs[pgwire.HeaderLen+size:]
			words := strings.SplitN(string(body), "\x00", 3)
			switch typ {
			case 'Q':
				run(words[0])
				d.text = words[0]
				d.simple, d.mixed, d.renews = true, d.mixed || isOpen, true
			case 'P':
				d.renews = d.renews || words[0] == ""
				texts[words[0]] = words[1]
			case 'B':
				bound = texts[words[1]]
			case 'E':
				run(bound)
			}
			isOpen = typ != 'Q' && typ != 'S' && (isOpen || strings.ContainsRune("PBE", rune(typ)))
		}
	}
	for _, f := range d.stmts {
		d.all |= f
	}
	return d
}

// status is the transaction status that the server says before an atom.
func (c *conversation) status(at int) byte {
	if at == 0 {
		return pgwire.TxIdle
	}
	before := c.want.atoms[at-1]
	return strings.Trim(before[len(before)-1], `Z "`)[0]
}

// groupEnd is the number of the first atom that is not in the same write as the one at a number.
func (c *conversation) groupEnd(at int) int {
	for at++; at < len(c.atoms) && c.atoms[at].joined; at++ {
	}
	return min(at, len(c.atoms))
}

// passage is what had passed on the connection that was lost, as the line saw it.
type passage struct {
	// whole atoms were answered; part are the answers to the next one.
	whole int
	part  []string
	// forwarded are the atoms of which the proxy had sent the end when the line last read from it.
	forwarded int
	// sent are the Query messages that were read of the proxy, and arrived those that were passed on.
	sent, arrived int
	// queries are the texts of those that were read; last is the type of what was read last.
	queries []string
	last    byte
}

// passageOf finds the answers of the server to its client among all that it has sent.
func (c *conversation) passageOf(k *strike) passage {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := passage{forwarded: k.forwarded, sent: k.sent, arrived: k.arrived,
		queries: k.queries, last: k.last}
	at, n := 0, 0
	for _, m := range k.delivered {
		if at < len(c.want.atoms) && c.want.atoms[at][n] == m {
			if n++; n == len(c.want.atoms[at]) {
				at, n = at+1, 0
			}
		}
	}
	p.whole = at
	if n > 0 {
		p.part = slices.Clone(c.want.atoms[at][:n])
	}
	return p
}
