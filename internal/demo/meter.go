package demo

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Counts is what `crossfade run` has counted, over all processes of the demo so
// far. What a killed process counted after its last reading is not in it, so these
// are for watching; the verdict does not use them.
type Counts struct {
	at time.Time

	WrittenMQTT      float64 `json:"written_mqtt"`
	WrittenJetStream float64 `json:"written_jetstream"`
	Matched          float64 `json:"standby_matched"`
	Rescued          float64 `json:"standby_rescued"`
	Known            float64 `json:"known_already"` // processed, and the ledger had it
	received         float64
	busy             float64 // copies that are neither settled nor with their broker; now
}

// meter reads the instance's /metrics.
type meter struct {
	instance *instance
	parser   expfmt.TextParser

	mu         sync.Mutex
	generation int // of the process that last belongs to
	last       Counts
	sum        Counts
}

func newMeter(i *instance) *meter {
	return &meter{instance: i, parser: expfmt.NewTextParser(model.UTF8Validation)}
}

// read takes a reading and returns the sums.
func (m *meter) read(ctx context.Context) (Counts, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	generation := m.instance.generation()
	body, err := m.instance.get(ctx, "/metrics")
	if err != nil {
		return Counts{}, err
	}
	now, err := m.parse(body)
	if err != nil {
		return Counts{}, err
	}
	m.add(generation, now)
	return m.sum, nil
}

func (m *meter) parse(body []byte) (Counts, error) {
	families, err := m.parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return Counts{}, fmt.Errorf("/metrics of crossfade run: %w", err)
	}
	s := Counts{at: time.Now()}
	for name, family := range families {
		for _, metric := range family.GetMetric() {
			labels := make(map[string]string, 2)
			for _, l := range metric.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			s.count(name, labels, metric.GetCounter().GetValue(), metric.GetGauge().GetValue())
		}
	}
	return s, nil
}

func (s *Counts) count(name string, labels map[string]string, counter, gauge float64) {
	switch name {
	case "crossfade_messages_total":
		switch {
		case labels["outcome"] == "duplicate":
			s.Known += counter
		case labels["outcome"] != "written":
		case labels["path"] == "mqtt":
			s.WrittenMQTT += counter
		case labels["path"] == "jetstream":
			s.WrittenJetStream += counter
		}
	case "crossfade_standby_total":
		switch labels["end"] {
		case "matched":
			s.Matched += counter
		case "rescued_wait", "rescued_full":
			s.Rescued += counter
		}
	case "crossfade_source_received_total":
		s.received += counter
	case "crossfade_source_in_hand", "crossfade_mirror_waiting":
		s.busy += gauge
	}
}

// add counts on from the last reading; a new process starts from zero.
func (m *meter) add(generation int, now Counts) {
	if generation != m.generation {
		m.generation, m.last = generation, Counts{}
	}
	for _, c := range []struct{ sum, last, now *float64 }{
		{&m.sum.WrittenMQTT, &m.last.WrittenMQTT, &now.WrittenMQTT},
		{&m.sum.WrittenJetStream, &m.last.WrittenJetStream, &now.WrittenJetStream},
		{&m.sum.Matched, &m.last.Matched, &now.Matched},
		{&m.sum.Rescued, &m.last.Rescued, &now.Rescued},
		{&m.sum.Known, &m.last.Known, &now.Known},
		{&m.sum.received, &m.last.received, &now.received},
	} {
		if *c.now < *c.last { // started anew between asking for the generation and reading
			*c.last = 0
		}
		*c.sum += *c.now - *c.last
	}
	m.sum.at, m.sum.busy, m.last = now.at, now.busy, now
}

// sums returns the last sums without a new reading.
func (m *meter) sums() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sum
}

// beatOf is how often rates are shown: on a terminal they are redrawn, elsewhere
// each makes a line.
func beatOf(terminal bool, duration time.Duration) time.Duration {
	switch {
	case terminal:
		return 500 * time.Millisecond
	case duration <= 2*time.Minute:
		return 3 * time.Second
	case duration <= 20*time.Minute:
		return 15 * time.Second
	}
	return time.Minute
}

// watch shows the rates until ctx ends. sent tells how many messages the fleet has
// sent.
func (m *meter) watch(ctx context.Context, screen *Screen, beat time.Duration, sent func() int64) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	// Rates are over the last readings within window: steadier than one beat on a
	// terminal.
	window := max(beat, 2*time.Second)
	var readings []Counts
	for {
		now, err := m.read(ctx)
		if ctx.Err() != nil {
			screen.still()
			return
		}
		if err != nil {
			screen.rates(fmt.Sprintf("crossfade run is away; the broker keeps what devices send (sent %d)", sent()))
			readings = nil
		} else {
			readings = append(readings, now)
			for len(readings) > 2 && now.at.Sub(readings[0].at) > window+beat/2 {
				readings = readings[1:]
			}
			if len(readings) > 1 {
				screen.rates(ratesLine(readings[0], now, sent()))
			}
		}
		select {
		case <-ctx.Done():
			screen.still()
			return
		case <-tick.C:
		}
	}
}

func ratesLine(from, to Counts, sent int64) string {
	seconds := to.at.Sub(from.at).Seconds()
	rate := func(a, b float64) float64 { return (b - a) / seconds }
	return fmt.Sprintf("written/s mqtt %4.0f jetstream %4.0f | stood by/s matched %4.0f rescued %.0f | sent %d",
		rate(from.WrittenMQTT, to.WrittenMQTT), rate(from.WrittenJetStream, to.WrittenJetStream),
		rate(from.Matched, to.Matched), rate(from.Rescued, to.Rescued), sent)
}
