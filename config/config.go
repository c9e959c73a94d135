package config

import "time"

// Config is the whole configuration of one node. The struct tags make the schema: mapstructure
// is the key, oneof the allowed values, min and max the bounds of a number. Zero-value strings that
// the comments call derived are filled in by Load.
type Config struct {
	// Name is this node's name; derived from the host name if empty.
	Name string `mapstructure:"name"`
	// DataDir holds what must survive a restart of the node: Raft log, endorsements, pledges.
	DataDir     string      `mapstructure:"data_dir"`
	Group       Group       `mapstructure:"group"`
	Raft        Raft        `mapstructure:"raft"`
	Postgres    Postgres    `mapstructure:"postgres"`
	Proxy       Proxy       `mapstructure:"proxy"`
	Synchronous Synchronous `mapstructure:"synchronous"`
	HTTP        HTTP        `mapstructure:"http"`
	Log         Log         `mapstructure:"log"`

	// warnings are what is odd but allowed.
	warnings []string
}

// Group names the Raft group that this node belongs to or, as a sidecar, asks.
type Group struct {
	// Cluster names the PostgreSQL cluster; nodes of another one are refused.
	Cluster string `mapstructure:"cluster"`
	// Profile chooses the timing of leases and of Raft.
	Profile string `mapstructure:"profile" oneof:"lan|cloud|wan"`
	// Nodes are the voters, the same list on all nodes.
	Nodes []Node `mapstructure:"nodes"`
	// DrainTimeout bounds how long a switchover lets open transactions finish.
	DrainTimeout time.Duration `mapstructure:"drain_timeout"`
	// PrewarmTime is what proxies have to log sessions in ahead before a switchover begins.
	PrewarmTime time.Duration `mapstructure:"prewarm_time"`
	// Fence is what a failover waits for before it promotes somebody.
	Fence string `mapstructure:"fence" oneof:"lease|recruit"`
	// CutOffAfter is how long a primary that runs must be out of reach for most nodes, or most
	// sidecars, before another member takes its place; 0: never.
	CutOffAfter time.Duration `mapstructure:"cut_off_after"`
	TLS         TLS           `mapstructure:"tls"`
}

// Node is one voter of the group. Names are values and not keys, since keys lose their case.
type Node struct {
	Name string `mapstructure:"name"`
	// Address is where the other nodes and the sidecars reach it, host:port.
	Address string `mapstructure:"address"`
	// Postgres is where its PostgreSQL server is reached, host:port; empty for a witness.
	Postgres string `mapstructure:"postgres"`
	// Witness tells that the node only votes and has no PostgreSQL server.
	Witness bool `mapstructure:"witness"`
	// Priority orders otherwise equal candidates; the higher wins.
	Priority int `mapstructure:"priority" max:"1000"`
	// NoFailover forbids promotion.
	NoFailover bool `mapstructure:"nofailover"`
}

// TLS names the files of the mutual TLS between nodes.
type TLS struct {
	CAFile   string `mapstructure:"ca_file"`
	CertFile string `mapstructure:"cert_file"`
	KeyFile  string `mapstructure:"key_file"`
}

// Raft makes this node a voter.
type Raft struct {
	Enabled bool `mapstructure:"enabled"`
	// Dir holds the Raft log; derived from DataDir if empty.
	Dir string `mapstructure:"dir"`
}

// Synchronous says whom a commit waits for.
type Synchronous struct {
	// Mode is off, on (one named standby), quorum (any of them) or strict (quorum that never
	// degrades); docs/synchronous.md says what each promises.
	Mode string `mapstructure:"mode" oneof:"off|on|quorum|strict"`
	// Standbys is how many a commit waits for in the modes quorum and strict.
	Standbys int `mapstructure:"standbys" min:"1" max:"99"`
	// DegradeAfter is how long a standby may be away before commits no longer wait for it.
	DegradeAfter time.Duration `mapstructure:"degrade_after"`
}

// HTTP is the local interface for status, health and metrics.
type HTTP struct {
	// Listen is a loopback address, since reading needs no authentication.
	Listen string `mapstructure:"listen"`
	// TokenFile has what requests that change something must show; derived from DataDir if empty.
	TokenFile string `mapstructure:"token_file"`
}

// Log says what is logged and how.
type Log struct {
	Level  string `mapstructure:"level" oneof:"debug|info|warn|error"`
	Format string `mapstructure:"format" oneof:"json|console"`
}

// Postgres makes this node the agent of a local PostgreSQL server.
type Postgres struct {
	Enabled bool `mapstructure:"enabled"`
	// BinDir holds initdb, pg_ctl, postgres and pg_rewind; the agent takes the newest of
	// /usr/lib/postgresql, then PATH, if empty.
	BinDir string `mapstructure:"bin_dir"`
	// DataDir is PGDATA; derived from the node's DataDir if empty.
	DataDir string `mapstructure:"data_dir"`
	// SocketDir holds the Unix socket that the agent connects to; the agent
	// chooses a private one if empty.
	SocketDir string `mapstructure:"socket_dir"`
	// Listen is where PostgreSQL listens, host:port; derived from group.nodes if empty.
	Listen string `mapstructure:"listen"`
	// OSUser runs PostgreSQL if the node itself runs as root.
	OSUser string `mapstructure:"os_user"`
	// Superuser is the role that the agent itself uses.
	Superuser string `mapstructure:"superuser"`
	// SecretsDir holds the passwords of the agent's roles; derived from DataDir if empty.
	SecretsDir string `mapstructure:"secrets_dir"`
	// Settings are the user's own, each "name = value", below the agent's.
	Settings []string `mapstructure:"settings"`
	// HBA are the user's own lines of pg_hba.conf, after the agent's.
	HBA []string `mapstructure:"hba"`
	// BootstrapSQL are files that run once, on the first primary.
	BootstrapSQL []string `mapstructure:"bootstrap_sql"`
	// AllowFrom are the addresses and networks of sidecars, which may connect over TCP too.
	AllowFrom []string `mapstructure:"allow_from"`
	Checksums bool     `mapstructure:"checksums"`
	Encoding  string   `mapstructure:"encoding"`
	Locale    string   `mapstructure:"locale"`

	// AdoptForeign lets the agent put data that Holdfast did not make aside and clone in its
	// place; without it such data stops the agent.
	AdoptForeign bool `mapstructure:"adopt_foreign"`
	// OnLockLoss is what becomes of the server when this node's lease on the lock has run out: also
	// when a majority of the voters is lost, or restarts at the same time and is silent.
	OnLockLoss string `mapstructure:"on_lock_loss" oneof:"hold|stop"`

	StartTimeout time.Duration `mapstructure:"start_timeout"`
	StopTimeout  time.Duration `mapstructure:"stop_timeout"`
	QueryTimeout time.Duration `mapstructure:"query_timeout"`
	DiskTimeout  time.Duration `mapstructure:"disk_timeout"`
	// LogBytesMax is the size at which the server's log is moved to postgresql.log.1.
	LogBytesMax int `mapstructure:"log_bytes_max" min:"1048576"`

	// ServerTLS is TLS to the other members' servers.
	ServerTLS ServerTLS `mapstructure:"server_tls"`
}

// Proxy makes this node a place that clients connect to.
type Proxy struct {
	Enabled    bool     `mapstructure:"enabled"`
	Listen     []string `mapstructure:"listen"`
	SourceAddr string   `mapstructure:"source_addr"`

	SessionsMax           int `mapstructure:"sessions_max" min:"1" max:"1000000"`
	CancelsMax            int `mapstructure:"cancels_max" min:"1" max:"1024"`
	SessionsPerUser       int `mapstructure:"sessions_per_user" min:"0" max:"1000000"`
	SessionsPerDatabase   int `mapstructure:"sessions_per_database" min:"0" max:"1000000"`
	ConnectionsPerAddress int `mapstructure:"connections_per_address" min:"0" max:"1000000"`

	StartupTimeout time.Duration `mapstructure:"startup_timeout"`
	DialTimeout    time.Duration `mapstructure:"dial_timeout"`
	KeepAlive      time.Duration `mapstructure:"keep_alive"`
	// LeaseGrace is T_P - T_L of the profile if 0.
	LeaseGrace time.Duration `mapstructure:"lease_grace"`

	HoldTimeout        time.Duration `mapstructure:"hold_timeout"`
	HoldSessionsMax    int           `mapstructure:"hold_sessions_max" min:"1"`
	HoldNoticeAfter    time.Duration `mapstructure:"hold_notice_after"`
	SessionLimits      []string      `mapstructure:"session_limits"`
	RestoreConcurrency int           `mapstructure:"restore_concurrency" min:"1"`
	ShutdownTimeout    time.Duration `mapstructure:"shutdown_timeout"`

	Loops           int `mapstructure:"loops" min:"0" max:"256"`
	OutstandingMax  int `mapstructure:"outstanding_max" min:"2048" max:"1048576"`
	PortalsMax      int `mapstructure:"portals_max" min:"1" max:"100000"`
	InspectBytesMax int `mapstructure:"inspect_bytes_max" min:"1024" max:"16777216"`
	JournalBytesMax int `mapstructure:"journal_bytes_max" min:"1"`
	// JournalTotalBytesMax bounds the journals of all sessions together.
	JournalTotalBytesMax int `mapstructure:"journal_total_bytes_max" min:"1"`
	// ReplayAttemptsMax bounds how often a unit of work is run again.
	ReplayAttemptsMax int `mapstructure:"replay_attempts_max" min:"0" max:"10"`
	PreparedBytesMax  int `mapstructure:"prepared_bytes_max" min:"1"`
	// ServerParamsMax and ServerParamsBytesMax bound what a server tells of its parameters.
	ServerParamsMax      int `mapstructure:"server_parameters_max" min:"50" max:"100000"`
	ServerParamsBytesMax int `mapstructure:"server_parameters_bytes_max" min:"16384" max:"67108864"`
	// CarryTempBytesMax bounds the temporary tables of a session that a planned change carries.
	CarryTempBytesMax      int `mapstructure:"carry_temp_bytes_max" min:"0"`
	CarryTempTotalBytesMax int `mapstructure:"carry_temp_total_bytes_max" min:"1"`
	CarryTempTablesMax     int `mapstructure:"carry_temp_tables_max" min:"1" max:"1000"`

	CustomSettings    []string `mapstructure:"custom_settings"`
	HarmlessFunctions []string `mapstructure:"harmless_functions"`

	CommitGuard string `mapstructure:"commit_guard" oneof:"all|explicit|off"`

	AdvisoryLocks      string        `mapstructure:"advisory_locks" oneof:"restore|assume|end"`
	AdvisoryLocksMax   int           `mapstructure:"advisory_locks_max" min:"1" max:"2000"`
	LockBarrierTimeout time.Duration `mapstructure:"lock_barrier_timeout"`

	SecretTTL     time.Duration `mapstructure:"secret_ttl"`
	LoginRolesMax int           `mapstructure:"login_roles_max" min:"0" max:"100000"`

	LookupUser string `mapstructure:"lookup_user"`
	// LookupPasswordFile is derived from postgres.secrets_dir if empty.
	LookupPasswordFile string `mapstructure:"lookup_password_file"`

	CatalogDatabasesMax int       `mapstructure:"catalog_databases_max" min:"1" max:"1000"`
	TLS                 ClientTLS `mapstructure:"tls"`
	ServerTLS           ServerTLS `mapstructure:"server_tls"`

	HBA             []string `mapstructure:"hba"`
	UserMaps        []string `mapstructure:"user_maps"`
	UsersFile       string   `mapstructure:"users_file"`
	ServerUsersFile string   `mapstructure:"server_users_file"`
	AuthFailuresMax int      `mapstructure:"auth_failures_max" min:"0"`

	Reuse         bool          `mapstructure:"reuse"`
	ReuseMax      int           `mapstructure:"reuse_max" min:"1"`
	ReuseRoleMax  int           `mapstructure:"reuse_role_max" min:"1"`
	ReuseIdle     time.Duration `mapstructure:"reuse_idle"`
	ReuseLifetime time.Duration `mapstructure:"reuse_lifetime"`
	// PrewarmMax bounds the sessions that are logged in ahead on the target of a switchover.
	PrewarmMax int `mapstructure:"prewarm_max" min:"0" max:"10000"`
}

// ClientTLS is TLS to clients.
type ClientTLS struct {
	Mode         string `mapstructure:"mode" oneof:"off|allow|require"`
	CertFile     string `mapstructure:"cert_file"`
	KeyFile      string `mapstructure:"key_file"`
	ClientCAFile string `mapstructure:"client_ca_file"`
	MinVersion   string `mapstructure:"min_version" oneof:"1.2|1.3"`
}

// ServerTLS is TLS to PostgreSQL; the modes are those of libpq's sslmode.
type ServerTLS struct {
	Mode     string `mapstructure:"mode" oneof:"disable|allow|prefer|require|verify-ca|verify-full"`
	CAFile   string `mapstructure:"ca_file"`
	CertFile string `mapstructure:"cert_file"`
	KeyFile  string `mapstructure:"key_file"`
}
