package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/crossfade-io/crossfade/bridge/api"
	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/downlink"
	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline/process"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// Config is all that an instance is told. DefaultConfig gives sensible values for
// everything but where the servers are.
type Config struct {
	// Instance names this process among its peers; stable over restarts.
	Instance string
	Version  string

	Store      store.Config
	Partitions store.PartitionOptions
	Pipeline   process.Options // Committed, Logger and Registry are set by New

	// MQTT and Mirror are sessions at the broker; nil leaves the part out. The
	// mirror needs NATS.
	MQTT, Mirror *legacy_mqtt.Config
	// NATS is the connection for the JetStream source, the mirror or both.
	NATS *jetstream.Config
	// JetStream is the source's; nil leaves it out.
	JetStream *jetstream.SourceConfig

	// Downlink sends to devices, over a connection of its own; nil leaves it out. Its
	// Pool, Registry and Logger are set by New.
	Downlink *downlink.Options

	// StandbyWait is how long a copy stands by; StandbyBuffer how many do, per
	// path, and how many MQTT copies may arrive behind a held one.
	StandbyWait   time.Duration
	StandbyBuffer int

	// Flags says who answers which stage is wanted for a tenant, and the bounds of
	// asking. Provider nil is the store; with another, the store's targets override
	// it. Overrides and Logger are set by New.
	Flags flags.Options
	// DefaultStage is that of a tenant nothing is known of.
	DefaultStage stage.Stage
	// FlagBeat is how often stages and flags are read though nothing was announced.
	FlagBeat time.Duration
	// Control bounds leases, dwells and sentinels. What belongs to one instance is
	// set by New.
	Control control.Options
	// ShutdownTimeout bounds the whole of a graceful stop.
	ShutdownTimeout time.Duration
	// Listen is the address of health and metrics; empty for none.
	Listen string
	// API is the HTTP API for back ends and devices; nil leaves it out.
	API *api.Config

	Logger *slog.Logger
}

// DefaultConfig returns the defaults for a database URL.
func DefaultConfig(databaseURL string) Config {
	return Config{
		Store:           store.DefaultConfig(databaseURL),
		Partitions:      store.DefaultPartitionOptions(),
		Pipeline:        process.DefaultOptions(),
		StandbyWait:     5 * time.Second,
		StandbyBuffer:   8000,
		Flags:           flags.DefaultOptions(),
		DefaultStage:    stage.MQTT,
		FlagBeat:        10 * time.Second,
		Control:         control.DefaultOptions(),
		ShutdownTimeout: 30 * time.Second,
		Listen:          "127.0.0.1:0",
	}
}

func (c *Config) validate() error {
	var errs []error
	need := func(ok bool, problem string) {
		if !ok {
			errs = append(errs, errors.New(problem))
		}
	}
	need(c.Instance != "", "Instance is empty: give each process a name that it keeps")
	need(c.MQTT != nil || c.JetStream != nil || c.Mirror != nil, "no source is set: enable MQTT, NATS JetStream or both")
	need(c.JetStream == nil || c.NATS != nil, "the JetStream source needs NATS")
	need(c.Mirror == nil || c.NATS != nil, "the mirror needs NATS")
	need(c.StandbyWait > 0, "StandbyWait must be more than zero")
	need(c.StandbyBuffer > 0, "StandbyBuffer must be 1 or more")
	need(c.FlagBeat > 0, "FlagBeat must be more than zero")
	need(c.ShutdownTimeout > 0, "ShutdownTimeout must be more than zero")
	need(c.Logger != nil, "Logger must be set")
	if _, err := stage.Parse(string(c.DefaultStage)); err != nil {
		errs = append(errs, fmt.Errorf("DefaultStage: %w", err))
	}
	return errors.Join(errs...)
}

// Bridge is one instance. Make it with New, call Run once.
type Bridge struct {
	config      Config
	log         *slog.Logger
	registry    *prometheus.Registry
	store       *store.Store
	partitions  *store.Partitions
	flags       *flags.Client
	control     *control.Control
	gate        *gate
	sentinels   *sentinels
	probe       control.Prober // nil without a broker
	publisher   *legacy_mqtt.Publisher
	standby     *standby
	parity      *parity.Recorder
	processor   *process.Processor
	nats        *jetstream.Conn
	feeds       []feeder // what Run starts, in order
	jetstream   *feed[*jetstream.Source]
	mirror      *jetstream.Mirror
	outbox      *outbox          // nil without NATS
	downlink    *downlink.Sender // nil where it is left out
	lag         *lag
	settings    settings
	appSettings *appSettings
	http        *server
	api         *httpAPI // nil without one
	health      *health
	ran         atomic.Bool
}

// New wires an instance together. It reads files (certificates, credentials),
// begins to connect to NATS, and waits some seconds at most for the first answer
// of the flags; none of them has to be there. The caller calls Run afterwards,
// which also cleans up.
func New(ctx context.Context, c Config) (*Bridge, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("bridge configuration: %w", err)
	}
	b := &Bridge{config: c, log: c.Logger, registry: prometheus.NewRegistry()}
	b.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if b.store, err = store.Open(ctx, c.Store); err != nil {
		return nil, err
	}
	if err := b.wire(ctx); err != nil {
		b.store.Close()
		return nil, err
	}
	return b, nil
}

func (b *Bridge) wire(ctx context.Context) error {
	c := &b.config
	c.Partitions.Logger = b.log
	var err error
	if b.partitions, err = store.NewPartitions(b.store.Pool(), c.Partitions); err != nil {
		return err
	}
	b.gate = newGate(b.registry)
	b.sentinels = newSentinels(b.registry, b.log)
	b.gate.sentinel = b.sentinels.take
	window := 0
	if c.MQTT != nil {
		window = c.MQTT.Window
	}
	b.standby = newStandby(c.StandbyWait, c.StandbyBuffer, window, c.Pipeline.IDMember, b.registry, b.log)
	if err := b.makeParity(); err != nil {
		return err
	}
	options := c.Pipeline
	options.Committed, options.Logger, options.Registry = b.standby.durable, b.log, b.registry
	options.Routes = c.NATS != nil // without it nobody would empty the outbox
	if b.processor, err = process.New(b.store, options); err != nil {
		return err
	}
	b.appSettings = newAppSettings(c.Pipeline.Settings, b.store.AppSettings, b.processor.SetSettings, b.log)
	b.standby.recent, b.standby.known = b.processor.Recent, b.store.Known
	b.standby.process, b.standby.decide, b.standby.arrived = b.processor.Submit, b.gate.decide, b.gate.arrivals
	b.gate.process, b.gate.hold = b.processor.Submit, b.standby.hold
	b.health = newHealth()
	if err := b.makeDownlink(); err != nil {
		return err
	}
	if err := b.wireSources(); err != nil {
		return err
	}
	if err := b.wireFlags(ctx); err != nil {
		return errors.Join(err, b.closeNATS(ctx))
	}
	if err := b.wireControl(); err != nil {
		return errors.Join(err, b.flags.Close(ctx), b.closeNATS(ctx))
	}
	if err := b.makeAPI(ctx); err != nil {
		return errors.Join(err, b.flags.Close(ctx), b.closeNATS(ctx))
	}
	b.wireHealth()
	return nil
}

func (b *Bridge) makeParity() (err error) {
	o := parity.DefaultOptions()
	o.Logger, o.Registry = b.log, b.registry
	b.standby.handOver = o.Interval
	b.parity, b.standby.tally, err = parity.New(b.store.Pool(), o)
	return err
}

// wireFlags comes late: it is the only part that starts goroutines, which Run ends.
func (b *Bridge) wireFlags(ctx context.Context) error {
	c := &b.config
	conn, err := pgx.ParseConfig(c.Store.URL)
	if err != nil {
		return fmt.Errorf("the database URL cannot be read: %w", err)
	}
	po := flags.DefaultStoreProviderOptions()
	po.Conn, po.Beat, po.Logger = conn, c.FlagBeat, b.log
	po.MaxStale = max(po.MaxStale, 3*c.FlagBeat)
	po.Debounce = min(po.Debounce, c.FlagBeat)
	store, err := flags.NewStoreProvider(po)
	if err != nil {
		return err
	}
	fo := c.Flags
	fo.Logger = b.log
	if fo.Provider == nil {
		fo.Provider = store
	} else {
		fo.Overrides = store
	}
	b.flags, err = flags.New(ctx, fo)
	return err
}

func (b *Bridge) wireSources() error {
	c := &b.config
	if c.NATS != nil {
		var err error
		if b.nats, err = jetstream.Connect(*c.NATS, b.log.With("part", "nats")); err != nil {
			return err
		}
		b.sentinels.settled = b.nats.Settled
	}
	if err := errors.Join(b.makeSources(), b.makeOutbox(), b.makeProbe()); err != nil {
		return errors.Join(err, b.closeNATS(context.Background()))
	}
	return nil
}

func (b *Bridge) makeSources() error {
	c := &b.config
	if c.MQTT != nil {
		f, err := newFeed("mqtt", b.gate.deliver, b.mqttSource(*c.MQTT, "mqtt"))
		if err != nil {
			return err
		}
		b.feeds = append(b.feeds, f)
		b.registry.MustRegister(mqttCollector{f.source, "mqtt"})
	}
	if c.JetStream != nil {
		f, err := newFeed("jetstream", b.gate.deliver, func() (*jetstream.Source, error) {
			return jetstream.NewSource(b.nats, *c.JetStream, b.log.With("part", "jetstream"))
		})
		if err != nil {
			return err
		}
		b.feeds, b.jetstream = append(b.feeds, f), f
		b.gate.largest = func() int { return f.source().Largest() }
		b.registry.MustRegister(jetstreamCollector{f.source})
	}
	if c.Mirror != nil {
		var err error
		o := jetstream.DefaultMirrorConfig()
		o.Sentinel = b.sentinels.mirrored
		o.Awaited = func() (uint64, time.Time) { return b.control.Awaited() } // it is made later
		if b.mirror, err = jetstream.NewMirror(b.nats, o, b.log.With("part", "mirror")); err != nil {
			return err
		}
		f, err := newFeed("mirror", b.mirror.Deliver, b.mqttSource(*c.Mirror, "mirror"))
		if err != nil {
			return err
		}
		b.feeds = append(b.feeds, f)
		b.registry.MustRegister(mqttCollector{f.source, "mirror"}, mirrorCollector{b.mirror})
	}
	return nil
}

// makeProbe makes what sends sentinels. It connects only once there is one to send.
func (b *Bridge) makeProbe() (err error) {
	var broker legacy_mqtt.Config
	switch c := &b.config; {
	case c.MQTT != nil:
		broker = *c.MQTT
	case c.Mirror != nil:
		broker = *c.Mirror
	default:
		return nil
	}
	broker.Logger = b.log.With("part", "sentinels")
	o := legacy_mqtt.DefaultPublisherOptions()
	o.Name = "sentinels"
	if b.publisher, err = legacy_mqtt.NewPublisher(broker, o); err != nil {
		return fmt.Errorf("sentinels: %w", err)
	}
	b.probe = probe{b.publisher}
	return nil
}

func (b *Bridge) mqttSource(c legacy_mqtt.Config, part string) func() (*legacy_mqtt.Source, error) {
	c.Logger = b.log.With("part", part)
	return func() (*legacy_mqtt.Source, error) { return legacy_mqtt.New(c) }
}

func (b *Bridge) closeNATS(ctx context.Context) error {
	if b.nats == nil {
		return nil
	}
	return b.nats.Close(ctx)
}
