package jetstream_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// taker stands where the pipeline stands.
type taker struct {
	mu    sync.Mutex
	held  []pipeline.Delivery
	count map[string]int
	auto  bool // acknowledge at once
}

func (k *taker) deliver(d pipeline.Delivery) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.count == nil {
		k.count = map[string]int{}
	}
	k.count[bodyOf(d)]++
	if k.auto {
		_ = d.Receipt.Ack() // refused ones come again
		return
	}
	k.held = append(k.held, d)
}

func (k *taker) inHand() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.held)
}

func (k *taker) take() []pipeline.Delivery {
	k.mu.Lock()
	defer k.mu.Unlock()
	held := k.held
	k.held = nil
	return held
}

func (k *taker) setAuto() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.auto = true
}

func (k *taker) has(ids []string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range ids {
		if k.count[id] == 0 {
			return false
		}
	}
	return true
}

func (k *taker) times(id string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.count[id]
}

// run starts a source over ingest-workers and ends it with the test.
func run(t *testing.T, conn *jetstream.Conn, k *taker, change func(*jetstream.SourceConfig)) *jetstream.Source {
	t.Helper()
	return runTo(t, conn, k.deliver, testLog(t), change)
}

func runTo(t *testing.T, conn *jetstream.Conn, deliver func(pipeline.Delivery), log *slog.Logger, change ...func(*jetstream.SourceConfig)) *jetstream.Source {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	source, ended := start(ctx, t, conn, deliver, log, change...)
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
		if err := source.Close(testContext(t)); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	devstack.Await(t, "health", func() bool { return source.Health() == nil })
	return source
}

// start starts a source over ingest-workers.
func start(ctx context.Context, t *testing.T, conn *jetstream.Conn, deliver func(pipeline.Delivery), log *slog.Logger, change ...func(*jetstream.SourceConfig)) (*jetstream.Source, <-chan error) {
	t.Helper()
	cfg := jetstream.DefaultSourceConfig()
	cfg.Consumers = []string{jetstream.ConsumerTelemetry}
	cfg.PullExpiry, cfg.Heartbeat = 2*time.Second, 500*time.Millisecond
	for _, f := range change {
		if f != nil {
			f(&cfg)
		}
	}
	source, err := jetstream.NewSource(conn, cfg, log)
	if err != nil {
		t.Fatalf("new source: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx, deliver) }()
	return source, ended
}

// settled waits until the server knows of no message that is not acknowledged.
func settled(t *testing.T, source *jetstream.Source) {
	t.Helper()
	devstack.Await(t, "everything to be acknowledged", func() bool {
		lag, err := source.Lag(testContext(t))
		return err == nil && lag[0].Pending == 0 && lag[0].AckPending == 0
	})
}

// An existing consumer with the limits of the field: three deliveries, a short
// deadline. Messages that are held for several deadlines come once, and each
// can still be acknowledged.
func TestHeldMessagesBurnNoDelivery(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	const ackWait = time.Second
	createConsumer(t, js, func(c *natsjs.ConsumerConfig) { c.MaxDeliver, c.AckWait = 3, ackWait })
	k := &taker{}
	source := run(t, connect(t, server, ""), k, nil)
	ids := names("m", 600)
	publish(t, js, ids...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand() == len(ids) })

	// Deadlines are the server's; nothing but time passes them.
	time.Sleep(4 * ackWait)

	for _, id := range ids {
		if n := k.times(id); n != 1 {
			t.Fatalf("%s was delivered %d times while in hand, want once", id, n)
		}
	}
	for _, d := range k.take() {
		if err := d.Receipt.Ack(); err != nil {
			t.Fatalf("Ack = %v", err)
		}
	}
	settled(t, source)
	if s := source.Stats()[0]; s.Acked != uint64(len(ids)) || s.InHand != 0 || s.Extensions == 0 {
		t.Errorf("stats = %+v, want %d acked, none in hand, some extensions", s, len(ids))
	}
}

func TestServerKilledMidFlow(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	createConsumer(t, js, nil)
	k := &taker{}
	source := run(t, connect(t, server, ""), k, nil)
	before := names("before", 500)
	publish(t, js, before...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand() > 100 })
	for i, d := range k.take() {
		if i%2 == 0 {
			_ = d.Receipt.Ack() // the kill may swallow it
		}
	}
	k.setAuto()
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the source to notice", func() bool { return source.Health() != nil })
	if err := server.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	after := names("after", 500)
	publish(t, js, after...)
	devstack.Await(t, "all messages", func() bool { return k.has(before) && k.has(after) })
}

func TestConsumerDeleted(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	createConsumer(t, js, nil)
	k := &taker{}
	source := run(t, connect(t, server, ""), k, nil)
	first := names("first", 50)
	publish(t, js, first...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand() == len(first) })
	if err := js.DeleteConsumer(testContext(t), "TELEMETRY", jetstream.ConsumerTelemetry); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "a new consumer", func() bool { return source.Stats()[0].FetchErrors > 0 && source.Health() == nil })
	// The new one starts from the beginning: what was in hand comes again, and
	// the receipts of the old one say so.
	devstack.Await(t, "the messages again", func() bool { return k.inHand() == 2*len(first) })
	stale := 0
	for _, d := range k.take() {
		if err := d.Receipt.Ack(); errors.Is(err, jetstream.ErrStale) {
			stale++
		} else if err != nil {
			t.Fatalf("Ack = %v", err)
		}
	}
	if stale != len(first) {
		t.Errorf("%d receipts were stale, want %d", stale, len(first))
	}
	settled(t, source)
	info, err := js.Consumer(testContext(t), "TELEMETRY", jetstream.ConsumerTelemetry)
	if err != nil {
		t.Fatal(err)
	}
	if c := info.CachedInfo().Config; c.MaxDeliver != -1 || c.AckWait != time.Minute || c.MaxAckPending != 20_000 {
		t.Errorf("recreated with max_deliver %d, ack_wait %s, max_ack_pending %d", c.MaxDeliver, c.AckWait, c.MaxAckPending)
	}
}

// Acknowledgements that were given while the server was away reach it
// afterwards, so that nothing comes again.
func TestAcknowledgedWhileDisconnected(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	createConsumer(t, js, func(c *natsjs.ConsumerConfig) { c.AckWait = time.Minute })
	k := &taker{}
	source := run(t, connect(t, server, ""), k, nil)
	ids := names("m", 50)
	publish(t, js, ids...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand() == len(ids) })
	if err := server.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the source to notice", func() bool { return source.Health() != nil })
	for _, d := range k.take() {
		if err := d.Receipt.Ack(); !errors.Is(err, jetstream.ErrNotConnected) {
			t.Fatalf("Ack while disconnected = %v, want ErrNotConnected", err)
		}
	}
	if err := server.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	settled(t, source)
	for _, id := range ids {
		if n := k.times(id); n != 1 {
			t.Fatalf("%s came %d times, want once", id, n)
		}
	}
}

// One message at a time arrives at once, not when a pull is full or over.
func TestSingleMessagesDoNotWait(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	k := &taker{auto: true}
	source := run(t, connect(t, server, ""), k, func(c *jetstream.SourceConfig) {
		c.PullExpiry, c.Heartbeat = 10*time.Minute, 5*time.Minute
	})
	for _, id := range names("one", 20) {
		publish(t, js, id)
		devstack.Await(t, id, func() bool { return k.has([]string{id}) })
	}
	settled(t, source)
}

func TestOccurredIsTheStreamsTime(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	k := &taker{}
	run(t, connect(t, server, ""), k, nil)
	publish(t, js, "m")
	devstack.Await(t, "the message", func() bool { return k.inHand() == 1 })
	stream, err := js.Stream(testContext(t), "TELEMETRY")
	if err != nil {
		t.Fatal(err)
	}
	stored, err := stream.GetMsg(testContext(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	d := k.take()[0]
	if got := d.Receipt.Occurred(); !got.Equal(stored.Time) {
		t.Errorf("Occurred = %s, want %s", got, stored.Time)
	}
	if d.Path != pipeline.PathJetStream || d.Subject != "telemetry.t1" || d.Topic != "" || d.Username != "" {
		t.Errorf("delivery = %+v", d)
	}
	if err := d.Receipt.Ack(); err != nil {
		t.Errorf("Ack = %v", err)
	}
	if err := d.Receipt.Ack(); !errors.Is(err, jetstream.ErrSettled) {
		t.Errorf("second Ack = %v, want ErrSettled", err)
	}
}

func TestUnusableConsumerEndsRun(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	createConsumer(t, js, func(c *natsjs.ConsumerConfig) { c.AckPolicy = natsjs.AckNonePolicy; c.AckWait, c.MaxAckPending = 0, 0 })
	cfg := jetstream.DefaultSourceConfig()
	source, err := jetstream.NewSource(connect(t, server, ""), cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	err = source.Run(testContext(t), func(pipeline.Delivery) {})
	if !errors.Is(err, jetstream.ErrUnusable) {
		t.Errorf("Run = %v, want ErrUnusable", err)
	}
	if err := source.Close(testContext(t)); err != nil {
		t.Errorf("Close = %v", err)
	}
}

func TestThreeConsumersInOneSource(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	k := &taker{}
	source := run(t, connect(t, server, ""), k, func(c *jetstream.SourceConfig) { c.Consumers = jetstream.Consumers() })
	subjects := []string{"telemetry.t1", "shadow.t1", "commands.t1"}
	for _, s := range subjects {
		if _, err := js.Publish(testContext(t), s, []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	devstack.Await(t, "one message of each", func() bool { return k.has(subjects) })
	if got := len(source.Stats()); got != 3 {
		t.Errorf("stats of %d consumers, want 3", got)
	}
	lag, err := source.Lag(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lag {
		if l.AckPending != 1 || l.Pending != 0 {
			t.Errorf("lag = %+v, want one unacknowledged message", l)
		}
	}
}
