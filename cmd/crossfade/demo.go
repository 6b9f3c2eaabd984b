package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/fleet"
)

type demoCommand struct {
	Duration time.Duration `default:"30s" range:"5s..24h" help:"How long the devices publish."`
	Rate     float64       `default:"600" range:"1..100000" help:"Messages per second of all devices together."`
	Devices  int           `default:"60" range:"1..100000" help:"Devices of all tenants together."`
	Tenants  int           `default:"3" range:"1..1000" help:"Tenants, at most as many as devices."`
	Chaos    bool          `help:"Kill crossfade run with SIGKILL several times, right after flips too. Takes a minute longer: JetStream delivers only then what a killed process had in hand, and the verdict waits for it."`
	Keep     bool          `help:"Leave everything but the devices running after the verdict, show how to reach each part, and wait for Ctrl-C."`
	Output   string        `enum:"text,json" default:"text" help:"Form of the verdict: ${enum}. With json, the story goes to standard error."`
}

// Help is shown by --help below the summary.
func (demoCommand) Help() string {
	return `Needs Mosquitto and PostgreSQL installed (make deps) and no configuration. With DATABASE_URL set, a database is made there, and dropped at the end, instead of starting a PostgreSQL; its user must be allowed to create databases. Nothing is left running and no file behind. Ctrl-C ends early, with a verdict on what was sent until then; a second one skips that.

Exit code 0 when every message that devices sent is in the database once, 3 when not, 1 when something else went wrong.

Examples:

  crossfade demo
  crossfade demo --chaos --duration 2m --rate 3000
  crossfade demo --keep
  crossfade demo --output json | jq .lost`
}

// Validate names every flag out of range; kong calls it.
func (c demoCommand) Validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(c.Duration >= 5*time.Second && c.Duration <= 24*time.Hour, "--duration is %v: choose 5s to 24h", c.Duration)
	need(c.Rate >= 1 && c.Rate <= 100_000, "--rate is %g: choose 1 to 100000", c.Rate)
	need(c.Devices >= 1 && c.Devices <= 100_000, "--devices is %d: choose 1 to 100000", c.Devices)
	need(c.Tenants >= 1 && c.Tenants <= 1000, "--tenants is %d: choose 1 to 1000", c.Tenants)
	need(c.Tenants <= c.Devices, "--tenants is %d: choose at most as many as --devices (%d)", c.Tenants, c.Devices)
	return errors.Join(errs...)
}

// Run plays the demo.
func (c *demoCommand) Run(ctx context.Context, con *console) error {
	screen := newDemoScreen(con.out, con.terminal)
	d := newDemo(*c, screen)
	d.show = func(r *demoReport) error { r.writeText(screen); return nil }
	if c.Output == "json" {
		d.screen = newDemoScreen(con.err, false)
		d.show = func(r *demoReport) error { return r.writeJSON(con.out) }
	}
	return d.run(ctx)
}

const (
	// demoRedelivery is how long JetStream waits for the acknowledgement of a
	// killed process before it delivers the copy again: the consumers' ack_wait of
	// a minute, and a little.
	demoRedelivery = 62 * time.Second
	// demoPatience is how long the verdict waits for a message that is missing,
	// after everything is settled.
	demoPatience = 10 * time.Second
)

// demo is one performance.
type demo struct {
	demoCommand
	screen *demoScreen
	show   func(*demoReport) error
	// begun and beforeVerdict are for tests that interfere: with the running parts,
	// and with the database just before it is judged. nil otherwise.
	begun                func(*demoStack)
	beforeVerdict        func(context.Context, *pgxpool.Pool) error
	redelivery, patience time.Duration
}

func newDemo(c demoCommand, screen *demoScreen) *demo {
	return &demo{demoCommand: c, screen: screen, redelivery: demoRedelivery, patience: demoPatience}
}

// demoDeath is the cause with which a performance ends when crossfade run dies
// though nobody killed it.
type demoDeath struct{ error }

func (d demoDeath) Unwrap() error { return d.error }

// errDemoNotBegun is an end before anything was sent.
var errDemoNotBegun = errors.New("interrupted before the devices began, so there is nothing to judge; everything is stopped and removed")

// run returns nil when all was stored exactly once, errNo when not.
func (d *demo) run(interrupt context.Context) (err error) {
	ctx, died := context.WithCancelCause(interrupt)
	defer died(nil)
	d.screen.say("%s %d devices of %d tenants publish %g messages/s over MQTT for %v.\n", d.screen.bold("crossfade demo:"), d.Devices, d.Tenants, d.Rate, d.Duration)
	cfg := fleet.DefaultConfig()
	cfg.Tenants, cfg.Devices, cfg.Rate = d.Tenants, d.Devices, d.Rate
	stack, err := startDemoStack(ctx, d.screen, fleet.Devices(cfg), func(err error) { died(demoDeath{err}) })
	if err != nil {
		if interrupt.Err() != nil {
			return errDemoNotBegun
		}
		return err
	}
	defer func() {
		if closing := errors.Join(stack.close(), d.screen.failed()); closing != nil {
			err = errors.Join(err, closing)
		}
	}()
	cfg.BrokerURL, cfg.User, cfg.Password = stack.broker.URL(), stack.broker.User(), stack.broker.Password()
	report, err := d.perform(ctx, stack, cfg)
	if err != nil {
		return err
	}
	if err := d.show(report); err != nil {
		return fmt.Errorf("write the verdict: %w", err)
	}
	if d.Keep && ctx.Err() == nil {
		if err := d.keep(ctx, stack); err != nil {
			return err
		}
	}
	if !report.OK {
		return errNo
	}
	return nil
}

// perform has the devices publish while the story is told, and judges.
func (d *demo) perform(ctx context.Context, stack *demoStack, cfg fleet.Config) (*demoReport, error) {
	f, err := fleet.New(cfg)
	if err != nil {
		return nil, err
	}
	meter := newDemoMeter(stack.child)
	story := &demoStory{stack: stack, screen: d.screen, meter: meter}
	d.screen.say("")
	d.screen.begin()
	d.screen.tell("%s. All tenants are on MQTT. A mirror copies each message to\nJetStream too; that copy stands by until the database has the message.", d.screen.bold("The devices begin"))
	began := time.Now()
	if d.begun != nil {
		d.begun(stack)
	}
	if err := d.play(ctx, story, f, fleet.TenantNames(cfg)); err != nil {
		return nil, err
	}
	report := &demoReport{
		Interrupted: ctx.Err() != nil, Seconds: time.Since(began).Seconds(),
		Tenants: d.Tenants, Devices: d.Devices, Flips: story.flips,
	}
	// An interrupted demo is judged too. Dying is not an interruption.
	if err := d.childDeath(ctx); err != nil {
		return nil, err
	}
	judging, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if err := d.settle(ctx, judging, story); err != nil {
		return nil, errors.Join(err, d.childDeath(ctx))
	}
	if d.beforeVerdict != nil {
		if err := d.beforeVerdict(judging, stack.pool); err != nil {
			return nil, err
		}
	}
	verdict, err := fleet.AwaitReconciled(judging, stack.pool, f.Record(), d.patience)
	if err != nil {
		return nil, err
	}
	report.judge(verdict)
	report.Kills, report.Observed = story.kills, meter.sums()
	report.Effective, err = effective(judging, stack.pool)
	return report, err
}

// play returns when the duration is over, ctx has ended or something is wrong, with
// all of its goroutines gone.
func (d *demo) play(ctx context.Context, story *demoStory, f *fleet.Fleet, tenants []string) error {
	curtain, fall := context.WithTimeout(ctx, d.Duration)
	defer fall()
	watching, unwatch := context.WithCancel(ctx)
	published, watched := make(chan error, 1), make(chan struct{})
	go func() {
		err := f.Run(curtain)
		fall() // an early end is an error, and ends the story
		published <- err
	}()
	go func() {
		defer close(watched)
		story.meter.watch(watching, d.screen, demoBeat(d.screen.terminal, d.Duration), func() int64 { return f.Record().Counts().Acked })
	}()
	acts := story.acts(tenants, d.Duration, d.Chaos)
	err := story.play(ctx, curtain, acts)
	if ctx.Err() != nil {
		err = nil // whatever was going on was cut short; childDeath says why
	}
	if err != nil {
		fall()
	}
	err = errors.Join(err, <-published)
	unwatch()
	<-watched
	return err
}

// settle waits until every copy has come to rest, also those that JetStream still
// believes in the hands of a killed process.
func (d *demo) settle(ctx, judging context.Context, story *demoStory) error {
	if ctx.Err() != nil {
		d.screen.tell("Interrupted. The devices have stopped; waiting until what they sent is written.")
	} else {
		d.screen.tell("%s. Waiting until both paths have run dry.", d.screen.bold("The devices stop"))
	}
	if err := story.drain(judging); err != nil {
		return err
	}
	left := d.redelivery - time.Since(story.killed)
	if story.kills == 0 || left <= 0 || ctx.Err() != nil {
		return nil
	}
	d.screen.tell("What a killed process had in hand of JetStream's copies comes again a minute after\nthe kill. Waiting %.0f s for it, so that the verdict covers it (Ctrl-C: judge now).", left.Seconds())
	before := story.meter.sums()
	d.countDown(ctx, left)
	if err := d.childDeath(ctx); err != nil {
		return err
	}
	if err := story.drain(judging); err != nil {
		return err
	}
	after := story.meter.sums()
	d.screen.tell("%.0f came again; the ledger knew %.0f of them.", after.received-before.received, after.Known-before.Known+after.Matched-before.Matched)
	return nil
}

// countDown waits for that long, or until ctx ends.
func (d *demo) countDown(ctx context.Context, left time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	defer d.screen.still()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for end := time.Now().Add(left); ; {
		if d.screen.terminal {
			d.screen.rates(fmt.Sprintf("%.0f s left", time.Until(end).Seconds()))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// childDeath is why ctx has ended, if that is the end of crossfade run and not the
// user's wish.
func (d *demo) childDeath(ctx context.Context) error {
	var death demoDeath
	if errors.As(context.Cause(ctx), &death) {
		return death
	}
	return nil
}
