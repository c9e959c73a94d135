package election

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// adoptMade begins a postgresql.conf that adopt made for the next start.
const adoptMade = "# Made by holdfast adopt from "

// restartOrUndo restarts the server, which is only done when it was asked for. If it does not come
// up with what the adoption made of it, it is started as it was before, and what the adoption
// changed is taken back (DESIGN.md I80). The command's end does not end that.
func (d *Adoption) restartOrUndo(files []*adoptFile) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx = context.WithoutCancel(ctx)
		// The failed start writes this file anew.
		opts, err := os.ReadFile(filepath.Join(d.a.cfg.DataDir, "postmaster.opts"))
		if err != nil {
			return fmt.Errorf("how the server was started is not known: %w", err)
		}
		if _, err := d.a.stopServer(ctx, d.a.cfg.StopTimeout); err != nil {
			return err
		}
		err = d.a.startServer(ctx)
		if err == nil {
			return nil
		}
		if pid, _, perr := d.a.postmaster(); perr != nil || pid != 0 {
			if perr != nil || errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("%w; it may still come up: nothing was taken back", err)
			}
			if _, serr := d.a.stopServer(ctx, d.a.cfg.StopTimeout); serr != nil {
				return errors.Join(err, serr)
			}
		}
		if uerr := d.undo(ctx, string(opts), files); uerr != nil {
			return errors.Join(err, fmt.Errorf("way back: %w; the files as they were are in %s", uerr,
				filepath.Join(d.a.state, adoptBackupDir)))
		}
		return fmt.Errorf("%w; the server runs as before, and what was changed is taken back", err)
	}
}

// undo takes back what an adoption changed and starts the stopped server by the text of its
// postmaster.opts.
func (d *Adoption) undo(ctx context.Context, opts string, files []*adoptFile) error {
	if err := d.undoFiles(files); err != nil {
		return err
	}
	program, args, ok := strings.Cut(strings.TrimSpace(opts), ` "`)
	if !ok {
		return fmt.Errorf("postmaster.opts has no arguments: %q", opts)
	}
	// As `pg_ctl restart` does it: the arguments are quoted there for a shell.
	args = strings.TrimPrefix(`"`+args, `"-D" "`+d.a.cfg.DataDir+`"`) // pg_ctl puts it there
	_, err := d.a.run(ctx, "pg_ctl", "start", "-s", "-w", "-t", "60", "-D", d.a.cfg.DataDir, "-p",
		program, "-l", d.a.logFile(), "-o", strings.TrimSpace(args))
	if err != nil || d.srv.inRecovery {
		return err
	}
	return d.undoCatalog(ctx)
}

// undoFiles writes the configuration as it was before the adoption, also one that an earlier run
// began, and takes the marks away by which an agent would take the data for its own.
func (d *Adoption) undoFiles(files []*adoptFile) error {
	dir := filepath.Clean(d.a.cfg.DataDir)
	errs := []error{d.undoAuto()}
	for _, f := range files {
		errs = append(errs, d.undoFile(f))
	}
	for _, path := range []string{filepath.Join(dir, pgConfName), filepath.Join(dir, pgMarkerName),
		filepath.Join(d.a.state, agentRecordName), d.a.passFile()} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
	}
	d.a.mu.Lock()
	d.a.rec = agentRecord{V: Version, Cluster: d.a.cfg.Cluster}
	d.a.mu.Unlock()
	return errors.Join(errs...)
}

// undoFile keeps what was changed in the file by others since an earlier run. What lies in the data
// directory beside configuration that is elsewhere was not read by the server, and becomes what it
// was.
func (d *Adoption) undoFile(f *adoptFile) error {
	kept, err := os.ReadFile(d.backupPath(f.path))
	if err != nil && !os.IsNotExist(err) {
		return err // to take it for "none" would remove the file
	}
	isKept := err == nil
	isMade := f.old == nil || strings.HasPrefix(string(f.old), adoptMade)
	isBeside := d.srv.isOutside(d.a.cfg.DataDir) && !d.isRead(f.path)
	switch {
	case isKept && (isMade || isBeside):
		return d.a.writeFile(f.path, kept, f.mode)
	case isMade:
		if err := os.Remove(f.path); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	}
	return d.a.writeFile(realPath(f.path), []byte(unadopted(string(f.old))), f.mode)
}

// isRead tells whether the running server reads a file of configuration.
func (d *Adoption) isRead(path string) bool {
	return slices.ContainsFunc([]string{"config_file", "hba_file", "ident_file"},
		func(name string) bool { return d.srv.file(name) == path })
}

// unadopted is the text of a configuration file without what adopt puts there.
func unadopted(text string) string {
	var b strings.Builder
	for line := range strings.Lines(withoutBlock(text)) {
		file, isInclude := strings.CutPrefix(strings.TrimSpace(line), "include '")
		if isInclude && filepath.Base(strings.TrimSuffix(file, "'")) == pgConfName {
			continue
		}
		b.WriteString(strings.TrimPrefix(line, "# holdfast: "))
	}
	return b.String()
}

// undoAuto puts back what was reset in postgresql.auto.conf: the server is stopped, so that ALTER
// SYSTEM cannot. What others have set there since stays.
func (d *Adoption) undoAuto() error {
	path := filepath.Join(d.a.cfg.DataDir, "postgresql.auto.conf")
	kept, err := os.ReadFile(d.backupPath(path))
	if os.IsNotExist(err) {
		return nil // nothing was reset
	}
	if err != nil {
		return err
	}
	f, err := readAdoptFile(path)
	if err != nil {
		return err
	}
	_, have := parseConf(string(f.old))
	text := string(f.old)
	for line := range strings.Lines(string(kept)) {
		names, _ := parseConf(line)
		if len(names) == 1 {
			if _, ok := have[names[0]]; !ok {
				text += line
			}
		}
	}
	return d.a.writeFile(path, []byte(text), f.mode)
}

// undoCatalog takes back what this run made in the catalogue. Roles and slots of an earlier run
// stay: another member may use them.
func (d *Adoption) undoCatalog(ctx context.Context) error {
	if err := d.login(ctx); err != nil {
		return err
	}
	if _, err := d.a.exec(ctx, "SET default_transaction_read_only = off"); err != nil {
		return err
	}
	s := &d.srv
	sql := "SET synchronous_commit = local;\n"
	if !s.hasSchema {
		sql += "DROP SCHEMA IF EXISTS holdfast CASCADE;\n"
	}
	for _, name := range []string{pgReplicationRole, pgRewindRole, pgLookupRole,
		d.a.cfg.Superuser} {
		sql += undoRoleSQL(name, s.roles)
	}
	if _, err := d.a.exec(ctx, sql); err != nil {
		return fmt.Errorf("take roles back: %w", err)
	}
	if !d.mayMakeSlots() {
		return nil
	}
	for _, name := range d.missingSlots() {
		if _, err := d.a.exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM "+
			"pg_replication_slots WHERE slot_name = "+pgLiteral(name)); err != nil {
			return fmt.Errorf("drop slot %s: %w", name, err)
		}
	}
	return nil
}

// undoRoleSQL makes a role what it was, or drops it if there was none.
func undoRoleSQL(name string, roles map[string]adoptRole) string {
	ident := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
	r, isThere := roles[name]
	if !isThere {
		return "DROP OWNED BY " + ident + "; DROP ROLE " + ident + ";\n"
	}
	attrs := []string{"NOSUPERUSER", "NOREPLICATION", "NOLOGIN"}
	for i, has := range []bool{r.super, r.replication, r.login} {
		if has {
			attrs[i] = strings.TrimPrefix(attrs[i], "NO")
		}
	}
	password := "NULL"
	if r.password != "" {
		password = pgLiteral(r.password)
	}
	return "ALTER ROLE " + ident + " WITH " + strings.Join(attrs, " ") + " PASSWORD " + password +
		";\n"
}

// undoable are the files that restartOrUndo goes back to.
func undoable(files, hba []*adoptFile) []*adoptFile {
	out := slices.Clone(files)
	for _, f := range hba {
		if !slices.ContainsFunc(out, func(o *adoptFile) bool { return o.path == f.path }) {
			out = append(out, f)
		}
	}
	return out
}
