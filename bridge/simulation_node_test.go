package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// simPort is the network between one process and the brokers.
type simPort struct {
	w    *simWorld
	name string

	mu      sync.Mutex
	down    bool
	dead    bool
	changed chan struct{}
}

func (p *simPort) set(f func(*simPort)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *simPort) state() (down, dead bool, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down, p.dead, p.changed
}

func (p *simPort) up() bool {
	down, dead, _ := p.state()
	return !down && !dead
}

func (p *simPort) rand(most time.Duration) time.Duration { return p.w.draw(most) }

// travel is what one way to or from a broker takes; false: it came to nothing.
func (p *simPort) travel(done <-chan struct{}) bool {
	timer := time.NewTimer(p.rand(5 * time.Millisecond))
	defer timer.Stop()
	select {
	case <-done:
		return false
	case <-timer.C:
	}
	for {
		down, dead, changed := p.state()
		if dead || !down {
			return !dead
		}
		select {
		case <-done:
			return false
		case <-changed:
		}
	}
}

// simNode is one run of an instance: what Bridge wires together, with the simulated
// brokers in place of its own.
type simNode struct {
	w    *simWorld
	name string
	port *simPort
	link *link

	store     *store.Store
	gate      *gate
	standby   *standby
	sentinels *sentinels
	processor *process.Processor
	control   *control.Control
	recorder  *parity.Recorder
	source    *simSource
	puller    *simPuller

	stopIntake, stopWork          context.CancelFunc
	taking, standing, workers, bg group
	cut                           bool          // from PostgreSQL or the brokers; of the script
	running                       chan struct{} // closed once it takes copies in
	over                          sync.WaitGroup
}

func (w *simWorld) start(name string) *simNode {
	n := &simNode{w: w, name: name, running: make(chan struct{}),
		port: &simPort{w: w, name: name, changed: make(chan struct{})}, link: newLink(w.notices, w.draw)}
	if err := n.wire(); err != nil {
		panic(err) // of the bubble: it says where
	}
	work, stopWork := context.WithCancel(context.Background())
	intake, stopIntake := context.WithCancel(work)
	n.stopWork, n.stopIntake = stopWork, stopIntake
	n.over.Go(func() { n.run(work, intake) })
	return n
}

func (n *simNode) wire() (err error) {
	reg, log := prometheus.NewRegistry(), slog.New(simLog{n})
	c := store.DefaultConfig(n.w.url)
	c.Dial = n.link.dial
	if n.store, err = store.Open(context.Background(), c); err != nil {
		return err
	}
	n.gate, n.sentinels = newGate(reg), newSentinels(reg, log)
	n.gate.sentinel, n.sentinels.settled = n.sentinels.take, n.port.settled
	n.standby = newStandby(5*time.Second, 1000, simWindow, pipeline.DefaultMessageIDMember, reg, log)
	po := parity.DefaultOptions()
	po.Logger, po.Registry = log, reg
	n.standby.handOver = po.Interval
	if n.recorder, n.standby.tally, err = parity.New(n.store.Pool(), po); err != nil {
		return err
	}
	o := process.DefaultOptions()
	o.Settings.RequireToken, o.Settings.RateLimit = false, 0
	o.Committed, o.Logger, o.Registry, o.RecentIDs = n.standby.durable, log, reg, 1000
	if n.processor, err = process.New(n.store, o); err != nil {
		return err
	}
	n.standby.recent, n.standby.known = n.processor.Recent, n.store.Known
	n.standby.process, n.standby.decide, n.standby.arrived = n.processor.Submit, n.gate.decide, n.gate.arrivals
	n.gate.process, n.gate.hold = n.processor.Submit, n.standby.hold
	n.source = &simSource{port: n.port, b: n.w.broker, id: n.name}
	n.puller = &simPuller{port: n.port}
	return n.wireControl(reg, log)
}

func (n *simNode) wireControl(reg *prometheus.Registry, log *slog.Logger) (err error) {
	o := control.DefaultOptions()
	o.Pool, o.Instance, o.Version = n.store.Pool(), n.name, "simulated"
	o.Wishes, o.Prober = n.w.flags.join(n), n
	o.Session = &control.Session{ClientID: n.name, Expiry: time.Hour}
	o.Moved = n.standby.restage
	o.Registry, o.Logger = reg, log
	n.w.rules.bend(&o)
	if n.control, err = control.New(o); err != nil {
		return err
	}
	n.gate.look, n.sentinels.saw, n.sentinels.genuine = n.control.Look, n.control.Saw, n.control.Genuine
	if n.w.rules.noLease {
		n.gate.look = func(tenant string) (stage.Stage, bool) {
			s, may := n.control.Look(tenant)
			return s, may || s.Outer()
		}
	}
	return nil
}

// Send is the control.Prober's: it publishes sentinels.
func (n *simNode) Send(ctx context.Context, list []control.Sentinel) error {
	if !n.port.travel(ctx.Done()) {
		return errors.New("the broker cannot be reached")
	}
	for _, s := range list {
		n.w.sent(s)
		for _, t := range pipeline.SentinelTypes() {
			n.w.broker.publish(&simMessage{tenant: s.Tenant, topic: pipeline.SentinelTopic(s.Tenant, t), body: pipeline.SentinelPayload(s.Nonce)})
		}
	}
	if n.w.rules.noSentinel {
		n.w.pretend(ctx, list)
	}
	return nil
}

// run follows Bridge.Run.
func (n *simNode) run(work, intake context.Context) {
	for n.control.SignOn(intake) != nil {
		backoff.Sleep(intake, 100*time.Millisecond+n.w.draw(time.Second))
		if intake.Err() != nil {
			return
		}
	}
	n.bg.start(work, n.control.Run)
	n.bg.start(work, n.recorder.Run)
	n.bg.start(work, n.sentinels.run)
	n.workers.start(work, n.processor.Run)
	n.standing.start(work, n.standby.run)
	for _, s := range []Source{n.source, n.puller} {
		n.taking.start(intake, func(ctx context.Context) { _ = s.Run(ctx, n.gate.deliver) })
	}
	close(n.running)
	n.w.tell("%s takes copies in", n.name)
}

func (n *simNode) runs() bool {
	select {
	case <-n.running:
		return true
	default:
		return false
	}
}

// kill ends the process at once: nothing that it still does gets out.
func (n *simNode) kill() {
	n.port.set(func(p *simPort) { p.dead = true })
	n.source.cut()
	n.link.kill()
	n.w.flags.leave(n)
	n.stopIntake()
	n.stopWork()
	n.w.dying.Go(func() {
		n.over.Wait()
		for _, g := range []*group{&n.taking, &n.standing, &n.workers, &n.bg} {
			g.stop()
		}
		n.store.Close()
	})
}

// stop follows Bridge.stop.
func (n *simNode) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	n.stopIntake()
	n.over.Wait()
	n.taking.wait()
	_ = n.processor.Drain(ctx)
	n.standing.stop()
	_ = n.processor.Drain(ctx)
	n.workers.stop()
	_ = n.source.Close(ctx)
	n.bg.stop()
	if n.runs() {
		_ = n.control.SignOff(ctx)
	}
	n.w.flags.leave(n)
	n.port.set(func(p *simPort) { p.dead = true })
	n.store.Close()
	n.link.kill()
	n.stopWork()
}

// simLog tells the story what instances say.
type simLog struct{ n *simNode }

func (l simLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l simLog) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l simLog) WithGroup(string) slog.Handler                    { return l }
func (l simLog) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		text += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	})
	l.n.w.tell("%s says: %s", l.n.name, text)
	return nil
}

// simFlags is the flag service.
type simFlags struct {
	mu     sync.Mutex
	wishes map[string]stage.Stage
	away   bool
	joined map[*simNode]chan struct{}
}

// simWishes are the flags as one instance gets them.
type simWishes struct {
	*simFlags
	changes chan struct{}
}

func (f *simFlags) join(n *simNode) simWishes {
	f.mu.Lock()
	defer f.mu.Unlock()
	changes := make(chan struct{}, 1)
	f.joined[n] = changes
	return simWishes{f, changes}
}

func (f *simFlags) leave(n *simNode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.joined, n)
}

func (f *simFlags) set(change func(*simFlags)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
	for _, c := range f.joined {
		simSignal(c)
	}
}

func (f *simFlags) wish(tenant string) stage.Stage {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wishes[tenant]
}

func (f simWishes) WishAll(_ context.Context, tenants []string, took func(string, control.Wish, error)) {
	for _, tenant := range tenants {
		f.mu.Lock()
		wish, away := f.wishes[tenant], f.away
		f.mu.Unlock()
		if away {
			took(tenant, control.Wish{}, errors.New("the flag service is away"))
		} else {
			took(tenant, control.Wish{Stage: wish, Why: "simulated"}, nil)
		}
	}
}
func (f simWishes) Changes() <-chan struct{}                   { return f.changes }
func (f simWishes) OverrideChanges() <-chan struct{}           { return nil }
func (f simWishes) Override(string) (stage.Stage, bool, error) { return "", false, nil }
