// Package demo shows Crossfade at work on private servers, with simulated devices,
// and proves with the devices' own record that nothing was lost or doubled.
//
//	fleet (this process) ──▶ Mosquitto ──▶ crossfade run ──▶ PostgreSQL
//	                                         │      ▲
//	                                  mirror ▼      │
//	                                        NATS (this process)
//
// Run starts all of it, lets the devices publish while the story is told (tenants
// are flipped to JetStream one after the other until MQTT's copies are dropped, one is
// rolled back, and with Chaos `crossfade run` is killed at bad moments), waits until every copy has come to
// rest, compares, and removes everything. `crossfade run` is a process of its own,
// so that it can be killed.
package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/internal/options"
)

// Options says what is shown.
type Options struct {
	// Duration is how long the devices publish, 5 s to 24 h.
	Duration time.Duration
	// Rate is the messages per second of all devices together, 1 to 100,000.
	Rate float64
	// Devices of all tenants together, 1 to 100,000.
	Devices int
	// Tenants is 1 to 1000, at most as many as devices.
	Tenants int
	// Chaos kills `crossfade run` with SIGKILL several times, right after flips too.
	Chaos bool
	// Keep leaves everything but the devices running after the verdict, shows how to
	// reach each part, and waits until the context ends.
	Keep bool
	// Verdict is called with the report once it is known, while everything is still
	// up; its error ends the demo. nil: nobody is told before the end.
	Verdict func(*Report) error
	// Program is the path of the crossfade executable. Empty: this program is it.
	Program string
}

// DefaultOptions returns three tenants with sixty devices that send 600 messages/s
// for half a minute.
func DefaultOptions() Options {
	return Options{Duration: 30 * time.Second, Rate: 600, Devices: 60, Tenants: 3}
}

// Validate returns nil or an [options.Invalid] with every field that cannot be used.
func (o Options) Validate() error {
	invalid := options.Invalid{Of: "demo"}
	need := invalid.Need
	need(o.Duration >= 5*time.Second && o.Duration <= 24*time.Hour, "Duration", "is %v: choose 5s to 24h", o.Duration)
	need(o.Rate >= 1 && o.Rate <= 100_000, "Rate", "is %g: choose 1 to 100000", o.Rate)
	need(o.Devices >= 1 && o.Devices <= 100_000, "Devices", "is %d: choose 1 to 100000", o.Devices)
	need(o.Tenants >= 1 && o.Tenants <= 1000, "Tenants", "is %d: choose 1 to 1000", o.Tenants)
	need(o.Tenants <= o.Devices, "Tenants", "is %d: choose at most as many as devices (%d)", o.Tenants, o.Devices)
	return invalid.Err()
}

// Run plays the demo and tells its story on the screen. It needs Mosquitto's and
// PostgreSQL's programs, or DATABASE_URL instead of the latter, and leaves nothing
// behind. When ctx ends, so do the devices, and what they have sent until then is
// judged; that is no error.
//
// A report that is not OK is no error either. With an error there may be a report:
// then something went wrong after the verdict, such as the clearing away.
func Run(ctx context.Context, o Options, screen *Screen) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return newDemo(o, screen).run(ctx)
}

const (
	// ackWait is how long JetStream waits here until it delivers again what a killed
	// process had in hand. That only makes the demo shorter: a minute is usual, and
	// the verdict waits for the last of these copies either way.
	ackWait = 5 * time.Second
	// dwell is short, since the mirror makes all second copies here, and only so that it
	// can be seen: half a minute is usual.
	dwell = time.Second
	// redelivery is when the last of them has come: ackWait, and a little.
	redelivery = ackWait + 2*time.Second
	// verdictPatience is how long the verdict waits for a message that is missing,
	// after everything is settled.
	verdictPatience = 10 * time.Second
)

// demo is one performance.
type demo struct {
	Options
	screen *Screen
	// begun and beforeVerdict are for tests that interfere: with the running parts,
	// and with the database just before it is judged. nil otherwise.
	begun         func(*stack)
	beforeVerdict func(context.Context, *pgxpool.Pool) error
	patience      time.Duration
}

func newDemo(o Options, screen *Screen) *demo {
	return &demo{Options: o, screen: screen, patience: verdictPatience}
}

// death is the cause with which a performance ends when crossfade run dies though
// nobody killed it.
type death struct{ error }

func (d death) Unwrap() error { return d.error }

// errNotBegun is an end before anything was sent.
var errNotBegun = errors.New("interrupted before the devices began, so there is nothing to judge; everything is stopped and removed")

func (d *demo) run(interrupt context.Context) (report *Report, err error) {
	ctx, died := context.WithCancelCause(interrupt)
	defer died(nil)
	d.screen.say("%s %d devices of %d tenants publish %g messages/s over MQTT for %v.\n", d.screen.bold("crossfade demo:"), d.Devices, d.Tenants, d.Rate, d.Duration)
	cfg := fleet.DefaultConfig()
	cfg.Tenants, cfg.Devices, cfg.Rate = d.Tenants, d.Devices, d.Rate
	stack, err := startStack(ctx, d.screen, d.Program, fleet.Devices(cfg), func(err error) { died(death{err}) })
	if err != nil {
		if interrupt.Err() != nil {
			return nil, errNotBegun
		}
		return nil, err
	}
	defer func() {
		if closing := errors.Join(stack.close(), d.screen.failed()); closing != nil {
			err = errors.Join(err, closing)
		}
	}()
	cfg.BrokerURL, cfg.User, cfg.Password = stack.broker.URL(), stack.broker.User(), stack.broker.Password()
	if report, err = d.perform(ctx, stack, cfg); err != nil {
		return nil, err
	}
	if d.Verdict != nil {
		if err := d.Verdict(report); err != nil {
			return report, fmt.Errorf("write the verdict: %w", err)
		}
	}
	if d.Keep && ctx.Err() == nil {
		return report, d.keep(ctx, stack)
	}
	return report, nil
}

// perform has the devices publish while the story is told, and judges.
func (d *demo) perform(ctx context.Context, s *stack, cfg fleet.Config) (*Report, error) {
	f, err := fleet.New(cfg)
	if err != nil {
		return nil, err
	}
	meter := newMeter(s.instance)
	story := &story{stack: s, screen: d.screen, meter: meter}
	d.screen.say("")
	d.screen.begin()
	d.screen.tell("%s. All tenants are on MQTT. A mirror copies each message to\nJetStream too; that copy stands by until the database has the message, and is\ndropped as soon as it is proved that it can be.", d.screen.bold("The devices begin"))
	began := time.Now()
	if d.begun != nil {
		d.begun(s)
	}
	if err := d.play(ctx, story, f, fleet.TenantNames(cfg)); err != nil {
		return nil, err
	}
	report := &Report{
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
		if err := d.beforeVerdict(judging, s.pool); err != nil {
			return nil, err
		}
	}
	verdict, err := fleet.AwaitReconciled(judging, s.pool, f.Record(), d.patience)
	if err != nil {
		return nil, err
	}
	report.judge(verdict)
	report.Kills, report.Observed = story.kills, meter.sums()
	report.Effective, err = effective(judging, s.pool)
	return report, err
}

// play returns when the duration is over, ctx has ended or something is wrong, with
// all of its goroutines gone.
func (d *demo) play(ctx context.Context, story *story, f *fleet.Fleet, tenants []string) error {
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
		story.meter.watch(watching, d.screen, beatOf(d.screen.terminal, d.Duration), func() int64 { return f.Record().Counts().Acked })
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
func (d *demo) settle(ctx, judging context.Context, story *story) error {
	if ctx.Err() != nil {
		d.screen.tell("Interrupted. The devices have stopped; waiting until what they sent is written.")
	} else {
		d.screen.tell("%s. Waiting until both paths have run dry.", d.screen.bold("The devices stop"))
	}
	if err := story.drain(judging); err != nil {
		return err
	}
	left := redelivery - time.Since(story.killed)
	if story.kills == 0 || left <= 0 || ctx.Err() != nil {
		return nil
	}
	d.screen.tell("What a killed process had in hand of JetStream's copies comes again %v after\nthe kill. Waiting %.0f s for it, so that the verdict covers it (Ctrl-C: judge now).", ackWait, left.Seconds())
	before := story.meter.sums()
	d.countDown(ctx, left)
	if err := d.childDeath(ctx); err != nil {
		return err
	}
	if err := story.drain(judging); err != nil {
		return err
	}
	after := story.meter.sums()
	if came := after.received - before.received; came > 0 {
		d.screen.tell("%.0f came again; the ledger knew %.0f of them.", came, after.Known-before.Known+after.Matched-before.Matched)
	} else {
		d.screen.tell("No more came.")
	}
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
	var death death
	if errors.As(context.Cause(ctx), &death) {
		return death
	}
	return nil
}
