package parity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options of a Recorder. DefaultOptions gives sensible ones.
type Options struct {
	// Interval is how often the owner of the Tally is to call Hand: 100 ms or more.
	Interval time.Duration
	// Timeout bounds one statement: 100 ms or more.
	Timeout time.Duration
	// Farewell bounds what is under way when Run is to end, and again the writing
	// that is left then: 0 or more.
	Farewell time.Duration
	// Logger must be set; Registry nil shows no metrics.
	Logger   *slog.Logger
	Registry prometheus.Registerer
}

// DefaultOptions returns the defaults, which need a Logger.
func DefaultOptions() Options {
	return Options{Interval: 5 * time.Second, Timeout: 5 * time.Second, Farewell: time.Second}
}

// Validate names the first field that is out of range, and what would be in it.
func (o Options) Validate() error {
	switch {
	case o.Interval < 100*time.Millisecond:
		return fmt.Errorf("parity: Interval is %v: choose 100ms or more", o.Interval)
	case o.Timeout < 100*time.Millisecond:
		return fmt.Errorf("parity: Timeout is %v: choose 100ms or more", o.Timeout)
	case o.Farewell < 0:
		return fmt.Errorf("parity: Farewell is %v: choose 0 or more", o.Farewell)
	case o.Logger == nil:
		return errors.New("parity: Logger must be set")
	}
	return nil
}

// Recorder writes to PostgreSQL what a Tally has counted.
type Recorder struct {
	db      DB
	options Options
	in      chan *batch
	metrics *metrics
}

// New makes a Recorder and the Tally that it writes. db is used by one goroutine.
func New(db DB, o Options) (*Recorder, *Tally, error) {
	if err := o.Validate(); err != nil {
		return nil, nil, err
	}
	r := &Recorder{db: db, options: o, in: make(chan *batch, 1), metrics: newMetrics(o.Registry)}
	return r, &Tally{batch: newBatch(), out: r.in, metrics: r.metrics}, nil
}

// How long to wait before a write is tried again.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// Run writes until ctx ends, and then, within three times Farewell, what it has been handed by
// then. What cannot be written is tried again for as long as it takes: meanwhile the
// Tally keeps what is counted, up to its bound.
func (r *Recorder) Run(ctx context.Context) {
	for {
		select {
		case b := <-r.in:
			if r.persist(ctx, b) {
				continue
			}
			r.finish(ctx, b)
			return
		case <-ctx.Done():
			r.finish(ctx, newBatch())
			return
		}
	}
}

// finish writes what is left of b and what waits behind it, trying once.
func (r *Recorder) finish(ctx context.Context, b *batch) {
	select {
	case rest := <-r.in:
		b.merge(rest)
	default:
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.options.Farewell)
	defer cancel()
	if err := r.write(ctx, b); err != nil {
		r.metrics.lostCounts.Add(float64(len(b.counts)))
		r.metrics.lostSamples.Add(float64(len(b.samples)))
		r.options.Logger.Warn("the last parity counts could not be written and are lost", "tenant_minutes", len(b.counts), "error", err)
	}
}

// persist writes b, and returns false only when ctx ended before; then b holds what is
// left.
func (r *Recorder) persist(ctx context.Context, b *batch) bool {
	delay, warned := firstRetry, false
	for {
		err := r.write(ctx, b)
		switch {
		case err == nil:
			if warned {
				r.options.Logger.Info("parity is written again")
			}
			return true
		case ctx.Err() != nil:
			return false
		}
		if !warned {
			warned = true
			r.options.Logger.Warn("parity cannot be written; it is kept and tried again", "tenant_minutes", len(b.counts), "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(delay):
		}
		delay = min(2*delay, lastRetry)
	}
}

// write takes out of b what it has written, or what PostgreSQL will never take.
func (r *Recorder) write(ctx context.Context, b *batch) error {
	for rows := range slices.Chunk(sortedRows(b.counts), rowsAtOnce) {
		if err := r.once(ctx, len(rows), r.metrics.lostCounts, func(ctx context.Context) error { return writeRows(ctx, r.db, rows) }); err != nil {
			return err
		}
		for _, row := range rows {
			delete(b.counts, row.cell)
		}
	}
	if len(b.samples) == 0 {
		return nil
	}
	err := r.once(ctx, len(b.samples), r.metrics.lostSamples, func(ctx context.Context) error { return writeSamples(ctx, r.db, b.samples) })
	if err == nil {
		b.samples = nil
	}
	return err
}

// once makes a write of n things, and counts them as lost where PostgreSQL will never
// take them. A write that is under way when ctx ends has another Farewell to be done:
// one that is cut off may be done all the same, and would count twice.
func (r *Recorder) once(ctx context.Context, n int, lost prometheus.Counter, write func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.options.Timeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(r.options.Farewell, cancel) })()
	err := write(bounded)
	if err == nil {
		return nil
	}
	r.metrics.failures.Inc()
	if !refused(err) {
		return err
	}
	lost.Add(float64(n))
	r.options.Logger.Error("PostgreSQL refuses parity; it is left out", "count", n, "error", err)
	return nil
}

// metrics are over all tenants: tenants are no labels.
type metrics struct {
	matched, rescuedWait, rescuedFull, mismatched prometheus.Counter
	lostCounts, lostSamples, failures             prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_parity_total",
		Help: "Copies that stood by, by how the paths agreed: matched, rescued_wait, rescued_full, mismatched."}, []string{"result"})
	lost := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_parity_lost_total",
		Help: "What is missing in the parity tables: counts (copies not counted for want of room, tenants' minutes not written), samples."}, []string{"what"})
	m := &metrics{
		matched: total.WithLabelValues("matched"), mismatched: total.WithLabelValues("mismatched"),
		rescuedWait: total.WithLabelValues("rescued_wait"), rescuedFull: total.WithLabelValues("rescued_full"),
		lostCounts: lost.WithLabelValues("counts"), lostSamples: lost.WithLabelValues("samples"),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "crossfade_parity_write_failures_total",
			Help: "Statements that failed to write parity; they are run again, unless the data is refused."}),
	}
	if reg != nil {
		reg.MustRegister(total, lost, m.failures)
	}
	return m
}
