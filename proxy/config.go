package proxy

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// Commit guard modes.
const (
	// GuardExplicit learns the xid of an explicit transaction before its COMMIT is forwarded.
	GuardExplicit = "explicit"
	// GuardOff forwards COMMIT at once; one in flight when the backend is lost ends in 08007.
	GuardOff = "off"
)

// Config is what a Proxy needs to know. The zero value is not usable; start from DefaultConfig.
type Config struct {
	// Listen are the addresses that clients connect to, host:port.
	Listen []string
	// SourceAddr is the local address that backend connections are made from; empty lets the
	// kernel choose. PostgreSQL's rules admit proxies by this address.
	SourceAddr string

	// SessionsMax bounds the sessions, those that authenticate included. An eighth more, and at
	// least 100, connections may say nothing yet.
	SessionsMax int
	// StartupTimeout bounds the time from accept to a finished authentication.
	StartupTimeout time.Duration
	// DialTimeout bounds one attempt to connect and log in to a backend.
	DialTimeout time.Duration
	// KeepAlive is the TCP keepalive idle time of client connections, and how long a peer may
	// leave sent bytes without any acknowledgement.
	KeepAlive time.Duration
	// LeaseGrace is how long after the end of a lease bytes that were sent before may still
	// arrive at the primary; it must not exceed T_P - T_L. Halfway, connections with bytes that
	// the primary's host has not taken are reset (DESIGN.md I3).
	LeaseGrace time.Duration

	// HoldTimeout bounds how long a statement or a login waits for a primary.
	HoldTimeout time.Duration
	// HoldSessionsMax bounds how many sessions with a waiting statement are held at once.
	HoldSessionsMax int
	// HoldNoticeAfter is when a waiting client is told with a NOTICE; 0 never tells.
	HoldNoticeAfter time.Duration
	// RestoreConcurrency bounds how many sessions log in to a new primary at once.
	RestoreConcurrency int

	// InspectBytesMax is the size up to which a Query or Parse message is read whole before it
	// is forwarded; a larger one is relayed as it comes and counts as one that may do anything.
	InspectBytesMax int
	// JournalBytesMax bounds the copy of a session's unanswered messages.
	JournalBytesMax int
	// PreparedBytesMax bounds the text of a session's prepared statements that is kept.
	PreparedBytesMax int

	// CommitGuard is GuardExplicit or GuardOff.
	CommitGuard string
	// SecretTTL is how long a looked-up password secret is used before it is asked for again.
	SecretTTL time.Duration
	// LookupUser and LookupPassword log in to the primary to look up secrets and outcomes.
	LookupUser     string
	LookupPassword string
	// Reuse keeps the server connection of a client that has left for the next login that asks
	// for the very same, after a reset.
	Reuse bool
	// ReuseMax bounds the connections that are kept, ReuseRoleMax those of one role in one
	// database.
	ReuseMax, ReuseRoleMax int
	// ReuseIdle is how long one is kept, ReuseLifetime how old it may be: for so long, what
	// PostgreSQL looks at only when a client logs in may have changed without effect.
	ReuseIdle, ReuseLifetime time.Duration
	// Loops is how many goroutines relay; 0 is one per two processors.
	Loops int
	// ShutdownTimeout bounds how long Close waits for sessions to reach a safe point.
	ShutdownTimeout time.Duration
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Listen:             []string{"127.0.0.1:6432"},
		SessionsMax:        10000,
		StartupTimeout:     15 * time.Second,
		DialTimeout:        5 * time.Second,
		KeepAlive:          30 * time.Second,
		LeaseGrace:         time.Second,
		HoldTimeout:        60 * time.Second,
		HoldSessionsMax:    10000,
		HoldNoticeAfter:    5 * time.Second,
		RestoreConcurrency: 32,
		InspectBytesMax:    64 << 10,
		JournalBytesMax:    64 << 10,
		PreparedBytesMax:   1 << 20,
		CommitGuard:        GuardExplicit,
		SecretTTL:          10 * time.Second,
		Reuse:              true,
		ReuseMax:           128,
		ReuseRoleMax:       32,
		ReuseIdle:          10 * time.Second,
		ReuseLifetime:      time.Minute,
		LookupUser:         "holdfast_lookup",
		ShutdownTimeout:    10 * time.Second,
	}
}

// loops is how many goroutines relay.
func (c *Config) loops() int {
	if c.Loops > 0 {
		return c.Loops
	}
	return max(1, runtime.GOMAXPROCS(0)/2)
}

// Validate says everything that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	if len(c.Listen) == 0 {
		errs = append(errs, errors.New("proxy.listen: at least one address is needed"))
	}
	positive := []struct {
		name string
		ok   bool
	}{
		{"sessions_max", c.SessionsMax > 0},
		{"startup_timeout", c.StartupTimeout > 0},
		{"dial_timeout", c.DialTimeout > 0},
		{"hold_timeout", c.HoldTimeout > 0},
		{"hold_sessions_max", c.HoldSessionsMax > 0},
		{"restore_concurrency", c.RestoreConcurrency > 0},
		{"journal_bytes_max", c.JournalBytesMax > 0},
		{"prepared_bytes_max", c.PreparedBytesMax > 0},
		{"secret_ttl", c.SecretTTL > 0},
		{"lease_grace", c.LeaseGrace > 0},
		{"keep_alive", c.KeepAlive > 0},
		{"reuse_max", c.ReuseMax > 0},
		{"reuse_role_max", c.ReuseRoleMax > 0},
		{"reuse_idle", c.ReuseIdle > 0},
		{"reuse_lifetime", c.ReuseLifetime > 0},
	}
	for _, p := range positive {
		if !p.ok {
			errs = append(errs, fmt.Errorf("proxy.%s: must be greater than zero", p.name))
		}
	}
	if c.InspectBytesMax < 1024 || c.InspectBytesMax > 16<<20 {
		errs = append(errs, errors.New("proxy.inspect_bytes_max: must be 1024 to 16777216"))
	}
	if c.CommitGuard != GuardExplicit && c.CommitGuard != GuardOff {
		errs = append(errs, fmt.Errorf("proxy.commit_guard: %q is not one of explicit, off",
			c.CommitGuard))
	}
	return errors.Join(errs...)
}
