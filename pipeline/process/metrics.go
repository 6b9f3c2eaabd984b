package process

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/pipeline"
)

// metrics counts what became of the copies. Labels are of small cardinality; a
// tenant or device never is one.
type metrics struct {
	messages    *prometheus.CounterVec
	quarantined *prometheus.CounterVec
	latency     *prometheus.HistogramVec
	batch       prometheus.Histogram
	retries     prometheus.Counter
	ackErrors   *prometheus.CounterVec
	queued      prometheus.GaugeFunc

	byPath [3]pathMetrics // by pipeline.Path
}

type pathMetrics struct {
	written, quarantined, duplicate, ignored prometheus.Counter
	latency                                  prometheus.Observer
	ackErrors                                prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, queued func() float64) *metrics {
	m := &metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_messages_total",
			Help: "Copies of messages by path and what became of them: written, quarantined, duplicate (its message was there already), ignored (downlink, sentinels)."}, []string{"path", "outcome"}),
		quarantined: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_quarantined_total",
			Help: "Messages in quarantine by reason."}, []string{"reason"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "crossfade_commit_latency_seconds",
			Help:    "From the hand-over by a source to the commit, per copy.",
			Buckets: prometheus.ExponentialBuckets(0.001, 1.5, 26)}, []string{"path"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "crossfade_batch_messages",
			Help: "Copies per batch.", Buckets: prometheus.ExponentialBuckets(1, 2, 14)}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{Name: "crossfade_commit_retries_total",
			Help: "Batches that were run again since PostgreSQL was away or asked for it."}),
		ackErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_ack_errors_total",
			Help: "Acknowledgements that could not be given; the copy comes again and the ledger knows it."}, []string{"path"}),
		queued: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "crossfade_queued_messages",
			Help: "Copies waiting for a worker."}, queued),
	}
	reg.MustRegister(m.messages, m.quarantined, m.latency, m.batch, m.retries, m.ackErrors, m.queued)
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		m.byPath[p] = pathMetrics{
			written:     m.messages.WithLabelValues(p.String(), "written"),
			quarantined: m.messages.WithLabelValues(p.String(), "quarantined"),
			duplicate:   m.messages.WithLabelValues(p.String(), "duplicate"),
			ignored:     m.messages.WithLabelValues(p.String(), "ignored"),
			latency:     m.latency.WithLabelValues(p.String()),
			ackErrors:   m.ackErrors.WithLabelValues(p.String()),
		}
	}
	return m
}

func (m *metrics) settled(it *item, now time.Time, err error) {
	p := &m.byPath[it.Path]
	p.latency.Observe(now.Sub(it.at).Seconds())
	if err != nil {
		p.ackErrors.Inc()
	}
}
