package config

import (
	"os"
	"path/filepath"
	"time"

	"holdfast/election"
	"holdfast/proxy"
)

// Default returns the defaults, which belong to the packages that use them. What is derived is
// still empty.
func Default() Config {
	group := election.DefaultConfig()
	agent := election.DefaultAgentConfig()
	return Config{
		DataDir: "/var/lib/holdfast",
		Group: Group{Cluster: group.Cluster, Profile: group.Profile,
			DrainTimeout: group.DrainTimeout, PrewarmTime: group.PrewarmTime, Fence: group.Fence,
			CutOffAfter: group.CutOffAfter},
		Raft: Raft{Enabled: group.Voter},
		Postgres: Postgres{
			Enabled:      true,
			OSUser:       agent.OSUser,
			Superuser:    agent.Superuser,
			Settings:     agent.Settings,
			HBA:          agent.HBA,
			BootstrapSQL: agent.BootstrapSQL,
			AllowFrom:    agent.AllowFrom,
			Checksums:    agent.Checksums,
			Encoding:     agent.Encoding,
			Locale:       agent.Locale,
			AdoptForeign: agent.AdoptForeign,
			StartTimeout: agent.StartTimeout,
			StopTimeout:  agent.StopTimeout,
			QueryTimeout: agent.QueryTimeout,
			DiskTimeout:  agent.DiskTimeout,
			LogBytesMax:  agent.LogBytesMax,
			ServerTLS:    ServerTLS(agent.ServerTLS),
			OnLockLoss:   agent.OnLockLoss,
		},
		Proxy: defaultProxy(group.LockBarrier),
		Synchronous: Synchronous{Mode: group.SyncMode, Standbys: group.SyncWait,
			DegradeAfter: group.SyncDegradeAfter},
		HTTP: HTTP{Listen: "127.0.0.1:7401"},
		Log:  Log{Level: "info", Format: "json"},
	}
}

// defaultProxy is the proxy's part.
func defaultProxy(barrier time.Duration) Proxy {
	px := proxy.DefaultConfig()
	return Proxy{
		Enabled:            true,
		Listen:             px.Listen,
		SourceAddr:         px.SourceAddr,
		SessionsMax:        px.SessionsMax,
		CancelsMax:         px.CancelsMax,
		StartupTimeout:     px.StartupTimeout,
		DialTimeout:        px.DialTimeout,
		KeepAlive:          px.KeepAlive,
		HoldTimeout:        px.HoldTimeout,
		HoldSessionsMax:    px.HoldSessionsMax,
		HoldNoticeAfter:    px.HoldNoticeAfter,
		SessionLimits:      px.SessionLimits,
		RestoreConcurrency: px.RestoreConcurrency,
		ShutdownTimeout:    px.ShutdownTimeout,
		OutstandingMax:     px.OutstandingMax,
		PortalsMax:         px.PortalsMax,
		InspectBytesMax:    px.InspectBytesMax,
		Loops:              px.Loops,
		JournalBytesMax:    px.JournalBytesMax,

		ServerParamsMax:      px.ServerParametersMax,
		ServerParamsBytesMax: px.ServerParametersBytesMax,

		JournalTotalBytesMax: px.JournalTotalBytesMax,
		ReplayAttemptsMax:    px.ReplayAttemptsMax,

		CarryTempBytesMax:      px.CarryTempBytesMax,
		CarryTempTotalBytesMax: px.CarryTempTotalBytesMax,
		CarryTempTablesMax:     px.CarryTempTablesMax,

		CustomSettings:    px.CustomSettings,
		HarmlessFunctions: px.HarmlessFunctions,

		PreparedBytesMax: px.PreparedBytesMax,
		CommitGuard:      px.CommitGuard,
		SecretTTL:        px.SecretTTL,
		LoginRolesMax:    px.LoginRolesMax,
		LookupUser:       px.LookupUser,

		CatalogDatabasesMax: px.CatalogDatabasesMax,
		TLS:                 ClientTLS(px.TLS),
		ServerTLS:           ServerTLS(px.ServerTLS),
		HBA:                 px.HBA,
		UserMaps:            px.UserMaps,
		UsersFile:           px.UsersFile,
		ServerUsersFile:     px.ServerUsersFile,
		AuthFailuresMax:     px.AuthFailuresMax,
		AdvisoryLocks:       px.AdvisoryLocks,
		AdvisoryLocksMax:    px.AdvisoryLocksMax,
		LockBarrierTimeout:  barrier,
		Reuse:               px.Reuse,
		ReuseMax:            px.ReuseMax,
		ReuseRoleMax:        px.ReuseRoleMax,
		ReuseIdle:           px.ReuseIdle,
		ReuseLifetime:       px.ReuseLifetime,
		PrewarmMax:          px.PrewarmMax,
	}
}

// derive fills in what the file may leave out.
func (c *Config) derive() error {
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return Problems{{Key: "name", Text: "is empty, and the host has no name: " +
				err.Error()}}
		}
		c.Name = host
	}
	under := func(path *string, name string) {
		if *path == "" && c.DataDir != "" {
			*path = filepath.Join(c.DataDir, name)
		}
	}
	under(&c.Raft.Dir, "raft")
	under(&c.Postgres.DataDir, filepath.Join("postgres", "data"))
	under(&c.Postgres.SecretsDir, "secrets")
	under(&c.HTTP.TokenFile, "http-token")
	if c.Proxy.LookupPasswordFile == "" {
		c.Proxy.LookupPasswordFile = filepath.Join(c.Postgres.SecretsDir, "lookup")
	}
	if node, ok := c.Self(); ok && c.Postgres.Listen == "" {
		c.Postgres.Listen = node.Postgres
	}
	if t, err := election.TimingOf(c.Group.Profile); err == nil && c.Proxy.LeaseGrace == 0 {
		c.Proxy.LeaseGrace = t.Promise - t.Lease
	}
	return nil
}

// Self returns this node's entry in the group; ok is false for a sidecar.
func (c Config) Self() (Node, bool) {
	for _, n := range c.Group.Nodes {
		if n.Name == c.Name {
			return n, true
		}
	}
	return Node{}, false
}
