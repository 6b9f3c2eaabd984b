package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/jetstream"
)

// The stream as installations run it keeps no more than 100,000 messages of one
// subject, which is a tenant.
const tenantLimit = 100_000

// backlogSpan is the time that the backlog covers; it ends at its making.
const backlogSpan = 5 * time.Minute

// backlog is what all measurements are of: telemetry of a fleet whose devices
// took turns, as envelopes.
type backlog struct {
	devices  []fleet.Device
	record   *fleet.Record
	messages int
	began    time.Time
}

func newBacklog(messages, devices int, now time.Time) *backlog {
	tenants := max(3, (messages+tenantLimit-1)/tenantLimit)
	// A device more or less per tenant must not push a subject over its limit.
	if messages%devices != 0 || devices%tenants != 0 {
		tenants++
	}
	b := &backlog{devices: fleet.Devices(fleet.Config{Tenants: tenants, Devices: devices, Seed: 1}),
		messages: messages, began: now.Add(-backlogSpan)}
	b.record = fleet.NewRecord(b.devices)
	for i := range messages {
		d, seq := b.message(i)
		b.record.Attempted(d, seq, fleet.KindTelemetry)
		b.record.Acked(d, seq, fleet.KindTelemetry, true)
	}
	return b
}

func (b *backlog) message(i int) (fleet.Device, int64) {
	return b.devices[i%len(b.devices)], int64(i/len(b.devices) + 1)
}

// each yields every message's subject and envelope, oldest first.
func (b *backlog) each(yield func(string, []byte) bool) {
	for i := range b.messages {
		d, seq := b.message(i)
		ts := b.began.Add(backlogSpan * time.Duration(i) / time.Duration(b.messages))
		if !yield(fleet.SubjectFor(d, fleet.KindTelemetry), fleet.AppendEnvelope(nil, d, seq, ts, fleet.KindTelemetry)) {
			return
		}
	}
}

func (b *backlog) tenants() []string {
	var names []string
	seen := map[string]bool{}
	for _, d := range b.devices {
		if !seen[d.Tenant] {
			seen[d.Tenant] = true
			names = append(names, d.Tenant)
		}
	}
	return names
}

// fill leaves the backlog in the store of a NATS server that has stopped again.
func (b *backlog) fill(ctx context.Context, dir string) (err error) {
	nats, err := devstack.StartNATS(ctx, devstack.NATSOptions{Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, nats.Close()) }()
	conn, err := connect(nats)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if _, err := jetstream.Ensure(ctx, conn, jetstream.DefaultSetupOptions()); err != nil {
		return err
	}
	return jetstream.Publish(ctx, conn, b.each)
}

func connect(nats *devstack.NATS) (*jetstream.Conn, error) {
	c := jetstream.DefaultConfig()
	c.URLs, c.Name = []string{nats.URL()}, "crossfade bench"
	return jetstream.Connect(c, slog.New(slog.DiscardHandler))
}

// startNATS starts a server on a copy of the backlog, none of which anybody has
// taken yet. The function removes both.
func (b *bench) startNATS(ctx context.Context) (*devstack.NATS, func() error, error) {
	dir, err := os.MkdirTemp(b.dir, "nats-")
	if err != nil {
		return nil, nil, err
	}
	remove := func() error { return os.RemoveAll(dir) }
	from, to := filepath.Join(b.template(), "jetstream"), filepath.Join(dir, "jetstream")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("copy the backlog: %w", err), remove())
	}
	nats, err := devstack.StartNATS(ctx, devstack.NATSOptions{Dir: dir})
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return nats, func() error { return errors.Join(nats.Close(), remove()) }, nil
}
