package proxy

import "github.com/prometheus/client_golang/prometheus"

// metrics are all that the proxy counts. outcomes counts each answer to something interrupted, so
// that a COMMIT which is lost twice may count twice. A law, asserted by a test: of prewarmed,
// made = used + stale + closed + those that wait.
type metrics struct {
	connections      prometheus.Counter
	sessions         prometheus.Gauge
	refused          *prometheus.CounterVec
	sessionErrors    *prometheus.CounterVec
	losses           *prometheus.CounterVec
	restored         prometheus.Counter
	outcomes         *prometheus.CounterVec
	evictions        *prometheus.CounterVec
	cancels          *prometheus.CounterVec
	holdSeconds      prometheus.Histogram
	gateClosed       prometheus.Counter
	resets           *prometheus.CounterVec
	journalOverflows prometheus.Counter
	journalBytes     prometheus.Gauge
	replays          *prometheus.CounterVec
	tlsHandshakes    *prometheus.CounterVec
	tlsReloads       *prometheus.CounterVec
	authFailures     *prometheus.CounterVec
	replication      prometheus.Counter
	locks            *prometheus.CounterVec
	catalogAnswers   *prometheus.CounterVec
	reuse            *prometheus.CounterVec
	spare            prometheus.Gauge
	lostCommits      prometheus.Counter
	lossReaders      prometheus.Counter
	carries          *prometheus.CounterVec
	unprotected      prometheus.Counter
	limits           *prometheus.CounterVec
	prewarmed        *prometheus.CounterVec
	prewarmedNow     prometheus.Gauge
	ruleTimeouts     *prometheus.CounterVec
}

// The limits that have no metric of their own, as values of limits_total: docs/security.md.
const (
	limitStartup     = "startup_timeout"
	limitPacket      = "startup_packet"
	limitAccept      = "accept"
	limitOutstanding = "outstanding"
	limitInspect     = "inspect_bytes"
	limitPrepared    = "prepared_bytes"
	limitPortals     = "portals"
	limitParameters  = "server_parameters"

	limitParameterBytes = "server_parameters_bytes"
	limitLoginRoles     = "login_roles"

	limitCarryBytes  = "carry_temp_bytes"
	limitCarryTotal  = "carry_temp_total_bytes"
	limitCarryTables = "carry_temp_tables"
)

var limits = []string{
	limitStartup, limitPacket, limitAccept, limitOutstanding, limitInspect, limitPrepared,
	limitPortals, limitParameters, limitParameterBytes, limitLoginRoles, limitCarryBytes,
	limitCarryTotal, limitCarryTables,
}

func newPrewarmMetrics() (*prometheus.CounterVec, prometheus.Gauge) {
	return newVec("prewarmed_total", "Connections to the target of a planned change: made, or "+
			"refused by it; then used by a session, stale (the server was another one or not the "+
			"primary, or ended it), or closed unused.", "result",
			"made", "refused", "used", "stale", "closed"),
		newGauge("prewarmed_connections",
			"Connections to the target of a planned change that wait for a session.")
}

func newLossReaders() prometheus.Counter {
	return newCounter("lost_reads_total", "Sessions that may have read what a failover has lost: "+
		"their client sent something in the time of which commits may be lost.")
}

// newRuleTimeouts has a value of its label for each line with a hold_timeout: sessionRulesMax at
// most.
func newRuleTimeouts() *prometheus.CounterVec {
	return newVec("hold_rule_timeouts_total", "Statements and logins that ended with an error since "+
		"the hold_timeout of their line of session_limits was over.", "line")
}

// limit counts that a bound was reached.
func (m *metrics) limit(name string) { m.limits.WithLabelValues(name).Inc() }

func newCounter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "holdfast", Subsystem: "proxy", Name: name, Help: help,
	})
}

func newGauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "holdfast", Subsystem: "proxy", Name: name, Help: help,
	})
}

// newVec is a counter by the values of a label, all of which begin at 0.
func newVec(name, help, label string, values ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "holdfast", Subsystem: "proxy", Name: name, Help: help,
	}, []string{label})
	for _, value := range values {
		v.WithLabelValues(value)
	}
	return v
}

// refusals are the limits that connections are refused by.
var refusals = []string{
	"sessions_max", "connections", "auth_failures", "sessions_per_user", "sessions_per_database",
	"connections_per_address",
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		connections: newCounter("connections_total", "Client connections accepted."),
		sessions:    newGauge("sessions", "Client sessions."),
		refused: newVec("refused_total", "Connections refused by a limit.", "limit",
			refusals...),
		sessionErrors: newVec("session_errors_total",
			"Sessions ended with an error, by SQLSTATE.", "sqlstate"),
		losses: newVec("backend_losses_total", "Backends lost under a session.", "state",
			"planned", "idle", "in_transaction", "in_flight"),
		restored: newCounter("sessions_restored_total",
			"Sessions that went on with another backend."),
		outcomes: newVec("outcomes_total", "What interrupted statements were answered with.",
			"outcome", "committed", "aborted", "unknown", "rolled_back", "not_executed"),
		evictions: newVec("hold_evictions_total", "Holds that ended with an error, by reason.",
			"reason", "timeout", "canceled", "sessions"),
		cancels: newVec("cancels_total", "Cancel requests, by what was done.", "what",
			"relayed", "held", "commit", "unknown", "passed_on", "dropped", "late"),
		holdSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "holdfast", Subsystem: "proxy", Name: "hold_seconds",
			Help:    "How long clients waited for a primary.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2, 5, 10, 30, 60},
		}),
		gateClosed: newCounter("gate_closed_total", "Times a relay waited for its lease."),
		resets: newVec("resets_total", "Connections reset because of bytes that the peer's host "+
			"did not take, by reason.", "reason", "lease_end", "backend_silent", "client_silent"),
		journalOverflows: newCounter("journal_overflows_total",
			"Journals that grew over journal_bytes_max, or would have grown over what is left of "+
				"journal_total_bytes_max."),
		journalBytes: newGauge("journal_bytes", "Memory of journals beyond the first 2 KiB of each."),
		replays: newVec("replays_total", "Units of work that were run again, by what became of it.",
			"result", "begun", "same", "different", "canceled", "given_up", "timeout", "sessions"),
		tlsHandshakes: newVec("tls_handshakes_total", "TLS handshakes with clients.", "result",
			"ok", "failed"),
		tlsReloads: newVec("tls_reloads_total", "Times that files of TLS were read again.",
			"result", "ok", "failed"),
		authFailures: newVec("auth_failures_total", "Failed logins, by the method of the rule.",
			"method", methodScram, methodMD5, methodPassword, methodCert),
		replication: newCounter("replication_connections_total",
			"Replication connections that were passed through."),
		locks: newVec("advisory_locks_total", "Session advisory locks at a change of the primary: "+
			"taken again, or sessions that ended because one was lost to another session or "+
			"nobody knows how often it was taken.", "what", "retaken", "lost", "unknown"),
		catalogAnswers: newVec("catalog_answers_total", "What catalogues said of lost statements.",
			"answer", "only_reads", "may_write", "error"),
		reuse: newVec("reuse_total", "Server connections that sessions left behind, by what became "+
			"of them: kept once they were reset, reused, or closed for that reason.", "what",
			"kept", "reused", "unfit", "full", "old", "over", "ended"),
		spare: newGauge("spare_connections", "Server connections that wait for another login."),
		lostCommits: newCounter("lost_commits_total",
			"Sessions that ended because a commit they were told of is not on the new primary."),
		carries: newVec("temporary_tables_total", "Sessions with temporary tables in a planned "+
			"change: packed, or refused for what they are or have, then restored, or failed.",
			"what", "packed", "refused", "restored", "failed"),
		unprotected: newCounter("unprotected_commits_total", "Guarded commits that a client was told "+
			"of and that waited for no standby, by its own synchronous_commit, where the group's do."),
		limits: newVec("limits_total", "Times that a bound was reached.", "limit", limits...),
	}
	m.prewarmed, m.prewarmedNow = newPrewarmMetrics()
	m.ruleTimeouts, m.lossReaders = newRuleTimeouts(), newLossReaders()
	if reg != nil {
		reg.MustRegister(m.connections, m.sessions, m.refused, m.sessionErrors, m.losses,
			m.restored, m.outcomes, m.evictions, m.cancels, m.holdSeconds, m.gateClosed,
			m.resets, m.journalOverflows, m.journalBytes, m.replays, m.tlsHandshakes, m.tlsReloads,
			m.authFailures, m.replication, m.locks, m.catalogAnswers, m.reuse, m.spare,
			m.lostCommits, m.carries, m.unprotected, m.limits, m.prewarmed, m.prewarmedNow,
			m.ruleTimeouts, m.lossReaders)
	}
	return m
}
