package proxy

import (
	"slices"
	"strings"

	"holdfast/pgwire"
)

// setting is a run-time parameter as the session has it.
type setting struct{ name, value string }

// prepared is a named prepared statement of the session.
type prepared struct {
	sql    string
	oids   []uint32
	parsed parsed
	bySQL  bool // made by the SQL command PREPARE, of which sql is the text
	conf   bool // standard_conforming_strings when it was parsed
	lost   bool // its text was too large to be kept
	away   bool // the backend does not have it (away.go)
	// encoding is the client's when it was parsed; empty if the text is ASCII.
	encoding string
	called   *calledBy // nil until it was looked for
}

// tracker knows what has to be rebuilt on a new backend: the state that the server itself told
// after the last statement that could change it (the snapshot), and the commands that came after
// that (the overlay), which matter only if the backend is lost before it could be asked again.
// It does no I/O; the session's lock guards it.
type tracker struct {
	told      *snapshot // nil: as after the login
	overlay   *overlay  // nil: none
	txUnknown bool      // the transaction may have changed settings in an unknown way
	unknown   bool      // so did one that committed

	dirty  bool // the server has to be asked
	failed int  // how often in a row it could not say what there is
	custom map[string]struct{}

	statements    map[string]*prepared
	preparedBytes int
	hasAway       bool // one of them may be away

	// unmovable is why a new backend cannot stand in for the old one, txUnmovable why not if the
	// open transaction commits. suspect are reasons that the server is to be asked about.
	unmovable, txUnmovable, suspect reason

	loginUser string
	// loginRole is the role that the session began with, "none" if none was set, as on nearly all;
	// empty until it is known. It is what told stands for if that is nil.
	loginRole string
	// loads are the LOAD commands that were done: nothing undoes them, and nobody can be asked.
	loads []string

	// renamed are the named prepared statements that the open unit of work has changed, as they
	// were before; nil for one that was not there. No rollback undoes what they became.
	renamed map[string]*prepared
	locks   lockTable

	mark commitMark

	blame string // the statement that made it unmovable, if it is
	// temp is what was seen of temporary tables; nil is none.
	temp *tempSeen
}

// overlay is commands that came after the snapshot.
type overlay struct {
	done  []string // committed
	open  []string // of the open transaction
	bytes int      // of open
	total int      // bytes of done
}

// newTracker is of a session that has just logged in; cfg is not changed any more.
func newTracker(user string, cfg *Config) tracker {
	return tracker{loginUser: user, locks: lockTable{cfg: cfg}}
}

const (
	// customMax bounds how many custom settings are asked for.
	customMax = 320
	// overlayBytesMax bounds the text of what an open transaction has set, and that of what was set
	// since the last snapshot.
	overlayBytesMax = 64 << 10
)

// loggedIn notes the role of the session's first backend.
func (t *tracker) loggedIn(role string) {
	if t.loginRole == "" {
		t.loginRole = role
	}
}

// succeeded takes a statement that the server completed.
func (t *tracker) succeeded(e *effect) {
	before, vague, suspect := t.unmovable|t.txUnmovable, t.locks.vague, t.suspect
	t.took(e)
	if (t.unmovable|t.txUnmovable)&^before != 0 || t.locks.vague && !vague ||
		t.suspect&^suspect != 0 && before == 0 {
		t.blame = e.text
	}
}

func (t *tracker) took(e *effect) {
	t.noteSyncCommit(e)
	switch e.kind {
	case pgwire.KindSet, pgwire.KindReset, pgwire.KindSetRole,
		pgwire.KindSetSessionAuthorization, pgwire.KindListen, pgwire.KindUnlisten:
		if e.kind == pgwire.KindSet {
			t.learn(e.name)
		}
		if !e.local {
			t.dirty = true
			t.lay(e.text)
		}
	case pgwire.KindDiscard:
		t.discard(e)
	case pgwire.KindLoad:
		t.load(e.text)
	case pgwire.KindPrepare:
		t.prepare(e.name, &prepared{sql: e.text, bySQL: true, conf: e.conf,
			parsed: parsed{cls: e.cls & clsState}})
	case pgwire.KindDeallocate:
		t.deallocate(e)
	case pgwire.KindCommit:
		t.committed()
	case pgwire.KindRollback:
		t.rolledBack()
	case pgwire.KindRollbackTo:
		t.rolledBackTo()
	default:
		t.called(e)
	}
	var r reason
	switch {
	case e.cls.has(clsTemp):
		r = reasonTemp
	case e.cls.has(clsHold):
		r = reasonHold
	}
	if e.cls.has(clsAdvisory) && e.lock == nil {
		t.lostSight()
	}
	if r != 0 {
		t.txUnmovable |= r
		t.suspect |= r
		t.dirty = true
	}
}

// called takes a statement that may have changed settings, or more, by a function.
func (t *tracker) called(e *effect) {
	if !e.cls.has(clsState) {
		return
	}
	for _, name := range e.names {
		t.learn(name)
	}
	if e.isKnown && e.again == "" && !e.makes && !e.other && !e.looks {
		return // it ends with its transaction, or there is nothing
	}
	t.dirty = true
	t.txUnknown = t.txUnknown || !e.isKnown
	if e.looks {
		t.suspect |= reasonsAsked
	}
	if e.again != "" {
		t.lay(e.again)
	}
	if e.other {
		t.txUnmovable |= reasonSettings // it may be a custom one, which no view lists
	}
	if e.makes {
		t.txUnmovable |= reasonTemp | reasonHold // until it was asked for
	}
	switch e.kind {
	case pgwire.KindCall, pgwire.KindDo, pgwire.KindExecute:
		t.suspect |= reasonsAsked
	}
}

// loadsMax bounds how many libraries a session may have loaded.
const loadsMax = 32

// load keeps a LOAD, of which the rollback of its transaction undoes nothing.
func (t *tracker) load(text string) {
	switch {
	case slices.Contains(t.loads, text):
	case len(t.loads) >= loadsMax || len(text) > overlayBytesMax:
		t.unmovable |= reasonLoad
	default:
		t.loads = append(t.loads, text)
	}
}

// learn notes the name of a custom setting, which has to be asked for by name. One that was set
// for a transaction is left behind, empty, when that ends.
func (t *tracker) learn(name string) {
	if !strings.Contains(name, ".") {
		return
	}
	if _, known := t.custom[name]; known {
		return
	}
	if len(t.custom) >= customMax {
		t.unmovable |= reasonSettings
		return
	}
	if t.custom == nil {
		t.custom = make(map[string]struct{})
	}
	t.custom[name] = struct{}{}
	t.dirty = true
}

// lay keeps a command of the open transaction.
func (t *tracker) lay(text string) {
	if t.overlay == nil {
		t.overlay = &overlay{}
	}
	o := t.overlay
	if o.bytes += len(text); o.bytes > overlayBytesMax {
		o.open, t.txUnknown = nil, true
		return
	}
	o.open = append(o.open, text)
}

// laid is what lay has kept.
func (t *tracker) laid() []string {
	if t.overlay == nil {
		return nil
	}
	return t.overlay.open
}

// layDone keeps commands that are committed.
func (t *tracker) layDone(texts []string) {
	if len(texts) == 0 {
		return
	}
	if t.overlay == nil {
		t.overlay = &overlay{}
	}
	o := t.overlay
	for _, text := range texts {
		o.total += len(text)
	}
	if o.total > overlayBytesMax {
		o.done, t.unknown = nil, true
		return
	}
	o.done = append(o.done, texts...)
}

// largeStatement takes the tag of a statement that was not read, which says what it was.
func (t *tracker) largeStatement(tag string) {
	word, rest, _ := strings.Cut(tag, " ")
	switch word {
	case "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "FETCH", "MOVE", "BEGIN", "START",
		"SAVEPOINT", "RELEASE", "CLOSE", "SHOW", "LOCK", "ANALYZE", "VACUUM", "TRUNCATE":
	case "COMMIT":
		t.committed()
	case "ROLLBACK":
		t.txUnknown = true // as a whole, or to a savepoint
	case "SET", "PREPARE", "DEALLOCATE", "DISCARD":
		t.txUnmovable |= reasonOpaque
		t.dirty = true
		if word != "SET" && rest != "TRANSACTION" {
			t.blurNames()
		}
	default:
		t.dirty, t.txUnknown = true, true
		t.suspect |= reasonsAsked
	}
}

// blurNames forgets what the names of prepared statements stand for, behind one that was made or
// dropped under a name that nobody has read. No rollback undoes that.
func (t *tracker) blurNames() {
	t.unmovable |= reasonOpaque
	t.preparedBytes = 0
	for name := range t.statements {
		t.statements[name] = &prepared{parsed: opaque}
		t.preparedBytes += t.statements[name].size(name)
	}
}

// committed takes the end of a transaction that commits.
func (t *tracker) committed() {
	t.layDone(t.laid())
	t.unknown = t.unknown || t.txUnknown
	t.unmovable |= t.txUnmovable
	t.rolledBack()
}

// rolledBack forgets what the transaction did.
func (t *tracker) rolledBack() {
	t.markEnded()
	t.txUnknown, t.txUnmovable = false, 0
	if t.overlay != nil {
		t.overlay.open, t.overlay.bytes = nil, 0
	}
}

// rolledBackTo takes ROLLBACK TO SAVEPOINT: which of the commands are undone is not followed.
func (t *tracker) rolledBackTo() { t.txUnknown = t.txUnknown || len(t.laid()) > 0 }

func (t *tracker) discard(e *effect) {
	t.dirty = true
	switch e.name {
	case "all": // never in a transaction block
		*t = tracker{loginUser: t.loginUser, loginRole: t.loginRole, loads: t.loads,
			unmovable: t.unmovable & reasonLoad, dirty: true, locks: t.locks}
		if t.locks.mayHold() {
			t.locks.releasedAll()
			t.suspectLocks()
		}
	case "temp", "temporary":
		t.suspect |= reasonTemp // gone, if it commits
	}
}

func (t *tracker) deallocate(e *effect) {
	if e.all {
		for name := range t.statements {
			t.forget(name)
		}
		return
	}
	t.forget(e.name)
}

// preparedOverhead is what a statement costs beside its text.
const preparedOverhead = 64

func (p *prepared) size(name string) int {
	return len(p.sql) + len(name) + 4*len(p.oids) + preparedOverhead
}

// prepare remembers a statement; one that would not fit, for which it returns false, makes the
// session unmovable rather than being forgotten silently. Of those the names are kept, up to as
// much again; behind that a name is one that may mean anything.
func (t *tracker) prepare(name string, p *prepared) (fits bool) {
	t.forget(name)
	bound := t.locks.cfg.PreparedBytesMax
	fits = t.preparedBytes+p.size(name) <= bound
	if !fits || p.lost {
		t.unmovable |= reasonPrepared
		p = &prepared{parsed: p.parsed, bySQL: p.bySQL}
	}
	if t.preparedBytes+p.size(name) > 2*bound {
		return false
	}
	t.noteName(name)
	if t.statements == nil {
		t.statements = make(map[string]*prepared)
	}
	t.preparedBytes += p.size(name)
	t.statements[name] = p
	return fits
}

// noteName remembers what a name stood for when the unit of work began.
func (t *tracker) noteName(name string) {
	if _, known := t.renamed[name]; known {
		return
	}
	if t.renamed == nil {
		t.renamed = make(map[string]*prepared)
	}
	t.renamed[name] = t.statements[name]
}

// rewindNames makes the names what they were when the unit of work began, and returns how.
func (t *tracker) rewindNames() map[string]*prepared {
	changed := t.renamed
	t.renamed = nil
	for name, was := range changed {
		t.forget(name)
		if was != nil {
			t.prepare(name, was)
		}
	}
	t.renamed = nil
	return changed
}

// believe makes the names what a client was told that they are.
func (t *tracker) believe(names map[string]*prepared) {
	t.statements, t.preparedBytes, t.renamed = names, 0, nil
	for name, p := range names {
		t.preparedBytes += p.size(name)
	}
}

func (t *tracker) forget(name string) {
	old := t.statements[name]
	if old == nil {
		return
	}
	t.noteName(name)
	t.preparedBytes -= old.size(name)
	delete(t.statements, name)
	if was, noted := t.renamed[name]; noted && was == nil {
		delete(t.renamed, name) // it came and went
	}
}

// batchEnded takes ReadyForQuery: at 'I' what the transaction did is kept or gone.
func (t *tracker) batchEnded(status byte, rolledBack bool) {
	switch {
	case status != pgwire.TxIdle:
	case rolledBack:
		t.rolledBack()
	default:
		t.committed()
	}
}
