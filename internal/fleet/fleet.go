package fleet

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Fleet publishes for all devices of a configuration.
type Fleet struct {
	cfg        Config
	devices    []Device
	record     *Record
	endpoint   endpoint
	publishers []*publisher
	log        *slog.Logger

	mu      sync.Mutex
	started bool
	open    int   // connections
	last    error // why the last connection was lost or not made
	reached bool  // a connection was made at least once
	refusal bool  // a refusal was logged
}

// ErrStarted is returned by a second Run.
var ErrStarted = errors.New("fleet: Run was called before: make a new Fleet")

// New prepares a fleet. It connects to nothing yet.
func New(cfg Config) (*Fleet, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	addr, _, err := cfg.address()
	if err != nil {
		return nil, err
	}
	secure, err := cfg.tlsConfig()
	if err != nil {
		return nil, err
	}
	f := &Fleet{cfg: cfg, devices: Devices(cfg), record: cfg.Record, log: cfg.Logger}
	f.endpoint = endpoint{addr: addr, tls: secure, maxInflight: cfg.MaxInflight}
	f.endpoint.user, f.endpoint.password = cfg.login()
	if f.record == nil {
		f.record = NewRecord(f.devices)
	} else if err := f.record.forDevices(f.devices); err != nil {
		return nil, err
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.assign()
	return f, nil
}

// assign deals the devices out to connections.
func (f *Fleet) assign() {
	// Client IDs are new for every fleet: two with the same ID would push each
	// other off the broker for ever.
	var nonce [6]byte
	_, _ = rand.Read(nonce[:]) // never fails: crypto/rand ends the program instead
	n := f.cfg.connections()
	f.publishers = make([]*publisher, n)
	for i := range f.publishers {
		f.publishers[i] = &publisher{fleet: f, clientID: fmt.Sprintf("fleet-%s-%d", hex.EncodeToString(nonce[:]), i+1)}
	}
	for i, d := range f.devices {
		rec := f.record.devices[f.record.index[d.String()]]
		s := &sender{device: d, record: rec, seq: rec.last()}
		for kind := range s.topics {
			s.topics[kind] = Topic(d, Kind(kind))
		}
		p := f.publishers[i%n]
		p.devices = append(p.devices, s)
	}
}

// Devices are the devices that play.
func (f *Fleet) Devices() []Device { return append([]Device(nil), f.devices...) }

// Record is the fleet's record, which grows while it runs.
func (f *Fleet) Record() *Record { return f.record }

// Connected is the number of open connections, and how many there should be.
func (f *Fleet) Connected() (open, all int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open, len(f.publishers)
}

// Run publishes until ctx ends or every device has sent PerDevice messages,
// then waits for outstanding PUBACKs: up to DrainTimeout after the end of ctx.
// It may be called once. Broken connections are mended for as long as it runs
// and are no error, unless there never was one; a refused login is. What the
// record shows as attempted and not acknowledged when Run returns is uncertain.
func (f *Fleet) Run(ctx context.Context) error {
	f.mu.Lock()
	again := f.started
	f.started = true
	f.mu.Unlock()
	if again {
		return ErrStarted
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	g, intake := errgroup.WithContext(ctx)
	defer context.AfterFunc(intake, func() {
		select {
		case <-time.After(f.cfg.DrainTimeout):
			cancel()
		case <-work.Done():
		}
	})()
	start := time.Now()
	for i, p := range f.publishers {
		if f.cfg.Rate > 0 {
			per := f.cfg.Rate * float64(len(p.devices)) / float64(len(f.devices))
			p.interval = time.Duration(float64(time.Second) / per)
			// Connections take turns instead of publishing at the same instants.
			p.due = start.Add(p.interval * time.Duration(i) / time.Duration(len(f.publishers)))
		}
		g.Go(func() error { return p.run(intake, work) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.reached && f.last != nil {
		return fmt.Errorf("fleet: never reached the broker: %w", f.last)
	}
	return nil
}

func (f *Fleet) connected(p *publisher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
	f.reached = true
	f.log.Debug("fleet connection open", "client_id", p.clientID, "to_repeat", len(p.again))
	if f.open == len(f.publishers) {
		f.log.Info("fleet connected", "connections", f.open)
	}
}

// disconnected also hears of connections that were never made (wasOpen false).
func (f *Fleet) disconnected(p *publisher, err error, wasOpen bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if wasOpen {
		f.open--
	}
	if err == nil {
		return // it ended as planned
	}
	first := f.last == nil
	f.last = err
	f.log.Debug("fleet connection lost", "client_id", p.clientID, "to_repeat", len(p.again), "error", err)
	// One line per outage, not one per connection.
	if f.open == 0 && (wasOpen || first) {
		f.log.Warn("fleet has no connection, it keeps trying", "error", err)
	}
}

func (f *Fleet) refused(m flight, reason byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.refusal {
		f.refusal = true
		f.log.Warn("the broker refuses messages, more are only counted",
			"tenant", m.device.Tenant, "device", m.device.ID, "seq", m.seq, "reason", int(reason))
	}
}
