package election

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"holdfast/pgwire"
)

// AgentConfig is what the agent of one local PostgreSQL needs to know.
type AgentConfig struct {
	// Cluster is the name of the cluster; it is part of the marker in the data directory.
	Cluster string
	// Name is the member's name: the node's name and its standby's application_name.
	Name string
	// BinDir holds PostgreSQL's programs; empty takes the newest in /usr/lib/postgresql, then PATH.
	BinDir string
	// DataDir is PGDATA. It must be a directory below a mount point, not the mount point itself,
	// since clones are made beside it and renamed.
	DataDir string
	// SocketDir is the private directory (0700) of the unix socket; empty is StatePath/run.
	SocketDir string
	// Listen is the host:port where PostgreSQL listens.
	Listen string
	// OSUser is the account that PostgreSQL runs as; needed when the agent runs as root.
	OSUser string
	// Superuser is PostgreSQL's first role, by which the agent logs in.
	Superuser string
	// SecretsDir holds the password files superuser, replication, rewind and lookup, mode 0600.
	SecretsDir string
	// Settings are the user's own settings, "name = value" each.
	Settings []string
	// HBA are the user's own lines of pg_hba.conf; the agent's come first.
	HBA []string
	// BootstrapSQL are files that run once, in the first database of a new cluster.
	BootstrapSQL []string
	// Checksums turns data checksums on at initdb.
	Checksums bool
	// Locale and Encoding are given to initdb.
	Locale   string
	Encoding string
	// AllowFrom are the addresses and networks, beside the members' hosts, that may connect
	// over TCP while the door is open: the sidecars.
	AllowFrom []string
	// StatePath is the directory, outside PGDATA, of the pledge, the password file and the
	// server's log; empty is DataDir + ".holdfast". PostgreSQL's account must reach it.
	StatePath string
	// StopTimeout bounds a fast stop; after it the stop is immediate.
	StopTimeout time.Duration
	// StartTimeout bounds how long an order waits until a started server answers.
	StartTimeout time.Duration
	// SampleInterval is the time between two samples of the server.
	SampleInterval time.Duration
	// QueryTimeout bounds each control query; a server that is slower has a Problem.
	QueryTimeout time.Duration
	// DiskTimeout is how long a write to the data disk may hang before the agent says so; a
	// primary is then replaced.
	DiskTimeout time.Duration
	// LogBytesMax is the size at which the server's log in StatePath is moved to .1 and goes on empty.
	LogBytesMax int
	// Silence is how long a standby hears nothing from the primary before it gives the stream up
	// (wal_receiver_timeout); a line in Settings goes before it.
	Silence time.Duration
	// AdoptForeign lets the agent put a data directory that Holdfast did not make aside (renamed
	// to DataDir.foreign, never deleted) and clone in its place.
	AdoptForeign bool
	// ServerTLS is TLS to the other members' servers, for their replication and for the agent.
	ServerTLS pgwire.ServerTLS
	// OnLockLoss is OnLockLossHold or OnLockLossStop; Timing are the group's times.
	OnLockLoss string
	Timing     Timing
}

// DefaultAgentConfig returns the defaults; Cluster, Name, Listen and SecretsDir have none.
func DefaultAgentConfig() AgentConfig {
	timing, _ := TimingOf(ProfileCloud)
	return AgentConfig{
		Cluster:        "main",
		DataDir:        "/var/lib/holdfast/postgres/data",
		OSUser:         "postgres",
		Superuser:      "postgres",
		Checksums:      true,
		Locale:         "C.UTF-8",
		Encoding:       "UTF8",
		StopTimeout:    10 * time.Second,
		StartTimeout:   60 * time.Second,
		SampleInterval: 250 * time.Millisecond,
		QueryTimeout:   2 * time.Second,
		DiskTimeout:    10 * time.Second,
		LogBytesMax:    256 << 20,
		Silence:        5 * time.Second,
		ServerTLS:      pgwire.ServerTLS{Mode: pgwire.SSLPrefer},
		OnLockLoss:     OnLockLossHold,
		Timing:         timing,
	}
}

// statePath and socketDir fill in what was left empty.
func (c AgentConfig) statePath() string {
	if c.StatePath != "" {
		return c.StatePath
	}
	return filepath.Clean(c.DataDir) + ".holdfast"
}

func (c AgentConfig) socketDir() string {
	if c.SocketDir != "" {
		return c.SocketDir
	}
	return filepath.Join(c.statePath(), "run")
}

// socketPathMax is the length of sun_path less its final zero (unix(7)).
const socketPathMax = 107

var agentNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,53}$`)

// Validate tells all that is wrong with the configuration, in words that name the key.
func (c AgentConfig) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Cluster == "" {
		bad("cluster: a name is needed")
	}
	if !agentNamePattern.MatchString(c.Name) {
		bad("name %q: 1 to 54 letters, digits, '_', '.', '-' are allowed", c.Name)
	}
	for key, dir := range map[string]string{"data_dir": c.DataDir,
		"socket_dir": c.socketDir(), "state path": c.statePath()} {
		if !filepath.IsAbs(dir) || strings.ContainsAny(dir, "'\"\\\n$`") {
			bad("%s %q: an absolute path without quotes is needed", key, dir)
		}
	}
	if c.SecretsDir == "" {
		bad("secrets_dir: a directory with the password files is needed")
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 1 || n > 65535 ||
		strings.ContainsAny(host, " ,'") {
		bad("listen %q: host:port with a port from 1 to 65535 is needed", c.Listen)
	}
	sock := filepath.Join(c.socketDir(), ".s.PGSQL."+port)
	if len(sock) > socketPathMax {
		bad("socket_dir: the socket's path %q has %d bytes, %d are allowed: choose a shorter one",
			sock, len(sock), socketPathMax)
	}
	if rel, err := filepath.Rel(c.DataDir, c.statePath()); err == nil &&
		rel != ".." && !strings.HasPrefix(rel, "../") {
		bad("state path %q: must be outside data_dir, since pg_rewind overwrites that",
			c.statePath())
	}
	if c.Superuser == "" || strings.HasPrefix(c.Superuser, "pg_") ||
		strings.HasPrefix(c.Superuser, "holdfast_") {
		bad("superuser %q: a role name is needed, without the prefix pg_ or holdfast_",
			c.Superuser)
	}
	if c.OnLockLoss == OnLockLossStop {
		if err := c.Timing.Validate(); err != nil {
			bad("on_lock_loss stop: %w", err)
		}
	} else if c.OnLockLoss != OnLockLossHold {
		bad("on_lock_loss %q: %s or %s is allowed", c.OnLockLoss, OnLockLossHold, OnLockLossStop)
	}
	errs = append(errs, c.validateLimits()...)
	errs = append(errs, c.validateLines()...)
	errs = append(errs, c.validateServerTLS()...)
	return errors.Join(errs...)
}

func (c AgentConfig) validateLimits() []error {
	var errs []error
	for _, d := range []struct {
		key      string
		v        time.Duration
		min, max time.Duration
	}{
		{"stop_timeout", c.StopTimeout, 100 * time.Millisecond, time.Hour},
		{"start_timeout", c.StartTimeout, time.Second, 24 * time.Hour},
		{"sample_interval", c.SampleInterval, 10 * time.Millisecond, 10 * time.Second},
		{"query_timeout", c.QueryTimeout, 100 * time.Millisecond, time.Minute},
		{"disk_timeout", c.DiskTimeout, time.Second, 10 * time.Minute},
		{"silence", c.Silence, 100 * time.Millisecond, time.Minute},
	} {
		if d.v < d.min || d.v > d.max {
			errs = append(errs, fmt.Errorf("%s %v: from %v to %v is allowed",
				d.key, d.v, d.min, d.max))
		}
	}
	if c.LogBytesMax < logBytesMin {
		errs = append(errs, fmt.Errorf("log_bytes_max %d: at least %d is allowed", c.LogBytesMax,
			logBytesMin))
	}
	return errs
}

// logBytesMin keeps the log from being cut all the time.
const logBytesMin = 1 << 20

func (c AgentConfig) validateLines() []error {
	var errs []error
	for i, s := range c.Settings {
		if _, _, err := pgParseSetting(s); err != nil {
			errs = append(errs, fmt.Errorf("settings[%d]: %w", i, err))
		}
	}
	for i, s := range c.HBA {
		if strings.ContainsAny(s, "\n\r\x00") {
			errs = append(errs, fmt.Errorf("hba[%d]: one line without line breaks is needed", i))
		}
	}
	for i, s := range c.AllowFrom {
		if _, err := pgHBAAddress(s); err != nil {
			errs = append(errs, fmt.Errorf("allow_from[%d]: %w", i, err))
		}
	}
	return errs
}

// pgHBAAddress gives the address column of pg_hba.conf for an address, a network or a host name.
func pgHBAAddress(s string) (string, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked().String(), nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()).String(), nil
	}
	if !pgHostPattern.MatchString(s) {
		return "", fmt.Errorf("%q: an address, a network or a host name is needed", s)
	}
	return s, nil
}

var pgHostPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,252})$`)
