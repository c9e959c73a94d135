package election

import "github.com/prometheus/client_golang/prometheus"

// metrics are what a node counts.
type metrics struct {
	orders   *prometheus.CounterVec
	requests *prometheus.CounterVec
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
