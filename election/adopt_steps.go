package election

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The block that adopt puts at the head of pg_hba.conf until the agent writes it anew.
const (
	adoptHBABegin = "# holdfast: begin\n"
	adoptHBAEnd   = "# holdfast: end\n"
)

// planFiles are the server's own configuration files as they will be. holdfast.conf is not among
// them: applyConf writes it.
func (d *Adoption) planFiles(pgConf) ([]*adoptFile, error) {
	if d.srv.isOutside(d.a.cfg.DataDir) {
		return d.planOutside()
	}
	var files []*adoptFile
	for _, path := range d.confFiles() {
		f, err := readAdoptFile(path)
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", path, err)
		}
		d.commentOut(f)
		if path == d.srv.file("config_file") {
			f.include("include '" + pgConfName + "'")
		}
		files = append(files, f)
	}
	return files, nil
}

// confFiles are the files that the server reads its settings from, but for those of ALTER SYSTEM
// and our own.
func (d *Adoption) confFiles() []string {
	paths := []string{d.srv.file("config_file")}
	for _, l := range d.srv.lines {
		if l.file != "" && !d.isAuto(l.file) && filepath.Base(l.file) != pgConfName &&
			!slices.Contains(paths, l.file) {
			paths = append(paths, l.file)
		}
	}
	return paths
}

// commentOut takes the lines away that would hide what the agent does after the next start.
func (d *Adoption) commentOut(f *adoptFile) {
	lines := strings.SplitAfter(string(f.new), "\n")
	for _, l := range d.srv.lines {
		if l.file != f.path || !l.isDropped() || l.line < 1 || l.line > len(lines) {
			continue
		}
		f.changes = append(f.changes, AdoptChange{AdoptNow, "file",
			f.path + ":" + strconv.Itoa(l.line), strings.TrimSpace(lines[l.line-1]), "commented out"})
		lines[l.line-1] = "# holdfast: " + lines[l.line-1]
	}
	f.new = []byte(strings.Join(lines, ""))
}

// include makes a line the last one.
func (f *adoptFile) include(line string) {
	text := strings.TrimRight(string(f.new), "\n")
	if strings.HasSuffix("\n"+text, "\n"+line) {
		return
	}
	text = strings.ReplaceAll(text, "\n"+line, "")
	f.new = []byte(text + "\n" + line + "\n")
	f.changes = append(f.changes, AdoptChange{AdoptNow, "file", f.path, "", "last line: " + line})
}

// planOutside is for configuration that is not in the data directory: the running server is led to
// holdfast.conf by one line, and the data directory gets files of its own, with what the server
// reads now, for the next start.
func (d *Adoption) planOutside() ([]*adoptFile, error) {
	dir := filepath.Clean(d.a.cfg.DataDir)
	outer, err := readAdoptFile(d.srv.file("config_file"))
	if err != nil {
		return nil, fmt.Errorf("look at the configuration: %w", err)
	}
	files := []*adoptFile{outer}
	if filepath.Dir(outer.path) != dir {
		outer.include("include '" + filepath.Join(dir, pgConfName) + "'")
		f, err := readAdoptFile(filepath.Join(dir, "postgresql.conf"))
		if err != nil {
			return nil, fmt.Errorf("look at the configuration: %w", err)
		}
		if f.new = []byte(d.flatConf()); f.differs() {
			f.changes = append(f.changes, AdoptChange{AdoptNow, "file", f.path, "",
				"for the next start: the settings of " + outer.path + " and what it includes"})
		}
		files = append(files, f)
	} else {
		d.commentOut(outer)
		outer.include("include '" + pgConfName + "'")
	}
	ident, err := readAdoptFile(filepath.Join(dir, "pg_ident.conf"))
	if err != nil {
		return nil, fmt.Errorf("look at the configuration: %w", err)
	}
	if from := d.srv.file("ident_file"); from != ident.path {
		if ident.new, err = os.ReadFile(from); err != nil {
			return nil, fmt.Errorf("look at the configuration: %w", err)
		}
		if ident.differs() {
			ident.changes = append(ident.changes, AdoptChange{AdoptNow, "file", ident.path, "",
				"for the next start: copy of " + from})
		}
		files = append(files, ident)
	}
	return files, nil
}

// flatConf is a postgresql.conf with what the server reads from its files, whatever they include.
func (d *Adoption) flatConf() string {
	_, values := d.fileValues()
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s.\n", adoptMade, d.srv.file("config_file"))
	ours := filepath.Join(filepath.Clean(d.a.cfg.DataDir), pgConfName)
	for _, name := range sortedKeys(values) {
		i := slices.IndexFunc(d.srv.lines, func(l adoptLine) bool {
			return l.name == name && !d.isAuto(l.file) && l.file != ours
		})
		if i < 0 {
			continue // only holdfast.conf has it
		}
		value := ""
		for _, l := range d.srv.lines {
			if l.name == name && !d.isAuto(l.file) && l.file != ours {
				value = l.value
			}
		}
		fmt.Fprintf(&b, "%s = %s\n", name, pgQuote(value))
	}
	return b.String() + "include '" + pgConfName + "'\n"
}

// serverFiles tells the agent of a pg_hba.conf that the running server reads elsewhere.
func (d *Adoption) serverFiles() *agentServerFiles {
	hba := d.srv.file("hba_file")
	if hba == filepath.Join(filepath.Clean(d.a.cfg.DataDir), "pg_hba.conf") {
		return nil
	}
	return &agentServerFiles{Start: pgStartOf(d.a.cfg.DataDir), HBA: hba}
}

// planHBA is pg_hba.conf with the agent's own lines at its head.
func (d *Adoption) planHBA() ([]*adoptFile, error) {
	inside := filepath.Join(filepath.Clean(d.a.cfg.DataDir), "pg_hba.conf")
	running := d.srv.file("hba_file")
	f, err := readAdoptFile(running)
	if err != nil || f.old == nil {
		return nil, fmt.Errorf("look at %s: %w", running, err)
	}
	block := adoptHBABegin + d.a.renderPeers() + adoptHBAEnd
	f.new = []byte(block + withoutBlock(string(f.old)))
	if f.differs() {
		f.changes = append(f.changes, AdoptChange{AdoptNow, "hba", running, "", "the agent's lines at " +
			"its head: " + strings.Join(hbaLines(block), "; ")})
	}
	if running == inside {
		return []*adoptFile{f}, nil
	}
	c, err := readAdoptFile(inside)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", inside, err)
	}
	if c.new = f.new; c.differs() {
		c.changes = append(c.changes, AdoptChange{AdoptNow, "file", inside, "",
			"for the next start: copy of " + running})
	}
	return []*adoptFile{f, c}, nil
}

func withoutBlock(text string) string {
	before, rest, ok1 := strings.Cut(text, adoptHBABegin)
	_, after, ok2 := strings.Cut(rest, adoptHBAEnd)
	if !ok1 || !ok2 {
		return text
	}
	return before + after
}

// hbaLines are the lines of a pg_hba.conf that say something, with single spaces.
func hbaLines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.Join(strings.Fields(line), " ")
		if line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out
}

// lostHBA are the lines that do not hold any more once the agent has written the file.
func (d *Adoption) lostHBA() []string {
	b, err := os.ReadFile(d.srv.file("hba_file"))
	if err != nil {
		return nil
	}
	kept := hbaLines(strings.Join(d.a.cfg.HBA, "\n"))
	return slices.DeleteFunc(hbaLines(withoutBlock(string(b))), func(l string) bool {
		return slices.Contains(kept, l)
	})
}

// planAccess lets the agents in. The new file is taken back if the server does not take it.
func (d *Adoption) planAccess(p *AdoptPlan, files []*adoptFile) {
	var changes []AdoptChange
	for _, f := range files {
		changes = append(changes, f.changes...)
	}
	if len(changes) > 0 {
		p.limit("local logins of role %s need its password (secrets/superuser) from now on, whatever "+
			"pg_hba.conf said; give postgres.superuser a name of its own if that is in the way",
			d.a.cfg.Superuser)
	}
	p.step("access", changes, func(ctx context.Context) error {
		if err := d.writeFiles(files); err != nil {
			return err
		}
		err := d.checkHBA(ctx)
		if err == nil {
			err = d.a.reloadHBA(ctx)
		}
		if err == nil {
			return nil
		}
		return errors.Join(err, d.takeBack(ctx, files))
	})
}

func (d *Adoption) checkHBA(ctx context.Context) error {
	rows, err := d.a.exec(ctx, `SELECT line_number, error FROM pg_hba_file_rules
		WHERE error IS NOT NULL LIMIT 1`)
	if err == nil && len(rows) > 0 {
		err = fmt.Errorf("pg_hba.conf, line %s: %s", rows[0][0], rows[0][1])
	}
	return err
}

func (d *Adoption) writeFiles(files []*adoptFile) error {
	for _, f := range files {
		if !f.differs() {
			continue
		}
		if err := d.a.writeFile(realPath(f.path), f.new, f.mode); err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	return nil
}

// realPath is where a file is that a symbolic link stands for: the link was not listed, it stays.
func realPath(path string) string {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		return to
	}
	return path
}

// adoptUndoWait bounds the way back, which is gone to the end although the command was ended.
const adoptUndoWait = 10 * time.Second

// takeBack writes the files as they were and has the server read them.
func (d *Adoption) takeBack(ctx context.Context, files []*adoptFile) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), adoptUndoWait)
	defer cancel()
	var errs []error
	for _, f := range files {
		switch {
		case f.old == nil:
			if err := os.Remove(f.path); err != nil && !os.IsNotExist(err) {
				errs = append(errs, err)
			}
		default:
			errs = append(errs, d.a.writeFile(realPath(f.path), f.old, f.mode))
		}
	}
	_, err := d.a.exec(ctx, "SELECT pg_reload_conf()")
	return errors.Join(append(errs, err)...)
}

// resets are the entries of ALTER SYSTEM that would hide what only the agent sets.
func (d *Adoption) resets() []AdoptChange {
	auto, _ := d.fileValues()
	var out []AdoptChange
	for _, name := range sortedKeys(auto) {
		if d.isReset(name) {
			out = append(out, AdoptChange{AdoptNow, "alter-system", name,
				withoutPassword(auto[name]), "reset"})
		}
	}
	return out
}

// planConf is holdfast.conf, what leads to it, and what each setting becomes.
func (d *Adoption) planConf(p *AdoptPlan, conf pgConf, files []*adoptFile) {
	a := d.a
	text, err := a.renderConf(conf)
	if err != nil {
		p.refuse("%v", err)
		return
	}
	path := filepath.Join(a.cfg.DataDir, pgConfName)
	var changes []AdoptChange
	for _, f := range files {
		changes = append(changes, f.changes...)
	}
	old, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(old), text+confSeqPrefix) {
		changes = append(changes, AdoptChange{AdoptNow, "file", path, "", "the settings that the " +
			"agent makes"})
	}
	resets := d.resets()
	changes = append(changes, resets...)
	for _, c := range d.planSettings(p, text) {
		if c.Object == "primary_conninfo" {
			c.From = withoutPassword(c.From)
		}
		if c.When == AdoptRestart {
			p.later(c)
			continue
		}
		changes = append(changes, c)
	}
	auto, err := readAdoptFile(filepath.Join(a.cfg.DataDir, "postgresql.auto.conf"))
	if err != nil {
		p.refuse("postgresql.auto.conf: %v", err)
		return
	}
	p.step("configuration", changes, func(ctx context.Context) error {
		err := d.applyFiles(ctx, conf, files, resets)
		if err == nil {
			return nil
		}
		// A standby that does not stream any more is worth less than one that is not adopted, and
		// files that a server did not take would keep it from its next start.
		own := &adoptFile{path: path, mode: 0o600}
		if old != nil {
			own.old = old
		}
		return errors.Join(err, d.takeBack(ctx, append(slices.Clone(files), auto, own)))
	})
}

func (d *Adoption) applyFiles(ctx context.Context, conf pgConf, files []*adoptFile,
	resets []AdoptChange,
) error {
	a := d.a
	if err := d.writeFiles(files); err != nil {
		return err
	}
	a.verifiedSeq = ""
	if err := a.applyConf(ctx, conf); err != nil {
		return err
	}
	for _, c := range resets {
		if _, err := a.exec(ctx, "ALTER SYSTEM RESET "+c.Object); err != nil {
			return fmt.Errorf("reset %s: %w", c.Object, err)
		}
	}
	if _, err := a.exec(ctx, "SELECT pg_reload_conf()"); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	if conf.upstream == nil {
		return nil
	}
	return d.waitStreams(ctx, conf.upstream)
}

// adoptStreamWait bounds the wait for the walreceiver after it was re-pointed.
const adoptStreamWait = 20 * time.Second

// waitStreams waits until the standby streams by its own slot.
func (d *Adoption) waitStreams(ctx context.Context, up *Member) error {
	ctx, cancel := context.WithTimeout(ctx, adoptStreamWait)
	defer cancel()
	for {
		rows, err := d.a.exec(ctx, `SELECT slot_name, status,
			sender_host || ':' || sender_port FROM pg_stat_wal_receiver`)
		if err == nil && len(rows) == 1 && rows[0][0] == SlotName(d.a.cfg.Name) &&
			rows[0][1] == "streaming" {
			return nil
		}
		if serr := pauseFor(ctx, 50*time.Millisecond); serr != nil {
			return errors.Join(fmt.Errorf("the standby does not stream from %s (%s) as %s by slot %s "+
				"within %v: its old settings are back; see its log", up.Name, up.Postgres,
				pgReplicationRole, SlotName(d.a.cfg.Name), adoptStreamWait), err)
		}
	}
}
