package bridge

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// Run works until ctx ends, and then stops gracefully: intake first, then what is
// in hand is written and acknowledged, then the connections. It returns nil when
// all of that was done within ShutdownTimeout; otherwise the error says what was
// left, which is delivered again at the next start. It returns early with an error
// when the database is not set up (store.ErrSchema), the address is taken, or no
// source is left that runs; one source alone that fails is tried again, and
// readiness names it. A second Run is an error.
func (b *Bridge) Run(ctx context.Context) error {
	if !b.ran.CompareAndSwap(false, true) {
		return errors.New("bridge: Run was called before; make a new instance with New")
	}
	if err := b.http.start(); err != nil {
		return errors.Join(err, b.closeAll(ctx))
	}
	if err := b.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			err = nil // stopped while PostgreSQL was still away
		}
		return errors.Join(err, b.closeAll(ctx))
	}
	if err := b.startAPI(); err != nil {
		return errors.Join(err, b.control.SignOff(ctx), b.closeAll(ctx))
	}
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	intake, stopIntake := context.WithCancelCause(ctx)
	defer stopIntake(nil)

	var background, workers, standing, taking, mirroring group
	background.start(work, b.control.Run)
	background.start(work, b.partitions.Run)
	background.start(work, b.parity.Run)
	background.start(work, b.driveRollouts)
	background.start(work, b.followChanges)
	background.start(work, b.lag.run)
	background.start(work, b.sentinels.run)
	if b.outbox != nil {
		background.start(work, b.outbox.run)
	}
	background.start(work, b.sendDown)
	workers.start(work, b.processor.Run)
	standing.start(work, b.standby.run)
	if b.mirror != nil {
		mirroring.start(work, func(ctx context.Context) {
			if err := b.mirror.Run(ctx); err != nil {
				b.log.Error("the mirror has stopped", "error", err)
			}
		})
	}
	if b.jetstream != nil {
		background.start(work, b.watchSettings)
		background.start(work, b.watchStalls)
	}
	ended := b.endings(stopIntake)
	for _, f := range b.feeds {
		taking.start(intake, func(ctx context.Context) { f.run(ctx, func(err error) { ended(f, err) }) })
	}
	b.log.Info("running", "instance", b.config.Instance, "version", b.config.Version, "listen", b.http.address())

	<-intake.Done()
	var fatal error
	if ctx.Err() == nil {
		fatal = context.Cause(intake)
	}
	return errors.Join(fatal, b.stop(ctx, &taking, &standing, &workers, &mirroring, &background))
}

// endings is told of sources that have ended with an error. The instance works on
// with the others; only when all stand still there is nothing to stay for.
func (b *Bridge) endings(stop context.CancelCauseFunc) func(feeder, error) {
	var mu sync.Mutex
	told := make(map[feeder]bool)
	return func(f feeder, err error) {
		mu.Lock()
		defer mu.Unlock()
		if !told[f] {
			told[f] = true
			b.log.Error("a source has stopped and is tried again; mend it meanwhile", "source", f.label(), "error", err)
		}
		var all []error
		for _, f := range b.feeds {
			err := f.failure()
			if err == nil {
				return
			}
			all = append(all, err)
		}
		stop(errors.Join(all...))
	}
}

// stop ends an instance in order. Draining is bounded by ShutdownTimeout; what
// follows takes some seconds at most.
func (b *Bridge) stop(ctx context.Context, taking, standing, workers, mirroring, background *group) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.config.ShutdownTimeout)
	defer cancel()
	b.health.stopping.Store(true)
	b.log.Info("stopping: intake", "in_hand", b.processor.InHand())
	b.stopAPI(ctx)
	taking.wait()
	errs := []error{b.processor.Drain(ctx)}
	standing.stop() // gives back what stands by; rescues go on to the processor
	errs = append(errs, b.processor.Drain(ctx))
	workers.stop()
	mirroring.stop()
	// What is acknowledged must reach the brokers, even if draining has used up the time.
	closing, cancelClosing := context.WithTimeout(context.WithoutCancel(ctx), b.closingTime(ctx))
	defer cancelClosing()
	for _, f := range b.feeds {
		errs = append(errs, f.close(closing))
	}
	background.stop()
	if err := b.control.SignOff(closing); err != nil {
		b.log.Warn("the instance shows as running until its lease is over", "error", err)
	}
	errs = append(errs, b.closeAll(ctx))
	err := errors.Join(errs...)
	b.log.Info("stopped", "seconds", time.Since(began).Seconds(), "clean", err == nil)
	return err
}

// closingTime is what is left of ctx, and never less than what closing needs.
func (b *Bridge) closingTime(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	return max(time.Until(deadline), 3*time.Second)
}

// closeAll closes what New opened, apart from the sources.
func (b *Bridge) closeAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := errors.Join(b.closeAPI(ctx), b.flags.Close(ctx), b.closeProbe(ctx), b.closeNATS(ctx), b.http.stop(ctx))
	b.store.Close()
	return err
}

func (b *Bridge) closeProbe(ctx context.Context) error {
	if b.publisher == nil {
		return nil
	}
	return b.publisher.Close(ctx)
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
		if !backoff.Sleep(ctx, backoff.Jitter(delay)) {
			return ctx.Err()
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
	if err := b.ensurePartitions(ctx); err != nil {
		return err
	}
	if err := b.appSettings.load(ctx); err != nil {
		return err
	}
	if err := b.control.SignOn(ctx); err != nil { // last, since the lease begins with it
		return err
	}
	b.health.postgres.Store(nil)
	b.health.started.Store(true)
	return nil
}

// partitionsPatience bounds the making of partitions before intake begins.
const partitionsPatience = 30 * time.Second

// ensurePartitions makes the partitions of these days before anything is taken in.
// Where it cannot, though PostgreSQL answers (a long transaction holds a lock,
// another instance is at it), ingest does not wait: rows go to the default
// partitions, and maintenance goes on trying.
func (b *Bridge) ensurePartitions(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, partitionsPatience)
	defer cancel()
	err := b.partitions.Ensure(bounded, time.Now())
	if err == nil || ctx.Err() != nil || errors.Is(err, store.ErrSchema) {
		return err
	}
	if away := b.store.Ping(ctx); away != nil {
		return err
	}
	b.log.Warn("partitions could not be made yet; ingest begins in the default partitions", "error", err)
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
