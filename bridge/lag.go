package bridge

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline"
)

const (
	// lagBeat is how often an instance tells how far it sees each path behind.
	lagBeat = 2 * time.Second
	// lookBeat is how often undelivered messages are looked at, while there are any; of
	// each stream the oldest lookAt, and then lookFor subjects are counted in full.
	lookBeat = 5 * time.Second
	lookAt   = 1000
	lookFor  = 8
	// askTimeout bounds what one beat asks of NATS, for the backlogs and again for the
	// looks: with both it is told while the figures before still count (control.LagFresh).
	// lagTimeout bounds each statement to PostgreSQL.
	askTimeout = 4 * time.Second
	lagTimeout = 10 * time.Second
)

// lag tells, on a slow beat, what this instance has in hand and how far JetStream's
// consumers are behind. On the message path it costs nothing: on each beat it goes
// through what the sources have in hand.
type lag struct {
	b        *Bridge
	mqtt     *feed[*legacy_mqtt.Source] // nil: this instance has none; like the next
	js       *feed[*jetstream.Source]
	messages *prometheus.GaugeVec
	seconds  *prometheus.GaugeVec
	givenUp  *prometheus.GaugeVec

	looks    map[string]*look // by stream: the last one
	troubled bool             // and it was said
}

// look is what was found in a stream.
type look struct {
	at      time.Time
	census  *control.Census
	unknown string
}

func newLag(b *Bridge, reg prometheus.Registerer) *lag {
	l := &lag{b: b, js: b.jetstream, looks: make(map[string]*look),
		messages: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "crossfade_lag_messages",
			Help: "Messages that are not settled. By JetStream, per stream: stored and not acknowledged, by all instances. By MQTT: in this instance's hand, since the broker's queue can't be seen. Absent: not known."}, []string{"path", "stream"}),
		seconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "crossfade_lag_seconds",
			Help: "Age of the oldest of crossfade_lag_messages: since it was stored, or by MQTT since it arrived here; 0 if there is none. Absent: not known."}, []string{"path", "stream"}),
		givenUp: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "crossfade_jetstream_given_up_messages",
			Help: "Messages that JetStream gave up after max_deliver deliveries, that are still stored and that no instance has settled; at least so many. Absent: not known."}, []string{"stream"}),
	}
	for _, f := range b.feeds {
		if source, ok := f.(*feed[*legacy_mqtt.Source]); ok && f.label() == "mqtt" {
			l.mqtt = source
		}
	}
	reg.MustRegister(l.messages, l.seconds, l.givenUp)
	return l
}

// run tells until ctx ends.
func (l *lag) run(ctx context.Context) {
	beat := time.NewTicker(lagBeat)
	defer beat.Stop()
	for {
		err := l.tell(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !l.troubled {
			l.b.log.Warn("how far paths are behind is not told; trying again", "error", err)
		}
		l.troubled = err != nil
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
		}
	}
}

// tell tells of MQTT also where NATS says nothing: then that is what is told of it.
func (l *lag) tell(ctx context.Context) error {
	var backlogs []jetstream.Backlog
	var streams []control.Stream
	var err error
	if l.js != nil {
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		backlogs = l.js.source().Backlogs(asking)
		cancel()
		l.show(backlogs)
		streams, err = l.streams(ctx, backlogs)
	}
	hand := control.Hand{Retention: l.b.config.Control.Retention.Seconds()}
	if l.mqtt != nil {
		hand.MQTT = l.countMQTT()
	}
	if l.js != nil {
		hand.JetStream = l.countJetStream(skew(backlogs))
	}
	ctx, cancel := context.WithTimeout(ctx, lagTimeout)
	defer cancel()
	return errors.Join(err, l.b.control.TellLag(ctx, hand, streams))
}

// countMQTT counts what came by this instance's session.
func (l *lag) countMQTT() *control.Census {
	var t control.Tally
	now := time.Now()
	l.mqtt.source().InHand(func(topic string, arrived time.Time) {
		d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic}
		t.Add(d.Tenant(), now.Sub(arrived))
	})
	c := t.Census()
	l.messages.WithLabelValues("mqtt", "").Set(float64(c.Messages))
	l.seconds.WithLabelValues("mqtt", "").Set(c.Oldest)
	return &c
}

// countJetStream counts what came by this instance's pulls; ahead is how much further
// the server's clock is than ours.
func (l *lag) countJetStream(ahead time.Duration) *control.Census {
	var t control.Tally
	now := time.Now().Add(ahead)
	l.js.source().InHand(func(_, subject string, stored time.Time) {
		age := time.Duration(0)
		if !stored.IsZero() {
			age = max(now.Sub(stored), 0)
		}
		t.Add(tenantOn(subject), age)
	})
	c := t.Census()
	return &c
}

func tenantOn(subject string) string {
	d := pipeline.Delivery{Path: pipeline.PathJetStream, Subject: subject}
	return d.Tenant()
}

// skew is how far the server's clock is ahead of this process's.
func skew(backlogs []jetstream.Backlog) time.Duration {
	for i := range backlogs {
		if backlogs[i].Err == nil {
			return time.Until(backlogs[i].At)
		}
	}
	return 0
}

// show sets the gauges. What is not known is taken away.
func (l *lag) show(backlogs []jetstream.Backlog) {
	for i := range backlogs {
		b := &backlogs[i]
		if b.Err != nil {
			l.messages.DeleteLabelValues("jetstream", b.Stream)
			l.seconds.DeleteLabelValues("jetstream", b.Stream)
			l.givenUp.DeleteLabelValues(b.Stream)
			continue
		}
		l.messages.WithLabelValues("jetstream", b.Stream).Set(float64(b.Undelivered) + float64(b.Unacknowledged))
		l.seconds.WithLabelValues("jetstream", b.Stream).Set(oldest(b))
		l.givenUp.WithLabelValues(b.Stream).Set(float64(b.GivenUp))
	}
}

// oldest is the age of a backlog's oldest message, in seconds; 0 if there is none.
func oldest(b *jetstream.Backlog) float64 {
	if b.Oldest.IsZero() {
		return 0
	}
	return max(b.At.Sub(b.Oldest), 0).Seconds()
}

// streams is what is told of all streams, if it is this instance's turn.
func (l *lag) streams(ctx context.Context, backlogs []jetstream.Backlog) (streams []control.Stream, err error) {
	turn := lagBeat * 9 / 10
	if failed := func(b jetstream.Backlog) bool { return b.Err != nil }; slices.ContainsFunc(backlogs, failed) {
		turn = 2 * lagBeat // who knows more goes first
	}
	mine, err := l.takeTurn(ctx, turn)
	if err != nil || !mine {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for i := range backlogs {
		streams = append(streams, l.stream(ctx, &backlogs[i]))
	}
	return streams, nil
}

func (l *lag) takeTurn(ctx context.Context, every time.Duration) (mine bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lagTimeout)
	defer cancel()
	return l.b.control.TakeLagTurn(ctx, every)
}

// stream is what is told of a stream.
func (l *lag) stream(ctx context.Context, b *jetstream.Backlog) control.Stream {
	s := control.Stream{Stream: b.Stream, Consumer: b.Consumer}
	if b.Err != nil {
		s.Failed, s.Unknown = true, b.Err.Error()
		return s
	}
	s.Undelivered, s.InHand = int64(b.Undelivered), int64(b.Unacknowledged)
	if !b.Oldest.IsZero() {
		age := oldest(b)
		s.Oldest = &age
	}
	if b.Undelivered == 0 {
		s.Tenants = &control.Census{}
		delete(l.looks, b.Stream)
		return s
	}
	last := l.looks[b.Stream]
	if last == nil || time.Since(last.at) >= lookBeat {
		last = &look{at: time.Now()}
		var err error
		if last.census, err = l.look(ctx, b); err != nil {
			last.census, last.unknown = nil, err.Error()
		}
		l.looks[b.Stream] = last
	}
	s.Tenants, s.Unknown = last.census, last.unknown
	return s
}

// look finds out whose the undelivered messages of a stream are: of the oldest, and of
// all where they are not too many. The tenants with the most of those are then counted
// in full.
func (l *lag) look(ctx context.Context, b *jetstream.Backlog) (*control.Census, error) {
	source := l.js.source()
	var t control.Tally
	subjects := make(map[string]string) // a tenant's; "" where it has several
	seen, err := source.Undelivered(ctx, b, lookAt, func(subject string, stored time.Time) {
		tenant := tenantOn(subject)
		if known, ok := subjects[tenant]; ok && known != subject {
			subjects[tenant] = ""
		} else {
			subjects[tenant] = subject
		}
		t.Add(tenant, max(b.At.Sub(stored), 0))
	})
	if err != nil {
		return nil, err
	}
	var unseen int64
	if !seen.All {
		unseen = int64(b.Undelivered) - int64(seen.Seen)
		for _, tenant := range t.Largest(lookFor) {
			if subjects[tenant] == "" || tenant == "" {
				continue
			}
			n, err := source.UndeliveredOn(ctx, b, subjects[tenant])
			if err != nil {
				return nil, err
			}
			unseen -= t.Set(tenant, int64(n))
		}
	}
	c := t.Census()
	if !seen.All {
		c.Unseen, c.UnseenOldest = max(unseen, 1), max(b.At.Sub(seen.Newest), 0).Seconds()
	}
	return &c, nil
}
