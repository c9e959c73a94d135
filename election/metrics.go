package election

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what a node counts.
type metrics struct {
	orders   *prometheus.CounterVec
	requests *prometheus.CounterVec
	barriers *prometheus.CounterVec
	writes   *prometheus.HistogramVec
	silences prometheus.Counter
}

// watchBarrier counts how barriers of advisory locks ended for this node, and how many ran out of
// time.
func (m *metrics) watchBarrier(reg prometheus.Registerer, l *lessee) {
	m.barriers = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "holdfast", Subsystem: "election", Name: "lock_barriers_total",
		Help: "Changes of the lock after which units of work waited for session advisory locks " +
			"of other proxies, by how the wait ended.",
	}, []string{"end"})
	for _, end := range []string{"retaken", "timeout"} {
		m.barriers.WithLabelValues(end)
	}
	l.onBarrier = func(end string) { m.barriers.WithLabelValues(end).Inc() }
	if reg != nil {
		reg.MustRegister(m.barriers)
	}
}

// storeBuckets are the bounds of the times of writes to the Raft store, from those of a fast disk
// to those of one that hangs.
var storeBuckets = []float64{
	.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5, 10, 20, 60,
}

// watchStore measures the writes to the Raft store and counts the silences.
func (m *metrics) watchStore(reg prometheus.Registerer, s *store) {
	m.writes = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "holdfast", Subsystem: "election", Name: "store_write_seconds",
		Help: "Times of writes to the Raft store, by kind: log entries, and the term and vote. " +
			"A write that hangs is counted when it returns.",
		Buckets: storeBuckets,
	}, []string{"write"})
	m.silences = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "holdfast", Subsystem: "election", Name: "store_silences_total",
		Help: "How often this node fell silent in Raft since a write to the Raft store failed " +
			"or hung.",
	})
	for _, what := range []string{writeLog, writeSet} {
		m.writes.WithLabelValues(what)
	}
	s.measure = func(what string, took time.Duration) {
		m.writes.WithLabelValues(what).Observe(took.Seconds())
	}
	s.onSilence = m.silences.Inc
	if reg != nil {
		reg.MustRegister(m.writes, m.silences)
	}
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{orders: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "holdfast", Subsystem: "election", Name: "orders_total",
		Help: "Orders given by this node as coordinator, by kind.",
	}, []string{"kind"}), requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "holdfast", Subsystem: "election", Name: "requests_total",
		Help: "Requests of other nodes and of sidecars to this node, by path, or borrow and return.",
	}, []string{"path"})}
	if reg != nil {
		reg.MustRegister(m.orders, m.requests)
	}
	return m
}
