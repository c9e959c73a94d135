package election

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// pgDoor says who may log in. Closed: the agent by its private socket, and standbys; nobody can
// read or write before the lock of the server's epoch is committed (DESIGN 10.8).
type pgDoor bool

// The positions of the door.
const (
	pgDoorClosed pgDoor = false
	pgDoorOpen   pgDoor = true
)

func (d pgDoor) String() string {
	if d {
		return "open"
	}
	return "closed"
}

// renderHBA gives the text of pg_hba.conf. The first line that matches a connection decides, so
// the agent's come first and the user's can only add.
func (a *PostgresAgent) renderHBA(d pgDoor) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by holdfast; changes here are overwritten. The door is %s.\n", d)
	hosts, peers := a.hbaHosts()
	b.WriteString(a.hbaClosed(peers))
	if d == pgDoorClosed {
		return b.String()
	}
	b.WriteString(a.hbaPeers(peers))
	for _, s := range a.cfg.AllowFrom {
		if addr, err := pgHBAAddress(s); err == nil && !slices.Contains(hosts, addr) {
			hosts = append(hosts, addr)
		}
	}
	for _, h := range hosts {
		fmt.Fprintf(&b, "host all all %s scram-sha-256\n", h)
	}
	for _, line := range a.cfg.HBA {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// renderPeers gives the lines by which the agents reach a server, and nobody else.
func (a *PostgresAgent) renderPeers() string {
	_, peers := a.hbaHosts()
	return a.hbaClosed(peers) + a.hbaPeers(peers)
}

func (a *PostgresAgent) hbaClosed(peers []string) string {
	text := fmt.Sprintf("local all %s scram-sha-256\n", `"`+a.cfg.Superuser+`"`)
	kind := a.hbaType()
	for _, h := range peers {
		text += fmt.Sprintf("%s replication %s %s scram-sha-256\n", kind, pgReplicationRole, h)
		if a.major >= slotSyncMajor { // a standby's process that copies logical slots
			text += fmt.Sprintf("%s postgres %s %s scram-sha-256\n", kind, pgReplicationRole, h)
		}
	}
	return text + a.hbaNoClear()
}

// hbaPeers are the lines of the other roles. The look-up role is the proxies' as well, whose TLS is
// a matter of their own configuration.
func (a *PostgresAgent) hbaPeers(peers []string) string {
	text, roles := "", pgRewindRole+","+pgLookupRole
	for _, h := range peers {
		if a.cfg.ServerTLS.IsDemanded() {
			text += fmt.Sprintf("hostssl all %s %s scram-sha-256\n", pgRewindRole, h)
			roles = pgLookupRole
		}
		text += fmt.Sprintf("host all %s %s scram-sha-256\n", roles, h)
	}
	return text
}

// hbaHosts are the members' addresses, and those that their agents and proxies call from.
func (a *PostgresAgent) hbaHosts() (hosts, peers []string) {
	isLoopback := false
	for _, m := range a.members() {
		for _, hp := range []string{m.Address, m.Postgres} {
			host, _, err := net.SplitHostPort(hp)
			if err != nil {
				continue
			}
			if addr, err := pgHBAAddress(host); err == nil && !slices.Contains(hosts, addr) {
				hosts = append(hosts, addr)
			}
			isLoopback = isLoopback || net.ParseIP(host).IsLoopback()
		}
	}
	slices.Sort(hosts)
	peers = slices.Clone(hosts)
	if isLoopback && !slices.Contains(peers, "127.0.0.1/32") {
		// Members on one machine (a demo, tests): PostgreSQL's programs call from lo's own
		// address, proxies and agents from the member's. Clients must not come from either.
		peers = append(peers, "127.0.0.1/32")
	}
	return hosts, peers
}

func (a *PostgresAgent) writeHBA(dir string, d pgDoor) (text string, changed bool, err error) {
	text = a.renderHBA(d)
	path := filepath.Join(dir, "pg_hba.conf")
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return text, false, nil
	}
	if err := a.writeFile(path, []byte(text), 0o600); err != nil {
		return "", false, fmt.Errorf("write pg_hba.conf: %w", err)
	}
	return text, true, nil
}

// applyDoor brings the running server's pg_hba.conf to d and proves that the postmaster took it.
func (a *PostgresAgent) applyDoor(ctx context.Context, d pgDoor) error {
	text, changed, err := a.writeHBA(a.cfg.DataDir, d)
	if err != nil {
		return err
	}
	mirrored, err := a.mirrorHBA(text)
	if err != nil {
		return err
	}
	if !changed && !mirrored && a.verifiedHBA == text {
		return nil
	}
	rows, err := a.exec(ctx, `SELECT line_number, error FROM pg_hba_file_rules
		WHERE error IS NOT NULL LIMIT 1`)
	if err != nil {
		return fmt.Errorf("verify pg_hba.conf: %w", err)
	}
	if len(rows) > 0 {
		return fmt.Errorf("pg_hba.conf, line %s: %s (correct the key postgres.hba)",
			rows[0][0], rows[0][1])
	}
	if err := a.reloadHBA(ctx); err != nil {
		return err
	}
	a.verifiedHBA = text
	return nil
}

// reloadHBA reloads and waits until new connections are judged by the new file. The postmaster
// signals its children before it reads pg_hba.conf, in one handler: once this session's backend
// has seen the reload, the next connection is forked after it was read.
func (a *PostgresAgent) reloadHBA(ctx context.Context) error {
	const load = "SELECT pg_conf_load_time()"
	before, err := a.queryRow(ctx, load)
	if err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	if _, err := a.exec(ctx, "SELECT pg_reload_conf()"); err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueryTimeout)
	defer cancel()
	for {
		now, err := a.queryRow(ctx, load)
		if err != nil {
			return fmt.Errorf("reload: %w", err)
		}
		if now[0] != before[0] {
			break
		}
		if pauseFor(ctx, 2*time.Millisecond) != nil {
			return errors.New("reload of pg_hba.conf was not seen in time")
		}
	}
	c, err := a.connect(ctx)
	pgClose(c)
	if err != nil {
		return fmt.Errorf("after reload of pg_hba.conf: %w", err)
	}
	return nil
}
