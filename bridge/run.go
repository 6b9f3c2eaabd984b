package bridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/pipeline/store"
)

// Run works until ctx ends, and then stops gracefully: intake first, then what is
// in hand is written and acknowledged, then the connections. It returns nil when
// all of that was done within ShutdownTimeout; otherwise the error says what was
// left, which is delivered again at the next start. It returns early with an error
// when the database is not set up (store.ErrSchema) or the address is taken.
func (b *Bridge) Run(ctx context.Context) error {
	if err := b.http.start(); err != nil {
		return errors.Join(err, b.closeAll(ctx))
	}
	if err := b.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			err = nil // stopped while PostgreSQL was still away
		}
		return errors.Join(err, b.closeAll(ctx))
	}
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	intake, stopIntake := context.WithCancelCause(ctx)
	defer stopIntake(nil)

	var background, workers, standing, taking, mirroring group
	background.start(work, b.tenants.run)
	background.start(work, b.partitions.Run)
	background.start(work, b.heartbeat)
	workers.start(work, b.processor.Run)
	standing.start(work, b.standby.run)
	if b.mirror != nil {
		mirroring.start(work, func(ctx context.Context) { _ = b.mirror.Run(ctx) })
	}
	for _, s := range b.sources {
		taking.start(intake, func(ctx context.Context) {
			if err := s.Run(ctx, b.deliverTo(s)); err != nil {
				stopIntake(fmt.Errorf("%s: %w", s.name, err))
			}
		})
	}
	b.log.Info("running", "instance", b.config.Instance, "version", b.config.Version, "listen", b.http.address())

	<-intake.Done()
	var fatal error
	if ctx.Err() == nil {
		fatal = context.Cause(intake)
	}
	return errors.Join(fatal, b.stop(ctx, &taking, &standing, &workers, &mirroring, &background))
}

// stop ends an instance in order. Each step is bounded by what is left of
// ShutdownTimeout.
func (b *Bridge) stop(ctx context.Context, taking, standing, workers, mirroring, background *group) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.config.ShutdownTimeout)
	defer cancel()
	b.health.stopping.Store(true)
	b.log.Info("stopping: intake", "in_hand", b.processor.InHand())
	taking.wait()
	errs := []error{b.processor.Drain(ctx)}
	standing.stop() // gives back what stands by; rescues go on to the processor
	errs = append(errs, b.processor.Drain(ctx))
	workers.stop()
	mirroring.stop()
	for _, s := range b.sources {
		if err := s.Close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", s.name, err))
		}
	}
	background.stop()
	errs = append(errs, b.signOff(ctx), b.closeAll(ctx))
	err := errors.Join(errs...)
	b.log.Info("stopped", "seconds", time.Since(began).Seconds(), "clean", err == nil)
	return err
}

// closeAll closes what New opened, apart from the sources.
func (b *Bridge) closeAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := errors.Join(b.flags.Close(ctx), b.closeNATS(ctx), b.http.stop(ctx))
	b.store.Close()
	return err
}

func (b *Bridge) deliverTo(s *running) deliverFunc {
	if s.mirrors {
		return b.mirror.Deliver
	}
	return b.gate.deliver
}

// prepare waits for PostgreSQL for as long as it takes, refuses a database that is
// not set up, and makes sure that partitions are there and stages are known before
// anything is taken in.
func (b *Bridge) prepare(ctx context.Context) error {
	delay := 100 * time.Millisecond
	for {
		err := b.prepareOnce(ctx)
		if err == nil || errors.Is(err, store.ErrSchema) || ctx.Err() != nil {
			return err
		}
		var schema *store.SchemaError
		if errors.As(err, &schema) {
			return err
		}
		if b.health.postgres.Swap(&err) == nil {
			b.log.Warn("waiting for PostgreSQL; nothing is taken in meanwhile", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, 5*time.Second)
	}
}

func (b *Bridge) prepareOnce(ctx context.Context) error {
	if err := b.store.Ping(ctx); err != nil {
		return err
	}
	if err := store.VerifySchema(ctx, b.store.Pool()); err != nil {
		return err
	}
	if err := b.partitions.Ensure(ctx, time.Now()); err != nil {
		return err
	}
	if err := b.tenants.load(ctx); err != nil {
		return err
	}
	if err := b.signOn(ctx); err != nil {
		return err
	}
	b.health.postgres.Store(nil)
	b.health.started.Store(true)
	return nil
}

// group is some goroutines with a context of their own.
type group struct {
	wg      sync.WaitGroup
	cancels []context.CancelFunc
}

func (g *group) start(ctx context.Context, f func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	g.cancels = append(g.cancels, cancel)
	g.wg.Go(func() { f(ctx) })
}

// wait waits for them to end by themselves; stop makes them end.
func (g *group) wait() { g.wg.Wait() }

func (g *group) stop() {
	for _, cancel := range g.cancels {
		cancel()
	}
	g.wg.Wait()
}
