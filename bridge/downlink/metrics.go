package downlink

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	sent, parked  *prometheus.CounterVec
	failed        prometheus.Counter
	ended         *prometheus.CounterVec
	sweepFailures prometheus.Counter
}

func (s *Sender) newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_downlink_published_total",
			Help: "Messages to devices that the broker has confirmed, by kind."}, []string{"kind"}),
		parked: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_downlink_parked_total",
			Help: "Messages to devices that can never be sent as they are and were put aside, by kind."}, []string{"kind"}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{Name: "crossfade_downlink_failures_total",
			Help: "Attempts to send a message to a device that failed and are made again."}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_downlink_commands_ended_total",
			Help: "Queued commands that became expired or missed."}, []string{"status"}),
		sweepFailures: prometheus.NewCounter(prometheus.CounterOpts{Name: "crossfade_downlink_sweep_failures_total",
			Help: "Times that commands could not be looked through for expired and missed ones."}),
	}
	gauge := func(name, help string, value func(*Backlog) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if b := s.backlog.Load(); b != nil {
				return value(b)
			}
			return 0
		})
	}
	reg.MustRegister(m.sent, m.parked, m.failed, m.ended, m.sweepFailures,
		gauge("crossfade_downlink_rows", "Rows of all instances that wait to be sent; beyond 100,000 an estimate.",
			func(b *Backlog) float64 { return float64(b.Rows) }),
		gauge("crossfade_downlink_parked_rows", "Rows that are parked, up to 100,000.",
			func(b *Backlog) float64 { return float64(b.Parked) }),
		gauge("crossfade_downlink_oldest_age_seconds", "How long the oldest row has waited to be sent.",
			func(b *Backlog) float64 { return b.Oldest.Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "crossfade_downlink_lanes",
			Help: "Lanes of the downlink that this instance sends, of 64."}, func() float64 { return float64(s.lanes.Load()) }))
	for _, k := range []Kind{Desired, Command, Response} {
		m.sent.WithLabelValues(string(k))
		m.parked.WithLabelValues(string(k))
	}
	m.ended.WithLabelValues(expired)
	m.ended.WithLabelValues(missed)
	return m
}

// settled counts the outcomes that were written down: all but the last of them, which
// are left.
func (m *metrics) settled(all, left []outcome) {
	held := make(map[int64]bool, len(left))
	for i := range left {
		held[left[i].ID] = true
	}
	for i := range all {
		o := &all[i]
		switch {
		case held[o.ID]:
		case o.action == park:
			m.parked.WithLabelValues(o.label()).Inc()
		case o.action == send && o.err == nil:
			m.sent.WithLabelValues(o.label()).Inc()
		}
	}
}

// label is the kind, of which a later release may have others.
func (r *row) label() string {
	switch r.Kind {
	case Desired, Command, Response:
		return string(r.Kind)
	}
	return "other"
}
