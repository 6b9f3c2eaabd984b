package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// replayBatch is how many quarantined messages are run again in one transaction.
// Live messages of the same devices wait for it.
const replayBatch = 500

// ReplayOptions of a replay. DefaultReplayOptions gives sensible ones.
type ReplayOptions struct {
	// Settings, IDMember, AutoProvision and Routes as for a Processor. The rate limit
	// does not apply: that a message be written now is the operator's will.
	Settings              check.Settings
	IDMember              string
	AutoProvision, Routes bool
	// DryRun does everything and takes it back: nothing is written. It has no device
	// provisioned, whose messages are hence UNREGISTERED_DEVICE in it.
	DryRun bool
	// Patience is how long PostgreSQL may be away before the replay gives up; 0 or more.
	Patience time.Duration
	// Each is told of every message once its fate is durable (or would be). It must
	// not keep what it is given.
	Each   func(*store.Replayed)
	Logger *slog.Logger
}

// DefaultReplayOptions returns the defaults, which need a Logger.
func DefaultReplayOptions() ReplayOptions {
	return ReplayOptions{
		Settings: check.DefaultSettings(),
		IDMember: pipeline.DefaultMessageIDMember,
		Patience: 30 * time.Second,
		Each:     func(*store.Replayed) {},
	}
}

// Validate names the first field that is out of range, and what would be in it.
func (o *ReplayOptions) Validate() error {
	switch err := validSettings(&o.Settings); {
	case err != nil:
		return fmt.Errorf("replay options: %w", err)
	case o.Patience < 0:
		return fmt.Errorf("replay options: Patience is %v: choose 0 or more", o.Patience)
	case o.Each == nil || o.Logger == nil:
		return errors.New("replay options: Each and Logger must be set")
	}
	return nil
}

// Replay runs quarantined messages of the span through the pipeline again, under
// their old IDs, in the order in which they were quarantined. What the checks and
// PostgreSQL accept now takes effect and leaves the quarantine; the rest stays, with
// the reason of now. It may be stopped and started again at any moment, and run
// beside ingest and beside itself: a message takes effect once.
//
// It returns an error when ctx ended, or when the database cannot be used; what
// Each was told until then is durable.
func Replay(ctx context.Context, s *store.Store, f store.QuarantineFilter, span store.QuarantineSpan, o ReplayOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	r := &replayer{
		ReplayOptions: o, store: s,
		decoder:  pipeline.NewDecoder(o.IDMember),
		messages: make([]pipeline.Message, replayBatch),
		// Nothing is believed for longer than a batch: a replay follows a correction.
		registry: newRegistry(0, s, o.AutoProvision && !o.DryRun, o.Logger),
		routes:   newRoutes(0, o.Logger, s.Routes),
	}
	for {
		var rows []store.Quarantined
		err := r.retry(ctx, func() (err error) {
			rows, err = s.QuarantinedPage(ctx, f, span, replayBatch)
			return err
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		span.After = rows[len(rows)-1].ID
		if err := r.batch(ctx, rows); err != nil {
			return err
		}
	}
}

type replayer struct {
	ReplayOptions
	store    *store.Store
	decoder  *pipeline.Decoder
	messages []pipeline.Message // memory of a batch's
	registry *registry
	routes   *routes
}

func (r *replayer) batch(ctx context.Context, rows []store.Quarantined) error {
	batch := make([]store.Replayed, len(rows))
	for i := range rows {
		batch[i].Row = rows[i]
		r.read(&batch[i], &r.messages[i])
	}
	defer func() {
		for i := range rows {
			r.messages[i].Forget()
		}
	}()
	if err := r.retry(ctx, func() error { return r.check(ctx, batch) }); err != nil {
		return err
	}
	published := func(i int) int { return batch[i].Entry.Publishes(len(batch[i].Row.Raw)) }
	for low, high := range parts(len(batch), published) {
		if err := r.write(ctx, batch[low:high]); err != nil {
			return err
		}
	}
	return nil
}

// read makes the row a message again, or says why it can't be one.
func (r *replayer) read(b *store.Replayed, m *pipeline.Message) {
	var d pipeline.Delivery
	if d, b.Unreadable = deliveryOf(&b.Row); b.Unreadable != "" {
		return
	}
	r.decoder.Decode(m, &d)
	switch m.Kind {
	case pipeline.KindDownlink:
		b.Unreadable = "its topic is one of those that go to devices: there is nothing to write"
		return
	case pipeline.KindSentinel:
		b.Unreadable = "its device is reserved for sentinels: there is nothing to write"
		return
	}
	b.Entry.Msg = m // the store gives it its old ID
}

// check gives the messages their verdicts, and looks their devices and routes up,
// all of the batch in one query.
func (r *replayer) check(ctx context.Context, batch []store.Replayed) error {
	now := time.Now()
	devices := make(wanted)
	var unjudged []*store.Entry
	for i := range batch {
		e := &batch[i].Entry
		if e.Msg == nil {
			continue
		}
		v := check.Content(check.Input{Message: e.Msg, Settings: &r.Settings, Now: now})
		if e.Reason, e.Detail = v.Reason, v.Detail; v.Reason == pipeline.Accepted {
			devices.add(e.Msg)
			unjudged = append(unjudged, e)
		}
	}
	if len(unjudged) == 0 {
		return nil
	}
	if err := r.registry.lookup(ctx, now, devices); err != nil {
		return err
	}
	accepted := unjudged[:0]
	for _, e := range unjudged {
		e.Device = devices.of(e.Msg)
		v := check.Registry(check.Input{Message: e.Msg, Device: e.Device, Settings: &r.Settings, Now: now})
		if e.Reason, e.Detail = v.Reason, v.Detail; v.Reason == pipeline.Accepted {
			accepted = append(accepted, e)
		}
	}
	return r.route(ctx, now, accepted)
}

// route finds the routes that accepted messages take.
func (r *replayer) route(ctx context.Context, now time.Time, accepted []*store.Entry) error {
	if !r.Routes || len(accepted) == 0 {
		return nil
	}
	entries := make([]store.Entry, len(accepted))
	for i, e := range accepted {
		entries[i] = *e
	}
	if err := r.routes.match(ctx, now, entries); err != nil {
		return err
	}
	for i, e := range accepted {
		e.Routes = entries[i].Routes
	}
	return nil
}

// write runs the batch's transaction. Where PostgreSQL refuses the data it halves the
// batch until the culprit stands alone, which stays in the quarantine.
func (r *replayer) write(ctx context.Context, batch []store.Replayed) error {
	err := r.retry(ctx, func() error { return r.store.Replay(ctx, batch, r.DryRun) })
	if err == nil {
		for i := range batch {
			r.Each(&batch[i])
		}
		return nil
	}
	switch e := &batch[0].Entry; {
	case !errors.Is(err, store.ErrData):
		return err
	case len(batch) > 1:
		half := len(batch) / 2
		if err := r.write(ctx, batch[:half]); err != nil {
			return err
		}
		return r.write(ctx, batch[half:])
	case e.Msg != nil && e.Reason == pipeline.Accepted:
		e.Reason, e.Detail = refused(e.Msg.Kind), store.Detail(err)
		return r.write(ctx, batch)
	case e.Msg != nil:
		// The table refuses the new reason: the row keeps the old one.
		r.Logger.Warn("PostgreSQL refuses the new reason of a quarantined message, which keeps the old one; look for constraints or triggers on quarantine_events",
			"id", batch[0].Row.ID, "reason", e.Reason, "error", err)
		e.Msg, batch[0].Unreadable = nil, "quarantine_events refuses its new reason "+string(e.Reason)
		return r.write(ctx, batch)
	}
	return fmt.Errorf("row %d of quarantine_events cannot be settled; look for constraints or triggers: %w", batch[0].Row.ID, err)
}

// retry runs f until it succeeds, fails for good, or PostgreSQL has been away for
// longer than Patience.
func (r *replayer) retry(ctx context.Context, f func() error) error {
	deadline := time.Now().Add(r.Patience)
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := f()
		if err == nil || !errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
		r.Logger.Warn("PostgreSQL cannot be used now; trying again", "error", err)
		backoff.Sleep(ctx, backoff.Jitter(delay))
	}
}
