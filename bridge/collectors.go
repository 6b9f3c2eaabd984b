package bridge

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// The sources count in plain numbers; these collectors show them to Prometheus.
var (
	descReceived = prometheus.NewDesc("crossfade_source_received_total", "Copies that a source delivered, redeliveries included.", []string{"source", "part"}, nil)
	descAcked    = prometheus.NewDesc("crossfade_source_acked_total", "Copies that were acknowledged to the broker.", []string{"source", "part"}, nil)
	descReleased = prometheus.NewDesc("crossfade_source_released_total", "Copies that were given back untreated.", []string{"source", "part"}, nil)
	descInHand   = prometheus.NewDesc("crossfade_source_in_hand", "Copies delivered and not settled.", []string{"source", "part"}, nil)
	descHeld     = prometheus.NewDesc("crossfade_source_held_bytes", "Bytes of messages that were read and are not settled.", []string{"source", "part"}, nil)
	descRestarts = prometheus.NewDesc("crossfade_source_connects_total", "Connections made (MQTT), or times that pulling had to start over (JetStream).", []string{"source", "part"}, nil)
	descExtended = prometheus.NewDesc("crossfade_jetstream_extensions_total", "Acknowledgement deadlines extended for messages in hand.", []string{"part"}, nil)
	descGivenUp  = prometheus.NewDesc("crossfade_jetstream_given_up_total", "Messages of which this instance heard that JetStream gave them up after max_deliver deliveries: taken in all the same, or lost to this instance.", []string{"part", "result"}, nil)
	descMirrored = prometheus.NewDesc("crossfade_mirror_total", "MQTT messages by what the mirror did with them.", []string{"result"}, nil)
	descUnsent   = prometheus.NewDesc("crossfade_mirror_waiting", "MQTT messages that JetStream has not confirmed yet.", nil, nil)
)

func sourceMetrics(ch chan<- prometheus.Metric, source, part string, received, acked, released, restarts uint64, inHand float64) {
	counter := func(d *prometheus.Desc, n uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), source, part)
	}
	counter(descReceived, received)
	counter(descAcked, acked)
	counter(descReleased, released)
	counter(descRestarts, restarts)
	ch <- prometheus.MustNewConstMetric(descInHand, prometheus.GaugeValue, inHand, source, part)
}

// Unchecked collectors: two sessions share the descriptions, which Describe would
// have the registry refuse.
type mqttCollector struct {
	source func() *legacy_mqtt.Source
	name   string
}

func (mqttCollector) Describe(chan<- *prometheus.Desc) {}

func (c mqttCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.source().Stats()
	sourceMetrics(ch, c.name, "session", s.Received, s.Acked, s.Released, s.Connections, float64(s.InHand))
	ch <- prometheus.MustNewConstMetric(descHeld, prometheus.GaugeValue, float64(s.HeldBytes), c.name, "session")
}

type jetstreamCollector struct{ source func() *jetstream.Source }

func (jetstreamCollector) Describe(chan<- *prometheus.Desc) {}

func (c jetstreamCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.source().Stats() {
		sourceMetrics(ch, "jetstream", s.Consumer, s.Received, s.Acked, s.Released, s.FetchErrors, float64(s.InHand))
		ch <- prometheus.MustNewConstMetric(descHeld, prometheus.GaugeValue, float64(s.HeldBytes), "jetstream", s.Consumer)
		ch <- prometheus.MustNewConstMetric(descExtended, prometheus.CounterValue, float64(s.Extensions), s.Consumer)
		for result, n := range map[string]uint64{"taken": s.GivenUpTaken, "lost": s.GivenUpLost} {
			ch <- prometheus.MustNewConstMetric(descGivenUp, prometheus.CounterValue, float64(n), s.Consumer, result)
		}
	}
}

type mirrorCollector struct{ mirror *jetstream.Mirror }

func (mirrorCollector) Describe(chan<- *prometheus.Desc) {}

func (c mirrorCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.mirror.Stats()
	for result, n := range map[string]uint64{
		"published": s.Published, "downlink": s.Downlink, "unmirrorable": s.Unmirrorable,
		"too_large": s.TooLarge, "retried": s.Retries, "released": s.Released, "ack_error": s.AckErrors,
	} {
		ch <- prometheus.MustNewConstMetric(descMirrored, prometheus.CounterValue, float64(n), result)
	}
	ch <- prometheus.MustNewConstMetric(descUnsent, prometheus.GaugeValue, float64(s.Waiting+s.InFlight))
}
