package config

import (
	"fmt"
	"regexp"
	"strings"

	"holdfast/election"
	"holdfast/pgwire"
	"holdfast/proxy"
)

// ProxyConfig returns the proxy's own configuration. It reads the look-up password; the error
// names the file.
func (c Config) ProxyConfig() (proxy.Config, error) {
	password, err := ReadSecret(c.Proxy.LookupPasswordFile)
	if err != nil {
		return proxy.Config{}, fmt.Errorf("proxy.lookup_password_file: %w", err)
	}
	pc := c.proxyConfig()
	pc.LookupPassword = password
	return pc, nil
}

// proxyConfig is the part of ProxyConfig that touches no file.
func (c Config) proxyConfig() proxy.Config {
	p := c.Proxy
	return proxy.Config{
		NodeName:              c.Name,
		Listen:                p.Listen,
		SourceAddr:            p.SourceAddr,
		SessionsMax:           p.SessionsMax,
		CancelsMax:            p.CancelsMax,
		SessionsPerUser:       p.SessionsPerUser,
		SessionsPerDatabase:   p.SessionsPerDatabase,
		ConnectionsPerAddress: p.ConnectionsPerAddress,
		StartupTimeout:        p.StartupTimeout,
		DialTimeout:           p.DialTimeout,
		KeepAlive:             p.KeepAlive,
		LeaseGrace:            p.LeaseGrace,
		HoldTimeout:           p.HoldTimeout,
		HoldSessionsMax:       p.HoldSessionsMax,
		HoldNoticeAfter:       p.HoldNoticeAfter,
		SessionLimits:         p.SessionLimits,
		CustomSettings:        p.CustomSettings,
		HarmlessFunctions:     p.HarmlessFunctions,
		RestoreConcurrency:    p.RestoreConcurrency,
		OutstandingMax:        p.OutstandingMax,
		PortalsMax:            p.PortalsMax,
		InspectBytesMax:       p.InspectBytesMax,
		Loops:                 p.Loops,
		JournalBytesMax:       p.JournalBytesMax,
		PreparedBytesMax:      p.PreparedBytesMax,

		ServerParametersMax:      p.ServerParamsMax,
		ServerParametersBytesMax: p.ServerParamsBytesMax,

		JournalTotalBytesMax: p.JournalTotalBytesMax,
		ReplayAttemptsMax:    p.ReplayAttemptsMax,

		CarryTempBytesMax:      p.CarryTempBytesMax,
		CarryTempTotalBytesMax: p.CarryTempTotalBytesMax,
		CarryTempTablesMax:     p.CarryTempTablesMax,

		CommitGuard:     p.CommitGuard,
		SecretTTL:       p.SecretTTL,
		LoginRolesMax:   p.LoginRolesMax,
		LookupUser:      p.LookupUser,
		ShutdownTimeout: p.ShutdownTimeout,

		CatalogDatabasesMax: p.CatalogDatabasesMax,
		TLS:                 proxy.ClientTLS(p.TLS),
		ServerTLS:           proxy.ServerTLS(p.ServerTLS),
		HBA:                 p.HBA,
		UserMaps:            p.UserMaps,
		UsersFile:           p.UsersFile,
		ServerUsersFile:     p.ServerUsersFile,
		AuthFailuresMax:     p.AuthFailuresMax,
		AdvisoryLocks:       p.AdvisoryLocks,
		AdvisoryLocksMax:    p.AdvisoryLocksMax,
		Reuse:               p.Reuse,
		ReuseMax:            p.ReuseMax,
		ReuseRoleMax:        p.ReuseRoleMax,
		ReuseIdle:           p.ReuseIdle,
		ReuseLifetime:       p.ReuseLifetime,
		PrewarmMax:          p.PrewarmMax,
	}
}

// members returns the group's nodes as the election knows them.
func (c Config) members() []election.Member {
	members := make([]election.Member, len(c.Group.Nodes))
	for i, n := range c.Group.Nodes {
		members[i] = election.Member{Name: n.Name, Address: n.Address, Postgres: n.Postgres,
			Priority: n.Priority, NoFailover: n.NoFailover}
	}
	return members
}

// ElectionConfig returns the configuration of the voter, or of a sidecar that follows the voters.
func (c Config) ElectionConfig() (election.Config, error) {
	e := election.DefaultConfig()
	e.Name, e.Cluster, e.Dir, e.Voter = c.Name, c.Group.Cluster, c.Raft.Dir, c.Raft.Enabled
	e.Nodes, e.Profile, e.SyncMode = c.members(), c.Group.Profile, c.Synchronous.Mode
	e.CAFile, e.CertFile, e.KeyFile = c.Group.TLS.CAFile, c.Group.TLS.CertFile, c.Group.TLS.KeyFile
	e.DrainTimeout, e.Fence = c.Group.DrainTimeout, c.Group.Fence
	e.CutOffAfter = c.Group.CutOffAfter
	if c.Proxy.Enabled { // else what others hold is not known, and the default stands
		e.HoldTimeout = c.Proxy.HoldTimeout
	}
	e.PrewarmTime = c.Group.PrewarmTime
	e.LockBarrier = c.Proxy.LockBarrierTimeout
	e.SyncWait, e.SyncDegradeAfter = c.Synchronous.Standbys, c.Synchronous.DegradeAfter
	return e, e.Validate()
}

// AgentConfig returns the configuration of the agent of the local PostgreSQL.
func (c Config) AgentConfig() (election.AgentConfig, error) {
	p := c.Postgres
	a := election.DefaultAgentConfig()
	a.Cluster, a.Name = c.Group.Cluster, c.Name
	a.BinDir, a.DataDir, a.SocketDir = p.BinDir, p.DataDir, p.SocketDir
	a.Listen, a.OSUser, a.Superuser = p.Listen, p.OSUser, p.Superuser
	a.SecretsDir = p.SecretsDir
	a.Settings, a.HBA, a.BootstrapSQL = p.Settings, p.HBA, p.BootstrapSQL
	a.AllowFrom, a.AdoptForeign = p.AllowFrom, p.AdoptForeign
	a.Checksums, a.Locale, a.Encoding = p.Checksums, p.Locale, p.Encoding
	a.StartTimeout, a.StopTimeout, a.QueryTimeout = p.StartTimeout, p.StopTimeout, p.QueryTimeout
	a.DiskTimeout, a.OnLockLoss = p.DiskTimeout, p.OnLockLoss
	a.LogBytesMax = p.LogBytesMax
	a.ServerTLS = pgwire.ServerTLS(p.ServerTLS)
	if t, err := election.TimingOf(c.Group.Profile); err == nil { // else the group's checks tell
		a.Silence, a.Timing = t.Silence, t
	}
	return a, a.Validate()
}

// owners asks the packages that the values belong to. It runs last and only if nothing else was
// found: their words would repeat ours.
func (k *checker) owners() {
	if len(k.problems) > 0 {
		return
	}
	if k.c.Proxy.Enabled {
		k.owner("proxy", k.c.proxyConfig().Validate())
	}
	if k.c.Postgres.Enabled {
		_, err := k.c.AgentConfig()
		k.owner("postgres", err)
	}
	_, err := k.c.ElectionConfig()
	k.owner("", err)
}

// ownerLine is one line of an owner's error: the key with or without its section, then the text.
var ownerLine = regexp.MustCompile(`^([a-z_.]+(?:\[\d+\])?)(?::| |$)\s*(.*)$`)

// owner makes problems of an owner's joined error. A first word that is no key of the section
// stays part of the text.
func (k *checker) owner(section string, err error) {
	if err == nil {
		return
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		key, text := section, line
		if m := ownerLine.FindStringSubmatch(line); m != nil {
			path := join(section, strings.TrimPrefix(m[1], section+"."))
			if root.find(path) != nil {
				key, text = path, m[2]
			}
		}
		k.bad(key, "%s", text)
	}
}

func item(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }
