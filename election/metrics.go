package election

import "github.com/prometheus/client_golang/prometheus"

// metrics are what a node counts.
type metrics struct {
	orders   *prometheus.CounterVec
	requests *prometheus.CounterVec
	barriers *prometheus.CounterVec
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
