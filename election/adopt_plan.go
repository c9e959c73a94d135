package election

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/pgwire"
)

// The roles of an adopted server, in agentRecord and MemberStatus.
const (
	adoptedPrimary = "primary"
	adoptedStandby = "standby"
)

// adoptBackupDir is where the files as they were are kept, in the agent's state directory.
const adoptBackupDir = "before-adopt"

// planChanges makes the steps, each with all that it changes, and lists what comes later. Their
// order is that of Apply: what the next one needs first, the marker, by which an agent takes the
// directory for its own, last.
func (d *Adoption) planChanges(ctx context.Context, p *AdoptPlan) error {
	conf, err := d.conf(p)
	if err != nil {
		return err
	}
	files, err := d.planFiles(conf)
	if err != nil {
		return err
	}
	hba, err := d.planHBA()
	if err != nil {
		return err
	}
	d.planState(p)
	d.planBackup(p, append(slices.Clone(files), hba...))
	if d.srv.inRecovery {
		d.checkRoles(p)
	} else {
		d.planRoles(p)
		if d.mayMakeSlots() {
			d.planSlots(p)
		}
	}
	d.planAccess(p, hba)
	d.planConf(p, conf, files)
	if err := d.checkStandbys(ctx, p); err != nil {
		return err
	}
	d.planMark(p)
	d.planLater(p)
	if d.cfg.Restart && d.hasRestart(p) {
		p.step("restart", []AdoptChange{{AdoptNow, "restart", "PostgreSQL", "", "stopped (fast) and " +
			"started; its sessions end"}}, d.restartOrUndo(undoable(files, hba)))
	}
	if !d.srv.inRecovery && !d.mayMakeSlots() {
		d.planSlots(p) // the restart gives them room
	}
	return nil
}

func (d *Adoption) hasRestart(p *AdoptPlan) bool {
	return slices.ContainsFunc(p.Changes, func(c AdoptChange) bool {
		return c.When == AdoptRestart
	}) || d.srv.isOutside(d.a.cfg.DataDir)
}

// conf is what holdfast.conf says until the take-over: replication as it is, a standby by its own
// slot and under its own name.
func (d *Adoption) conf(p *AdoptPlan) (pgConf, error) {
	c := pgConf{syncNames: d.srv.settings["synchronous_standby_names"].value}
	if !d.srv.inRecovery {
		return c, nil
	}
	if c.upstream = d.a.memberNamed(p.Upstream); c.upstream == nil {
		return c, fmt.Errorf("member %q is not known", p.Upstream)
	}
	return c, nil
}

// adoptFile is a file with the text it will have; old is nil if there is none.
type adoptFile struct {
	path     string
	old, new []byte
	mode     os.FileMode
	changes  []AdoptChange
}

func (f *adoptFile) differs() bool { return f.old == nil || !bytes.Equal(f.old, f.new) }

func readAdoptFile(path string) (*adoptFile, error) {
	f := &adoptFile{path: path, mode: 0o600}
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	if f.old, err = os.ReadFile(path); err != nil {
		return nil, err
	}
	f.new, f.mode = f.old, info.Mode().Perm()
	return f, nil
}

// planState is the agent's own directory.
func (d *Adoption) planState(p *AdoptPlan) {
	a := d.a
	var changes []AdoptChange
	for _, dir := range []string{a.state, a.cfg.socketDir()} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			changes = append(changes, AdoptChange{AdoptNow, "directory", dir, "",
				"made, private to " + a.cfg.OSUser})
		}
	}
	if b, _ := os.ReadFile(a.passFile()); string(b) != a.passText() {
		changes = append(changes, AdoptChange{AdoptNow, "file", a.passFile(), "",
			"passwords of " + pgReplicationRole + " and " + pgRewindRole})
	}
	p.step("the agent's directory", changes, func(context.Context) error {
		if err := a.prepareDirs(); err != nil {
			return err
		}
		return a.writePassFile()
	})
}

// backupPath is where a file is kept as it was.
func (d *Adoption) backupPath(path string) string {
	name := strings.TrimPrefix(path, filepath.Clean(d.a.cfg.DataDir)+"/")
	return filepath.Join(d.a.state, adoptBackupDir,
		strings.ReplaceAll(strings.TrimPrefix(name, "/"), "/", "_"))
}

func (d *Adoption) planBackup(p *AdoptPlan, files []*adoptFile) {
	auto, err := readAdoptFile(filepath.Join(d.a.cfg.DataDir, "postgresql.auto.conf"))
	if err == nil && d.resets() != nil {
		auto.new = nil
		files = append(files, auto)
	}
	var changes []AdoptChange
	var kept []*adoptFile
	for _, f := range files {
		_, err := os.Stat(d.backupPath(f.path))
		if f.old == nil || !f.differs() || err == nil {
			continue
		}
		kept = append(kept, f)
		changes = append(changes, AdoptChange{AdoptNow, "file", d.backupPath(f.path), "",
			"copy of " + f.path + " as it is"})
	}
	p.step("copies", changes, func(context.Context) error {
		dir := filepath.Join(d.a.state, adoptBackupDir)
		if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
			return err
		}
		if err := d.a.account.own(dir); err != nil {
			return err
		}
		for _, f := range kept {
			if err := d.a.writeFile(d.backupPath(f.path), f.old, 0o600); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkRoles refuses a standby to which the roles have not come.
func (d *Adoption) checkRoles(p *AdoptPlan) {
	for _, name := range d.lackedRoles() {
		p.refuse("role %s is missing or has another password than the file in secrets_dir: "+
			"adopt the primary's host first, with the same files", name)
	}
}

// lackedRoles are those that the server has not, or with another password.
func (d *Adoption) lackedRoles() []string {
	s, sec := &d.srv, d.a.secrets
	var out []string
	for name, password := range map[string]string{pgReplicationRole: sec.replication,
		pgRewindRole: sec.rewind, pgLookupRole: sec.lookup, d.a.cfg.Superuser: sec.superuser} {
		if r, ok := s.roles[name]; !ok || !pgVerifies(r.password, password) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// adoptReplayWait bounds how long a standby's plan waits for what the primary's adoption made.
const adoptReplayWait = 10 * time.Second

// awaitRoles looks again once this standby has replayed all that its primary had: the roles that
// were made there a moment ago may be on their way.
func (d *Adoption) awaitRoles(ctx context.Context, p *AdoptPlan) error {
	i := slices.IndexFunc(d.cfg.Members, func(m Member) bool { return m.Name == p.Upstream })
	if i < 0 || !d.srv.streaming || len(d.lackedRoles()) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, adoptReplayWait)
	defer cancel()
	c, err := d.a.dialMember(ctx, d.cfg.Members[i], pgLookupRole, d.a.secrets.lookup, false)
	if err != nil {
		return err
	}
	defer pgClose(c)
	rows, err := pgQuery(ctx, c, "SELECT pg_current_wal_flush_lsn()")
	if err != nil {
		return fmt.Errorf("ask %s for its position: %w", p.Upstream, err)
	}
	lsn, err := pgwire.ParseLSN(rows[0][0])
	if err != nil {
		return fmt.Errorf("position of %s: %w", p.Upstream, err)
	}
	for {
		row, err := d.a.queryRow(ctx, "SELECT pg_last_wal_replay_lsn() >= '"+lsn.String()+"'")
		if err != nil {
			return fmt.Errorf("wait for what %s has: %w", p.Upstream, err)
		}
		if row[0] == "t" {
			d.srv, err = d.readServer(ctx)
			return err
		}
		if err := pauseFor(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("this standby has not replayed what %s has (%v) within %v: run this "+
				"again once it has", p.Upstream, lsn, adoptReplayWait)
		}
	}
}

func (d *Adoption) planRoles(p *AdoptPlan) {
	s, a := &d.srv, d.a
	var changes []AdoptChange
	add := func(name, file, password, attrs string, ok bool) {
		r, isThere := s.roles[name]
		switch {
		case !isThere:
			changes = append(changes, AdoptChange{AdoptNow, "role", name, "", "made: " + attrs +
				", password of secrets/" + file})
		case !ok || !r.login || !pgVerifies(r.password, password):
			changes = append(changes, AdoptChange{AdoptNow, "role", name, "as it is", attrs +
				", password of secrets/" + file})
		}
	}
	repl := s.roles[pgReplicationRole]
	add(pgReplicationRole, "replication", a.secrets.replication, "LOGIN REPLICATION",
		repl.replication)
	add(pgRewindRole, "rewind", a.secrets.rewind, "LOGIN", true)
	add(pgLookupRole, "lookup", a.secrets.lookup, "LOGIN, member of pg_monitor", true)
	add(a.cfg.Superuser, "superuser", a.secrets.superuser, "LOGIN SUPERUSER",
		s.roles[a.cfg.Superuser].super)
	if !s.hasFuncs {
		changes = append(changes, AdoptChange{AdoptNow, "schema", "holdfast", "",
			"functions user_secret and end_backend for " + pgLookupRole + "; " + pgRewindRole +
				" may read the server's files (pg_ls_dir, pg_stat_file, pg_read_binary_file)"})
	}
	p.step("roles", changes, func(ctx context.Context) error {
		verifier, err := pgVerifier(a.secrets.superuser)
		if err != nil {
			return err
		}
		sql := pgRoleSQL(a.cfg.Superuser, "LOGIN SUPERUSER", verifier)
		if !changesRole(changes, a.cfg.Superuser) {
			sql = ""
		}
		roles, err := a.rolesSQL()
		if err != nil {
			return err
		}
		_, err = a.exec(ctx, sql+roles)
		return err
	})
}

func changesRole(changes []AdoptChange, name string) bool {
	return slices.ContainsFunc(changes, func(c AdoptChange) bool {
		return c.Kind == "role" && c.Object == name
	})
}

// missingSlots are the members' slots that are not there.
func (d *Adoption) missingSlots() []string {
	return slices.DeleteFunc(d.a.wantSlots(d.cfg.Members), func(n string) bool {
		return slices.ContainsFunc(d.srv.slots, func(s adoptSlot) bool { return s.name == n })
	})
}

// mayMakeSlots tells that the server has room for the members' slots as it runs.
func (d *Adoption) mayMakeSlots() bool {
	room, _ := strconv.Atoi(d.srv.settings["max_replication_slots"].value)
	return d.srv.settings["wal_level"].value != "minimal" &&
		room-len(d.srv.slots) >= len(d.missingSlots())
}

func (d *Adoption) planSlots(p *AdoptPlan) {
	want := d.a.wantSlots(d.cfg.Members)
	var changes []AdoptChange
	for _, s := range d.srv.slots {
		if s.kind == "physical" && !s.active && strings.HasPrefix(s.name, "holdfast_") &&
			(s.lost || !slices.Contains(want, s.name)) {
			changes = append(changes, AdoptChange{AdoptNow, "slot", s.name, "unused", "dropped"})
		}
	}
	for _, n := range d.missingSlots() {
		changes = append(changes, AdoptChange{AdoptNow, "slot", n, "", "made (physical)"})
	}
	p.step("slots", changes, func(ctx context.Context) error {
		return d.a.ensureSlots(ctx, d.cfg.Members)
	})
}

// planMark makes the directory Holdfast's: the agent's record, then the marker.
func (d *Adoption) planMark(p *AdoptPlan) {
	a, s := d.a, &d.srv
	path := filepath.Join(a.cfg.DataDir, pgMarkerName)
	rec := a.record()
	if rec.Adopted != nil && rec.Adopted.Role == s.role() && rec.SystemID == s.systemID {
		if kind, _ := a.inspectDir(); kind == pgDirOurs {
			return
		}
	}
	upstream := a.memberNamed(p.Upstream)
	p.step("mark", []AdoptChange{
		{AdoptNow, "file", filepath.Join(a.state, agentRecordName), "", "the agent's record: " +
			"adopted as " + s.role()},
		{AdoptNow, "file", path, "", "marks the data as that of cluster " + a.cfg.Cluster},
	}, func(context.Context) error {
		err := a.updateRecord(func(r *agentRecord) {
			r.SystemID, r.Adopted = s.systemID, &agentAdopted{Role: s.role()}
			r.Members = slices.Clone(d.cfg.Members)
			r.SyncNames = s.settings["synchronous_standby_names"].value
			r.Upstream, r.Files = upstream, d.serverFiles()
		})
		if err != nil {
			return err
		}
		return a.writeMarker(a.cfg.DataDir, s.systemID)
	})
}

// planLater lists what serve does once the group has its lock.
func (d *Adoption) planLater(p *AdoptPlan) {
	a, s := d.a, &d.srv
	for _, l := range d.lostHBA() {
		p.later(AdoptChange{AdoptTakeover, "hba", l, "holds", "ends; to keep it put it into " +
			"postgres.hba"})
	}
	p.later(AdoptChange{AdoptTakeover, "file", filepath.Join(a.cfg.DataDir, "pg_hba.conf"), "",
		"written anew: the agent's lines, then those of postgres.hba"})
	p.later(AdoptChange{AdoptTakeover, "file", filepath.Clean(a.cfg.DataDir) + ".holdfast-probe", "",
		"the agent writes it each second, to know that the disk does"})
	have := s.settings["synchronous_standby_names"].value
	p0 := Policy{SyncMode: d.cfg.SyncMode, SyncWait: d.cfg.SyncWait}
	to := FullRule(p0, d.cfg.Members, a.cfg.Name).Setting()
	if s.inRecovery {
		for _, n := range d.missingSlots() {
			p.later(AdoptChange{AdoptTakeover, "slot", n, "", "made (physical)"})
		}
		if to = have; have == "" && !FullRule(p0, d.cfg.Members, p.Upstream).MayLose {
			to = SyncRule{}.stallSetting() // standbySync
		}
	}
	if to != have {
		p.later(AdoptChange{AdoptTakeover, "setting", "synchronous_standby_names", have, to})
	}
}

var connPassword = regexp.MustCompile(`password\s*=\s*('(?:[^'\\]|\\.)*'|\S+)`)

// withoutPassword hides a password of a conninfo string.
func withoutPassword(s string) string { return connPassword.ReplaceAllString(s, "password=***") }
