package proxy

import "github.com/prometheus/client_golang/prometheus"

// metrics are all that the proxy counts. Laws, asserted by tests: losses = restored + sessions
// that ended while they were held; every unanswered COMMIT counts once in outcomes.
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
	reuse            *prometheus.CounterVec
	spare            prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "holdfast", Subsystem: "proxy", Name: name, Help: help,
		})
	}
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "holdfast", Subsystem: "proxy", Name: name, Help: help,
		}, []string{label})
		for _, value := range values {
			v.WithLabelValues(value)
		}
		return v
	}
	m := &metrics{
		connections: counter("connections_total", "Client connections accepted."),
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "holdfast", Subsystem: "proxy", Name: "sessions",
			Help: "Client sessions.",
		}),
		refused: vec("refused_total", "Connections refused by a limit.", "limit",
			"sessions_max", "connections"),
		sessionErrors: vec("session_errors_total",
			"Sessions ended with an error, by SQLSTATE.", "sqlstate"),
		losses: vec("backend_losses_total", "Backends lost under a session.", "state",
			"planned", "idle", "in_transaction", "in_flight"),
		restored: counter("sessions_restored_total",
			"Sessions that went on with another backend."),
		outcomes: vec("outcomes_total", "What interrupted statements were answered with.",
			"outcome", "committed", "aborted", "unknown", "rolled_back", "not_executed"),
		evictions: vec("hold_evictions_total", "Holds that ended with an error, by reason.",
			"reason", "timeout", "canceled", "sessions"),
		cancels: vec("cancels_total", "Cancel requests, by what was done.", "what",
			"relayed", "held", "commit", "unknown"),
		holdSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "holdfast", Subsystem: "proxy", Name: "hold_seconds",
			Help:    "How long clients waited for a primary.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2, 5, 10, 30, 60},
		}),
		gateClosed: counter("gate_closed_total", "Times a relay waited for its lease."),
		resets: vec("resets_total", "Connections reset because of bytes that the peer's host "+
			"did not take, by reason.", "reason", "lease_end", "backend_silent", "client_silent"),
		journalOverflows: counter("journal_overflows_total",
			"Journals that grew over journal_bytes_max."),
		reuse: vec("reuse_total", "Server connections that sessions left behind, by what became "+
			"of them: kept once they were reset, reused, or closed for that reason.", "what",
			"kept", "reused", "unfit", "full", "old", "over", "ended"),
		spare: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "holdfast", Subsystem: "proxy", Name: "spare_connections",
			Help: "Server connections that wait for another login.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.connections, m.sessions, m.refused, m.sessionErrors, m.losses,
			m.restored, m.outcomes, m.evictions, m.cancels, m.holdSeconds, m.gateClosed,
			m.resets, m.journalOverflows, m.reuse, m.spare)
	}
	return m
}
