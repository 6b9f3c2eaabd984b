package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// How the outbox is worked at.
const (
	outboxBeat    = time.Second // lanes are shared anew and looked at though nothing was announced
	outboxSample  = 10 * time.Second
	outboxPrune   = time.Hour
	outboxPerLane = 64
	outboxBytes   = 16 << 20
	// outboxSlow is how long a row may wait before readiness speaks of it.
	outboxSlow = time.Minute
	// settlePatience bounds the last attempt to take note of what is published.
	settlePatience = 2 * time.Second
)

// outbox publishes what ingest has left for the routes. It is the only link between
// the two: ingest adds rows in its transactions and never waits for it.
//
//	         OpenLanes ─▶ Balance ─▶ Read ─▶ Publish ─▶ settle ─┐
//	             ▲           ▲                                  │
//	connection   │           └────── every second, or told ◀────┘
//	lost ────────┘
//
// A row goes once the stream has confirmed it. What is confirmed and cannot be
// deleted, since PostgreSQL is away, is remembered and deleted before anything else
// is done; should this instance end before, the stream knows the repeat by its ID.
type outbox struct {
	store     *store.Store
	publisher *jetstream.RoutePublisher
	log       *slog.Logger

	published []store.OutboxRow // confirmed, and not deleted yet
	parked    []store.Parked    // refused, and not parked yet
	warned    time.Time         // of those that are parked

	trouble trouble // with PostgreSQL
	backlog atomic.Pointer[store.OutboxBacklog]
	lanes   atomic.Int64

	publishedTotal, parkedTotal, failedTotal prometheus.Counter
}

func newOutbox(s *store.Store, p *jetstream.RoutePublisher, reg prometheus.Registerer, log *slog.Logger) *outbox {
	o := &outbox{store: s, publisher: p, log: log}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	sampled := func(value func(*store.OutboxBacklog) float64) func() float64 {
		return func() float64 {
			if b := o.backlog.Load(); b != nil {
				return value(b)
			}
			return 0
		}
	}
	o.publishedTotal = counter("crossfade_outbox_published_total", "Outbox rows that the ROUTES stream has confirmed.")
	o.parkedTotal = counter("crossfade_outbox_parked_total", "Outbox rows that can never be published as they are and were put aside.")
	o.failedTotal = counter("crossfade_outbox_failures_total", "Attempts to publish an outbox row that failed and are made again.")
	gauge("crossfade_outbox_lanes", "Lanes of the outbox that this instance publishes, of 64.", func() float64 { return float64(o.lanes.Load()) })
	gauge("crossfade_outbox_rows", "Rows of all instances that wait in the outbox; beyond 100,000 an estimate.",
		sampled(func(b *store.OutboxBacklog) float64 { return float64(b.Rows) }))
	gauge("crossfade_outbox_parked_rows", "Rows that are parked, up to 100,000.",
		sampled(func(b *store.OutboxBacklog) float64 { return float64(b.Parked) }))
	gauge("crossfade_outbox_oldest_age_seconds", "How long the oldest row has waited in the outbox.",
		sampled(func(b *store.OutboxBacklog) float64 { return b.Oldest.Seconds() }))
	return o
}

// makeOutbox makes the publisher of routes, where there is a NATS to publish to.
func (b *Bridge) makeOutbox() error {
	if b.nats == nil {
		return nil
	}
	config := jetstream.DefaultRoutesConfig()
	if b.config.JetStream != nil {
		config.Setup = b.config.JetStream.Setup
	}
	publisher, err := jetstream.NewRoutePublisher(b.nats, config, b.log.With("part", "routes"))
	if err != nil {
		return err
	}
	b.outbox = newOutbox(b.store, publisher, b.registry, b.log.With("part", "routes"))
	return nil
}

// health is nil while rows are published without delay.
func (o *outbox) health() error {
	err := o.trouble.err()
	if err == nil {
		err = o.publisher.Health()
	}
	b := o.backlog.Load()
	if b == nil || b.Oldest < outboxSlow {
		return err
	}
	waiting := fmt.Errorf("%d messages wait to be published to routes, the oldest for %s", b.Rows, b.Oldest.Round(time.Second))
	return errors.Join(waiting, err)
}

// run publishes until ctx ends. What is left in the outbox then is published by
// others, or at the next start.
func (o *outbox) run(ctx context.Context) {
	var sampling sync.WaitGroup
	defer sampling.Wait()
	sampling.Go(func() { o.sample(ctx) })
	delay := firstOutboxRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := o.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if err == nil { // NATS is away
			o.trouble.Store(nil)
			continue
		}
		if o.trouble.Swap(&err) == nil {
			o.log.Warn("the outbox of routes cannot be worked at; trying again until it can", "error", err)
		}
		if time.Since(began) > lastOutboxRetry {
			delay = firstOutboxRetry // it had worked for a while
		}
		backoff.Sleep(ctx, backoff.Jitter(delay))
		delay = min(2*delay, lastOutboxRetry)
	}
	if err := o.settle(ctx); err != nil {
		o.log.Warn("messages that are published stay in the outbox and are published again; the stream knows them by their IDs for the length of its duplicate window",
			"messages", len(o.published), "error", err)
	}
}

const (
	firstOutboxRetry = 100 * time.Millisecond
	lastOutboxRetry  = 5 * time.Second
)

// session works with one hold on lanes. It returns nil once NATS cannot be reached:
// an instance that can't publish leaves the lanes to those that can.
func (o *outbox) session(ctx context.Context) error {
	if err := o.settle(ctx); err != nil {
		return err
	}
	if !o.publisher.AwaitConnected(ctx) {
		return ctx.Err()
	}
	lanes, err := o.store.OpenLanes(ctx)
	if err != nil {
		return err
	}
	defer o.lanes.Store(0)
	defer lanes.Close()
	var balanced time.Time
	for ctx.Err() == nil && o.publisher.Connected() {
		if time.Since(balanced) >= outboxBeat {
			if err := lanes.Balance(ctx); err != nil {
				return err
			}
			balanced = time.Now()
			o.lanes.Store(int64(len(lanes.Held())))
			o.trouble.Store(nil)
		}
		found, err := o.turn(ctx, lanes)
		if err != nil {
			return err
		}
		if !found {
			if err := lanes.Wait(ctx, outboxBeat); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn publishes the beginning of the lanes held, and reports whether there was
// anything to publish.
func (o *outbox) turn(ctx context.Context, lanes *store.Lanes) (found bool, err error) {
	rows, err := lanes.Read(ctx, outboxPerLane, outboxBytes, o.publisher.Resting())
	if err != nil || len(rows) == 0 {
		return false, err
	}
	messages := make([]jetstream.RouteMessage, len(rows))
	for i := range rows {
		r := &rows[i]
		messages[i] = jetstream.RouteMessage{Tenant: r.Tenant, Key: r.Tenant + "\x00" + r.Device, ID: r.PublishID(), Body: r.Body}
	}
	for i, outcome := range o.publisher.Publish(ctx, messages) {
		r := &rows[i]
		r.Body = nil // it may be long until PostgreSQL is back
		switch {
		case outcome.Stored:
			o.published = append(o.published, *r)
		case outcome.Refused != "":
			o.parked = append(o.parked, store.Parked{OutboxRow: *r, Reason: outcome.Refused})
			o.warnParked(r, outcome.Refused)
		case outcome.Err != nil:
			o.failedTotal.Inc()
		}
	}
	return true, o.settle(ctx)
}

// warnParked speaks for all that are parked in ten seconds; the table has every one.
func (o *outbox) warnParked(r *store.OutboxRow, reason string) {
	if now := time.Now(); now.Sub(o.warned) > 10*time.Second {
		o.warned = now
		o.log.Warn("a message cannot be published to a route and is parked; see crossfade_outbox_parked for this one and others",
			"tenant", r.Tenant, "route", r.RouteID, "message_id", r.MessageID.String(), "reason", reason)
	}
}

// settle takes out of the outbox what is published or refused.
func (o *outbox) settle(ctx context.Context) error {
	if len(o.published)+len(o.parked) == 0 {
		return nil
	}
	if ctx.Err() != nil { // the last chance
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), settlePatience)
		defer cancel()
		ctx = bounded
	}
	if err := o.store.SettleOutbox(ctx, o.published, o.parked); err != nil {
		return err
	}
	o.publishedTotal.Add(float64(len(o.published)))
	o.parkedTotal.Add(float64(len(o.parked)))
	o.published, o.parked = o.published[:0], o.parked[:0]
	return nil
}

// sample looks at the backlog now and then, for metrics and health, and prunes what
// was parked long ago.
func (o *outbox) sample(ctx context.Context) {
	tick := time.NewTicker(outboxSample)
	defer tick.Stop()
	var pruned time.Time
	for {
		if b, err := o.store.OutboxBacklog(ctx); err == nil {
			o.backlog.Store(&b)
		} else {
			o.log.Debug("the outbox could not be measured", "error", err)
		}
		if time.Since(pruned) > outboxPrune {
			if err := o.store.PruneParked(ctx); err == nil {
				pruned = time.Now()
			} else if ctx.Err() == nil {
				o.log.Warn("parked messages could not be pruned", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
