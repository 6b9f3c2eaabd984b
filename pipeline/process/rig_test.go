package process_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// rig is a Processor on a database of its own, fed by the test in a source's place.
// Device d1 of tenant t1, at site s1, is registered; no token is required.
type rig struct {
	*testing.T
	*process.Processor
	db       *pgxpool.Pool // to look with, apart from the Processor's
	registry *prometheus.Registry
	stop     context.CancelFunc // ends Run and waits for it

	acked, released atomic.Int64
	receipts        []*receipt
}

// newRig starts a Processor. change, if not nil, adjusts its options.
func newRig(t *testing.T, url string, change func(*process.Options)) *rig {
	t.Helper()
	return newRigVia(t, url, nil, change)
}

// newRigVia starts one whose connections are made by dial.
func newRigVia(t *testing.T, url string, dial pgconn.DialFunc, change func(*process.Options)) *rig {
	t.Helper()
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	c := store.DefaultConfig(url)
	c.LockTimeout, c.Dial = 500*time.Millisecond, dial
	s, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	r := &rig{T: t, registry: prometheus.NewRegistry()}
	if r.db, err = pgxpool.New(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.db.Close)
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd1', 's1') ON CONFLICT DO NOTHING`)

	o := process.DefaultOptions()
	o.Settings.RequireToken, o.Settings.RateLimit = false, 0
	o.Logger, o.Registry = slog.New(slog.DiscardHandler), r.registry
	if change != nil {
		change(&o)
	}
	if r.Processor, err = process.New(s, o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.Processor.Run(ctx) })
	r.stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(r.checkReceipts)
	t.Cleanup(r.stop)
	return r
}

func (r *rig) exec(sql string, args ...any) {
	r.Helper()
	if _, err := r.db.Exec(r.Context(), sql, args...); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
}

func (r *rig) count(sql string, args ...any) (n int) {
	r.Helper()
	if err := r.db.QueryRow(r.Context(), sql, args...).Scan(&n); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (r *rig) wantCount(want int, sql string, args ...any) {
	r.Helper()
	if got := r.count(sql, args...); got != want {
		r.Errorf("%s is %d, want %d", sql, got, want)
	}
}

// receipt records how its copy was settled.
type receipt struct {
	rig          *rig
	body         []byte
	acks, gives  atomic.Int32
	ackAfterGive atomic.Bool
	beforeAck    func([]byte) // may look at the database
}

func (c *receipt) Ack() error {
	if c.beforeAck != nil {
		c.beforeAck(c.body)
	}
	c.ackAfterGive.Store(c.gives.Load() > 0)
	c.acks.Add(1)
	c.rig.acked.Add(1)
	return nil
}

func (c *receipt) Release() error {
	c.gives.Add(1)
	c.rig.released.Add(1)
	return nil
}

func (c *receipt) Occurred() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

// checkReceipts: every receipt of a Processor that has ended is settled once.
func (r *rig) checkReceipts() {
	for _, c := range r.receipts {
		if c.acks.Load()+c.gives.Load() != 1 || c.ackAfterGive.Load() {
			r.Errorf("%s: acknowledged %d times, released %d times", c.body, c.acks.Load(), c.gives.Load())
		}
	}
	if n := r.InHand(); n != 0 {
		r.Errorf("%d copies are still in hand", n)
	}
}

func (r *rig) deliver(d pipeline.Delivery, beforeAck func([]byte)) {
	c := &receipt{rig: r, body: d.Body, beforeAck: beforeAck}
	r.receipts = append(r.receipts, c)
	d.Receipt = c
	r.Submit(d)
}

func (r *rig) mqtt(payload string) {
	r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: []byte(payload)}, nil)
}

func (r *rig) jetstream(msgType, payload string) {
	body := fmt.Sprintf(`{"topic":"tenant/t1/device/d1/%s","payload":%s,"ts":1795435200000}`, msgType, payload)
	r.deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1", Body: []byte(body)}, nil)
}

func (r *rig) drain() {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
	defer cancel()
	if err := r.Drain(ctx); err != nil {
		r.Fatalf("%v (health: %v)", err, r.Health())
	}
}

// until waits for a condition.
func (r *rig) until(what string, condition func() bool) {
	r.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			r.Fatalf("in vain: %s (health: %v)", what, r.Health())
		case <-tick.C:
		}
	}
}

// metric adds up a counter's values that have the label.
func (r *rig) metric(name, label string) (sum float64) {
	r.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == label {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

func good(seq int) string {
	return fmt.Sprintf(`{"seq":%d,"site_id":"s1","metrics":{"a":1}}`, seq)
}

func database(t *testing.T) string { return devstack.TestOwnedDatabase(t) }
