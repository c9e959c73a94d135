package election

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The versions of PostgreSQL that are supported, as server_version_num / 10000.
const (
	adoptMajorMin = 13
	adoptMajorMax = 18
)

// checkServer refuses what cannot be taken over as it runs, and tells what will be limited.
func (d *Adoption) checkServer(ctx context.Context, p *AdoptPlan) {
	s, a := &d.srv, d.a
	major := s.version / 10000
	if major < adoptMajorMin || major > adoptMajorMax {
		p.refuse("PostgreSQL %d: %d to %d are supported", major, adoptMajorMin, adoptMajorMax)
		return
	}
	if bin := a.binMajor(ctx); bin != major {
		p.refuse("the programs in %s are of PostgreSQL %d, the server is %d: set postgres.bin_dir",
			a.bin, bin, major)
	}
	dir := s.settings["data_directory"].value
	if filepath.Clean(dir) != filepath.Clean(a.cfg.DataDir) {
		p.refuse("the server's data_directory is %s, postgres.data_dir says %s: name it the same way",
			dir, a.cfg.DataDir)
	}
	if s.settings["fsync"].value != "on" {
		p.limit("fsync is off until the reload: what was committed before may not be durable")
	}
	if s.hasSchema && s.roles[pgLookupRole] == (adoptRole{}) {
		p.refuse("there is a schema holdfast that is not Holdfast's: rename it")
	}
	d.checkReach(p)
	if !s.checksums && s.settings["wal_log_hints"].value != "on" {
		p.limit("neither data checksums nor wal_log_hints: until wal_log_hints is on, at the next " +
			"start, a former primary cannot be rewound and is cloned instead")
	}
	if len(s.md5Roles) > 0 {
		p.limit("%s", md5Limit(s.md5Roles))
	}
	if s.tablespaces > 0 {
		p.limit("there are %d tablespaces: a clone puts them at the same paths, which must be empty "+
			"on that host", s.tablespaces)
	}
	if isMountPoint(a.cfg.DataDir) {
		p.limit("%s is a mount point: this member can be rewound, but not cloned anew in its place",
			a.cfg.DataDir)
	}
	for _, sl := range s.slots {
		if sl.kind == "physical" && !strings.HasPrefix(sl.name, "holdfast_") {
			p.limit("slot %s is not Holdfast's and keeps WAL: drop it once nobody uses it (SELECT "+
				"pg_drop_replication_slot('%s'))", sl.name, sl.name)
		}
	}
	if s.inRecovery && !s.streaming {
		p.refuse("this standby does not stream from anybody: put its replication right first")
	}
}

// md5Named is how many roles with md5 passwords are named.
const md5Named = 20

// md5Limit tells what roles with md5 passwords need to log in through the proxies.
func md5Limit(roles []string) string {
	names := strings.Join(roles[:min(len(roles), md5Named)], ", ")
	if more := len(roles) - md5Named; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("%d roles have md5 passwords, by which they can log in through the proxies "+
		"only where proxy.hba has a rule of method md5 for them; else their passwords are to be "+
		"set anew, with password_encryption = 'scram-sha-256': %s", len(roles), names)
}

// checkReach looks at what the other members need of this server from now on.
func (d *Adoption) checkReach(p *AdoptPlan) {
	s, a := &d.srv, d.a
	need := func(ok bool, format string, args ...any) {
		if !ok && !d.cfg.Restart {
			p.refuse(format+" (or let it be restarted now: --restart)", args...)
		}
	}
	host, port, _ := net.SplitHostPort(a.cfg.Listen)
	need(s.settings["port"].value == port, "the server's port is %s, postgres.listen says %s",
		s.settings["port"].value, port)
	if host == "" {
		for _, m := range d.cfg.Members {
			if m.Name == a.cfg.Name {
				host, _, _ = net.SplitHostPort(m.Postgres)
			}
		}
	}
	listen := s.settings["listen_addresses"].value
	need(listensAt(listen, host), "the server listens at %q, not at %s", listen, host)
	need(s.settings["wal_level"].value != "minimal", "wal_level is minimal: standbys need replica")
	others := len(a.wantSlots(d.cfg.Members))
	senders, _ := strconv.Atoi(s.settings["max_wal_senders"].value)
	need(senders > others, "max_wal_senders is %d, %d are needed", senders, others+1)
	need(d.mayMakeSlots() || s.settings["wal_level"].value == "minimal", "max_replication_slots "+
		"is %s and %d are in use: %d more are needed", s.settings["max_replication_slots"].value,
		len(s.slots), len(d.missingSlots()))
	if dir := a.cfg.socketDir(); dir == filepath.Clean(d.socketDir()) {
		p.refuse("postgres.socket_dir %s would be made private to the agent, and others use it: "+
			"leave it empty", dir)
	}
}

func (d *Adoption) socketDir() string {
	dir, _ := d.a.controlAddress()
	return dir
}

// listensAt tells that listen_addresses covers a host.
func listensAt(listen, host string) bool {
	ip := net.ParseIP(host)
	for _, l := range strings.Split(listen, ",") {
		l = strings.TrimSpace(l)
		other := net.ParseIP(l)
		switch {
		case l == "*", l != "" && l == host:
			return true
		case ip == nil:
		case l == "0.0.0.0" && ip.To4() != nil, l == "::":
			return true
		case l == "localhost" && ip.IsLoopback(), other != nil && other.Equal(ip):
			return true
		}
	}
	return false
}

// isMountPoint tells that a directory is on another file system than what is above it.
func isMountPoint(dir string) bool {
	here, err1 := deviceOf(dir)
	above, err2 := deviceOf(filepath.Dir(filepath.Clean(dir)))
	return err1 == nil && err2 == nil && here != above
}

// adoptManagers are the programs that would go on managing the server beside Holdfast.
var adoptManagers = []string{"patroni", "repmgrd", "stolon-keeper", "pg_autoctl"}

// adoptManagerApps are names that managers give their sessions.
var adoptManagerApps = regexp.MustCompile(
	`(?i)^(patroni|repmgrd|stolon|pg_auto_failover|pgautoctl)`)

// checkManagers refuses while another manager runs: two would promote, restart and configure one
// server. It is looked for by its process, its sessions, and its REST interface, since it may run
// in a container of its own.
func (d *Adoption) checkManagers(ctx context.Context, p *AdoptPlan) {
	const remedy = ": stop it first (Patroni: `patronictl pause`, then stop it on every host; " +
		"PostgreSQL goes on running)"
	pids, err := findManagers(d.a.cfg.DataDir)
	if err != nil {
		p.refuse("it cannot be told whether another manager runs: %v", err)
	}
	for _, m := range pids {
		p.refuse("%s%s", m, remedy)
	}
	for _, app := range d.srv.apps {
		if adoptManagerApps.MatchString(app) {
			p.refuse("a manager has a session in the server (%q)%s", app, remedy)
		}
	}
	urls := d.cfg.ManagerURLs
	if urls == nil {
		host, _, _ := net.SplitHostPort(d.a.cfg.Listen)
		for _, h := range slices.Compact([]string{"127.0.0.1", host}) {
			urls = append(urls, "http://"+net.JoinHostPort(h, "8008"),
				"https://"+net.JoinHostPort(h, "8008"))
		}
	}
	for _, u := range urls {
		if id := patroniAt(ctx, u); id != "" && id == d.srv.systemID {
			p.refuse("Patroni answers at %s for this server%s", u, remedy)
			break
		}
	}
	if unit := unitOf(d.srv.pid); unit != "" {
		p.limit("the server was started by %s: disable that unit (do not stop it now, that may stop "+
			"the server), else it starts the server beside Holdfast when the host boots", unit)
	}
}

// findManagers looks for managers' processes that may be this data directory's.
func findManagers(dataDir string) ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(b) == 0 {
			continue
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if name := managerOf(args); name != "" && mayManage(pid, args, dataDir) {
			out = append(out, fmt.Sprintf("%s runs (pid %d)", name, pid))
		}
	}
	return out, nil
}

// managerOf names the manager that a command line runs: as a program, as a script of an
// interpreter, or as its module.
func managerOf(args []string) string {
	for i, arg := range args[:min(len(args), 4)] {
		name := filepath.Base(arg)
		isFirst := i == 0 || strings.HasPrefix(filepath.Base(args[0]), "python")
		if isFirst && (slices.Contains(adoptManagers, name) || arg == "patroni.__main__") {
			return name
		}
	}
	return ""
}

var (
	managerDir = regexp.MustCompile(`(?m)^\s*['"]?(?:data_dir|data_directory)['"]?\s*[:=]\s*(.+)$`)
	managerEnv = regexp.MustCompile(`(?:^|\x00)(?:PATRONI_POSTGRESQL_DATA_DIR|PGDATA)=([^\x00]+)`)
)

// mayManage tells that the manager is not known to be of another data directory: its configuration
// or its environment would have to name that one.
func mayManage(pid int, args []string, dataDir string) bool {
	var named []string
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if m := managerEnv.FindSubmatch(env); m != nil {
		named = append(named, string(m[1]))
	}
	cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	for _, arg := range args[1:] {
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(cwd, arg)
		}
		info, err := os.Stat(arg)
		if err != nil || !info.Mode().IsRegular() || info.Size() > 1<<20 {
			continue
		}
		b, _ := os.ReadFile(arg)
		for _, m := range managerDir.FindAllSubmatch(b, -1) {
			named = append(named, strings.Trim(strings.TrimSpace(string(m[1])), `'"`))
		}
	}
	want, err := os.Stat(dataDir)
	for _, dir := range named {
		if got, err2 := os.Stat(dir); err == nil && err2 == nil && os.SameFile(want, got) {
			return true
		}
	}
	return len(named) == 0
}

// patroniAt asks for the system identifier of the server that a Patroni manages; empty if none
// answers. What answers is only compared, so its certificate does not matter.
func patroniAt(ctx context.Context, url string) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/patroni", nil)
	if err != nil {
		return ""
	}
	tr := &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return ""
	}
	defer func() { _ = resp.Body.Close() }()
	var body struct {
		SystemID string          `json:"database_system_identifier"`
		Patroni  json.RawMessage `json:"patroni"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&body)
	if err != nil || body.Patroni == nil {
		return ""
	}
	return body.SystemID
}

var systemdUnit = regexp.MustCompile(`[/=]([^/]+\.service)(?:/|$)`)

// unitOf is the systemd unit in whose control group a process is; empty if there is none, or if it
// is Holdfast's own.
func unitOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	m := systemdUnit.FindAllSubmatch([]byte(strings.TrimSpace(string(b))), -1)
	if len(m) == 0 || strings.HasPrefix(string(m[len(m)-1][1]), "user@") {
		return ""
	}
	unit := string(m[len(m)-1][1])
	own, _ := os.ReadFile("/proc/self/cgroup")
	if strings.HasPrefix(unit, "holdfast") || strings.Contains(string(own), unit) {
		return ""
	}
	return unit
}

// checkMembers asks the members that were adopted before: all must be of one system, and one the
// primary. Which of them a standby follows comes from there.
func (d *Adoption) checkMembers(ctx context.Context, p *AdoptPlan) {
	var silent []string
	incarnation := ""
	for _, m := range d.cfg.Members {
		if m.Name == d.a.cfg.Name || m.Postgres == "" {
			continue
		}
		id, inRecovery, inc, err := d.askMember(ctx, m)
		switch {
		case err != nil:
			silent = append(silent, fmt.Sprintf("%s: %v", m.Name, err))
		case id != d.srv.systemID:
			p.refuse("%s has system id %s, this server %s: they are not of one cluster", m.Name, id,
				d.srv.systemID)
		case !inRecovery && !d.srv.inRecovery:
			p.refuse("%s is a primary too: only one of them can be adopted", m.Name)
		case !inRecovery:
			p.Upstream, incarnation = m.Name, inc
		}
	}
	if d.srv.inRecovery && p.Upstream == "" && len(p.Refusals) == 0 {
		p.refuse("no member that was adopted is the primary of this standby: adopt the primary's "+
			"host first (%s)", strings.Join(silent, "; "))
	}
	if d.srv.inRecovery && d.srv.streaming && len(p.Refusals) == 0 {
		d.checkUpstream(ctx, p, incarnation)
	}
}

// checkUpstream refuses a standby that does not stream from the primary that was adopted: one of a
// fork of the same system would lose what it has, one of another standby was meant to be so. Names
// and virtual addresses differ, so it is the server there that is asked.
func (d *Adoption) checkUpstream(ctx context.Context, p *AdoptPlan, primary string) {
	from := Member{Name: d.srv.upstream, Postgres: d.srv.upstream}
	_, _, inc, err := d.askMember(ctx, from)
	switch {
	case err != nil:
		p.refuse("this standby streams from %s, and it cannot be told whether that is %s (%v): set "+
			"its primary_conninfo to the address of %s and reload, then run this again",
			d.srv.upstream, p.Upstream, err, p.Upstream)
	case inc != primary:
		p.refuse("this standby streams from %s, which is not the primary %s: set its primary_conninfo "+
			"to the address of %s and reload, then run this again", d.srv.upstream, p.Upstream,
			p.Upstream)
	}
}

// askMember asks a member that was adopted, by the role that adoption made there.
func (d *Adoption) askMember(ctx context.Context, m Member) (id string, recovery bool,
	incarnation string, err error,
) {
	c, err := d.a.dialMember(ctx, m, pgLookupRole, d.a.secrets.lookup, false)
	if err != nil {
		return "", false, "", err
	}
	defer pgClose(c)
	ctx, cancel := context.WithTimeout(ctx, d.a.cfg.QueryTimeout)
	defer cancel()
	rows, err := pgQuery(ctx, c, `SELECT system_identifier, pg_is_in_recovery(), `+
		pgIncarnationSQL+` FROM pg_control_system()`)
	if err != nil {
		return "", false, "", fmt.Errorf("ask for the system id: %w", err)
	}
	return rows[0][0], rows[0][1] == "t", rows[0][2], nil
}
