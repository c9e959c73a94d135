package election

import "github.com/prometheus/client_golang/prometheus"

// metrics are what a node counts.
type metrics struct {
	orders *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{orders: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "holdfast", Subsystem: "election", Name: "orders_total",
		Help: "Orders given by this node as coordinator, by kind.",
	}, []string{"kind"})}
	if reg != nil {
		reg.MustRegister(m.orders)
	}
	return m
}
