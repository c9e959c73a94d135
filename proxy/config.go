package proxy

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// Commit guard modes.
const (
	// GuardAll learns the xid of every transaction whose outcome it makes known: of an explicit
	// one before its COMMIT is forwarded, of a statement outside a block before its Sync is.
	GuardAll = "all"
	// GuardExplicit learns the xid of an explicit transaction before its COMMIT is forwarded.
	GuardExplicit = "explicit"
	// GuardOff forwards COMMIT at once; one in flight when the backend is lost ends in 08007.
	GuardOff = "off"
)

// What becomes of session advisory locks when the primary changes.
const (
	// LocksRestore takes them again as often as they were held; where that is not known for sure
	// the session is told.
	LocksRestore = "restore"
	// LocksAssume takes one whose count is not known once.
	LocksAssume = "assume"
	// LocksEnd tells every session that holds one.
	LocksEnd = "end"
)

// advisoryLocksMax is the default of Config.AdvisoryLocksMax.
const advisoryLocksMax = 1000

// Config is what a Proxy needs to know. The zero value is not usable; start from DefaultConfig.
type Config struct {
	// NodeName is this node's name in the group, which Peers know it by; empty if there are none.
	NodeName string
	// Listen are the addresses that clients connect to: host:port, or the path of a Unix socket.
	Listen []string
	// SourceAddr is the local address that backend connections are made from; empty lets the
	// kernel choose. PostgreSQL's rules admit proxies by this address.
	SourceAddr string

	// SessionsMax bounds the sessions, those that authenticate included. An eighth more, and at
	// least 100, connections may say nothing yet.
	SessionsMax int
	// CancelsMax bounds the cancel requests that are passed on to other nodes at once: anybody can
	// send one.
	CancelsMax int
	// SessionsPerUser and SessionsPerDatabase bound the sessions of a role, and in a database, that
	// have logged in; ConnectionsPerAddress the connections from one address, of which an eighth
	// more, and at least 8, may ask for a cancel or say nothing yet. 0 is no bound.
	SessionsPerUser, SessionsPerDatabase, ConnectionsPerAddress int
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
	// HoldSessionsMax bounds how many sessions are held at once: one more whose statement waits
	// for a primary is answered with an error. Logins that wait and sessions whose gate is shut
	// count, too, but are not turned away by it.
	HoldSessionsMax int
	// HoldNoticeAfter is when a waiting client is told with a NOTICE; 0 never tells.
	HoldNoticeAfter time.Duration
	// SessionLimits are lines of database, user and name=value: hold_timeout, hold_notice_after and
	// journal_bytes_max in the place of those here, for the sessions that the line is the first to
	// match. Databases and users are as in HBA, without groups; a hold_timeout of 0 does not wait.
	SessionLimits []string
	// RestoreConcurrency bounds how many sessions log in to a new primary at once.
	RestoreConcurrency int

	// OutstandingMax bounds the messages of a session that wait for their answers: what a client
	// sends beyond them waits in its socket. A server keeps at most 8 KiB of answers back until it
	// is asked to flush (PqSendBuffer), which are 1638 of the smallest; with more than that many
	// outstanding it always has something to tell.
	OutstandingMax int
	// PortalsMax bounds the portals of a session that are kept in mind; another one counts as one
	// that may do anything.
	PortalsMax int
	// ServerParametersMax bounds the parameters that a server may report to a session, and
	// ServerParametersBytesMax what it may tell of them during a login or a restore. One that tells
	// more is given up as one that is lost.
	ServerParametersMax, ServerParametersBytesMax int
	// InspectBytesMax is the size up to which a Query or Parse message is read whole before it
	// is forwarded; a larger one is relayed as it comes and counts as one that may do anything.
	InspectBytesMax int
	// JournalBytesMax bounds the copy of the client's messages of a session's open unit of work,
	// which is what a unit can be run again from.
	JournalBytesMax int
	// JournalTotalBytesMax bounds what the copies of all sessions take beyond the first 2 KiB of
	// each.
	JournalTotalBytesMax int
	// ReplayAttemptsMax bounds how often one unit of work is run again; 0 never does.
	ReplayAttemptsMax int
	// PreparedBytesMax bounds the text of a session's prepared statements that is kept.
	PreparedBytesMax int
	// CarryTempBytesMax bounds what a session's temporary tables, their rows in binary form and
	// their definitions, may take to be carried over a planned change; 0 carries none.
	CarryTempBytesMax int
	// CarryTempTotalBytesMax bounds the same of all sessions together, CarryTempTablesMax the
	// tables of a session.
	CarryTempTotalBytesMax, CarryTempTablesMax int

	// AdvisoryLocks is LocksRestore, LocksAssume or LocksEnd.
	AdvisoryLocks string
	// AdvisoryLocksMax bounds the session advisory locks of a session, each counted as often as
	// it was taken; one with more is told when the primary changes.
	AdvisoryLocksMax int

	// CustomSettings are names of custom settings that are asked for whenever the state of a
	// session is, and HarmlessFunctions schema.name or schema.* of functions that set no other
	// custom settings than these, and those that their bodies name.
	CustomSettings, HarmlessFunctions []string

	// CommitGuard is GuardAll, GuardExplicit or GuardOff.
	CommitGuard string
	// SecretTTL is how long a looked-up password secret is used before it is asked for again.
	SecretTTL time.Duration
	// LoginRolesMax is up to how many roles that may log in are known with their secrets, so that
	// each can while there is no primary, and a name of none is treated as one; 0 and in a group
	// with more of them, only those that have logged in lately are.
	LoginRolesMax int
	// LookupUser and LookupPassword log in to the primary to look up secrets and outcomes. What
	// clients with names of no role are shown is derived of the password, too: see DESIGN.md A3.
	LookupUser     string
	LookupPassword string
	// CatalogDatabasesMax bounds the databases to which a connection is kept to ask their
	// catalogues; the one that was not asked for the longest time makes room.
	CatalogDatabasesMax int
	// Reuse keeps the server connection of a client that has left for the next login that asks
	// for the very same, after a reset.
	Reuse bool
	// ReuseMax bounds the connections that are kept, ReuseRoleMax those of one role in one
	// database.
	ReuseMax, ReuseRoleMax int
	// ReuseIdle is how long one is kept, ReuseLifetime how old it may be: for so long, what
	// PostgreSQL looks at only when a client logs in may have changed without effect.
	ReuseIdle, ReuseLifetime time.Duration
	// PrewarmMax bounds the connections that are made to the target of a planned change before it
	// begins, for sessions to go on with; 0 makes none.
	PrewarmMax int
	// Loops is how many goroutines relay; 0 is one per two processors.
	Loops int
	// ShutdownTimeout bounds how long Close waits for sessions to reach a safe point.
	ShutdownTimeout time.Duration

	TLS       ClientTLS
	ServerTLS ServerTLS

	// HBA are rules like lines of pg_hba.conf; none is scram-sha-256 for everybody.
	HBA []string
	// UserMaps are lines like those of pg_ident.conf, for certificates.
	UserMaps []string
	// UsersFile has role:secret, one a line, as in pg_authid.rolpassword: clients with such a role
	// are checked against it, and the primary is not asked. Empty is none.
	UsersFile string
	// ServerUsersFile has role:password or role:md5hash, one a line, with which the proxy logs in
	// to servers for clients that have given it nothing (trust, cert). Empty is none.
	ServerUsersFile string
	// AuthFailuresMax bounds failed logins in a minute from one address; 0 does not.
	AuthFailuresMax int
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Listen:             []string{"127.0.0.1:6432"},
		SessionsMax:        10000,
		CancelsMax:         16,
		StartupTimeout:     15 * time.Second,
		DialTimeout:        5 * time.Second,
		KeepAlive:          30 * time.Second,
		LeaseGrace:         time.Second,
		HoldTimeout:        60 * time.Second,
		HoldSessionsMax:    10000,
		HoldNoticeAfter:    5 * time.Second,
		RestoreConcurrency: 32,
		OutstandingMax:     16 << 10,
		PortalsMax:         1000,
		InspectBytesMax:    64 << 10,
		JournalBytesMax:    1 << 20,
		PreparedBytesMax:   1 << 20,
		CarryTempBytesMax:  1 << 20,
		CarryTempTablesMax: 32,
		AdvisoryLocks:      LocksRestore,
		AdvisoryLocksMax:   advisoryLocksMax,
		CommitGuard:        GuardAll,
		SecretTTL:          10 * time.Second,
		LoginRolesMax:      5000,
		Reuse:              true,
		ReuseMax:           128,
		ReuseRoleMax:       32,
		ReuseIdle:          3 * time.Second,
		ReuseLifetime:      time.Minute,
		PrewarmMax:         100,
		LookupUser:         "holdfast_lookup",
		ShutdownTimeout:    10 * time.Second,

		ServerParametersMax: 1000, ServerParametersBytesMax: 1 << 20,

		JournalTotalBytesMax: 256 << 20,

		CarryTempTotalBytesMax: 256 << 20,

		ReplayAttemptsMax:   2,
		CatalogDatabasesMax: 8,
		TLS:                 ClientTLS{Mode: TLSOff, MinVersion: "1.2"},
		ServerTLS:           ServerTLS{Mode: SSLDisable},
		AuthFailuresMax:     600,
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
		{"journal_total_bytes_max", c.JournalTotalBytesMax > 0},
		{"prepared_bytes_max", c.PreparedBytesMax > 0},
		{"carry_temp_total_bytes_max", c.CarryTempTotalBytesMax > 0},
		{"carry_temp_tables_max", c.CarryTempTablesMax > 0},
		{"advisory_locks_max", c.AdvisoryLocksMax > 0},
		{"secret_ttl", c.SecretTTL > 0},
		{"catalog_databases_max", c.CatalogDatabasesMax > 0},
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
	errs = append(errs, c.validateRanges()...)
	if c.SessionsPerUser < 0 || c.SessionsPerDatabase < 0 || c.ConnectionsPerAddress < 0 {
		errs = append(errs, errors.New("proxy.sessions_per_user, sessions_per_database, "+
			"connections_per_address: must not be negative"))
	}
	if c.CarryTempBytesMax < 0 {
		errs = append(errs, errors.New("proxy.carry_temp_bytes_max: must not be negative"))
	}
	if c.PrewarmMax < 0 {
		errs = append(errs, errors.New("proxy.prewarm_max: must not be negative"))
	}
	switch c.CommitGuard {
	case GuardAll, GuardExplicit, GuardOff:
	default:
		errs = append(errs, fmt.Errorf("proxy.commit_guard: %q is not one of all, explicit, off",
			c.CommitGuard))
	}
	errs = append(errs, c.TLS.validate()...)
	errs = append(errs, c.ServerTLS.Validate("proxy.server_tls")...)
	errs = append(errs, c.validateAuth()...)
	switch c.AdvisoryLocks {
	case LocksRestore, LocksAssume, LocksEnd:
	default:
		errs = append(errs, fmt.Errorf("proxy.advisory_locks: %q is not one of restore, assume, end",
			c.AdvisoryLocks))
	}
	return errors.Join(errs...)
}

// validateRanges checks what has a largest value too, or a smallest one other than 1.
func (c *Config) validateRanges() []error {
	var errs []error
	for _, r := range []struct {
		name               string
		value, least, most int
	}{
		{"cancels_max", c.CancelsMax, 1, 1024},
		{"outstanding_max", c.OutstandingMax, 2048, 1 << 20},
		{"portals_max", c.PortalsMax, 1, 100000},
		{"server_parameters_max", c.ServerParametersMax, 50, 100000},
		{"server_parameters_bytes_max", c.ServerParametersBytesMax, 16 << 10, 64 << 20},
		{"login_roles_max", c.LoginRolesMax, 0, 100000},
		{"inspect_bytes_max", c.InspectBytesMax, 1024, 16 << 20},
		{"replay_attempts_max", c.ReplayAttemptsMax, 0, 10},
	} {
		if r.value < r.least || r.value > r.most {
			errs = append(errs, fmt.Errorf("proxy.%s: must be %d to %d", r.name, r.least, r.most))
		}
	}
	return errs
}

// validateAuth checks the rules about who may log in and how, and with which limits.
func (c *Config) validateAuth() []error {
	rules, err := parseHBA(c.HBA)
	_, merr := parseUserMaps(c.UserMaps)
	_, lerr := parseSessionRules(c.SessionLimits)
	_, cerr := parseCustomSettings(c.CustomSettings)
	_, ferr := parseHarmless(c.HarmlessFunctions)
	errs := []error{err, merr, lerr, cerr, ferr}
	for _, r := range rules {
		if r.needsCertificate() && (c.TLS.Mode == TLSOff || c.TLS.ClientCAFile == "") {
			errs = append(errs, errors.New("proxy.tls.client_ca_file: needed by a rule of proxy.hba "+
				"that asks for certificates"))
			break
		}
	}
	if c.AuthFailuresMax < 0 {
		errs = append(errs, errors.New("proxy.auth_failures_max: must not be negative"))
	}
	return errs
}
