package jetstream_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

// A stream that was deleted and created again counts from 1. Receipts of the
// old one must not silence messages of the new one that have the same number.
func TestStreamReplaced(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	createConsumer(t, js, nil)
	k := &taker{}
	source := run(t, connect(t, server, ""), k, nil)
	old := names("old", 50)
	publish(t, js, old...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand() == len(old) })
	held := k.take()

	if err := js.DeleteStream(testContext(t), "TELEMETRY"); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "a new stream", func() bool { return source.Stats()[0].FetchErrors > 0 && source.Health() == nil })
	fresh := names("new", 50)
	publish(t, js, fresh...)
	devstack.Await(t, "new messages", func() bool { return k.inHand() == len(fresh) })
	for _, d := range held {
		if err := d.Receipt.Ack(); !errors.Is(err, jetstream.ErrStale) {
			t.Fatalf("Ack of a replaced stream's message = %v, want ErrStale", err)
		}
	}
	lag, err := source.Lag(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if lag[0].AckPending != len(fresh) {
		t.Errorf("%d messages unacknowledged, want all %d", lag[0].AckPending, len(fresh))
	}
	for _, d := range k.take() {
		if err := d.Receipt.Ack(); err != nil {
			t.Fatalf("Ack = %v", err)
		}
	}
	settled(t, source)
}

// A server that comes back with other data, as after a lost disk: the
// acknowledgements given meanwhile are about messages that are no more.
func TestServerComesBackEmpty(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	memory := func(t *testing.T) {
		if _, err := js.CreateStream(testContext(t), natsjs.StreamConfig{
			Name: "TELEMETRY", Subjects: []string{"telemetry.>"}, Storage: natsjs.MemoryStorage,
		}); err != nil {
			t.Fatal(err)
		}
	}
	memory(t)
	k := &taker{}
	source := run(t, connect(t, server, ""), k, nil)
	publish(t, js, names("old", 50)...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand() == 50 })
	held := k.take()

	if err := server.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the source to notice", func() bool { return source.Health() != nil })
	for _, d := range held {
		if err := d.Receipt.Ack(); !errors.Is(err, jetstream.ErrNotConnected) {
			t.Fatalf("Ack while disconnected = %v, want ErrNotConnected", err)
		}
	}
	if err := server.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	fresh := names("new", 50)
	publish(t, js, fresh...)
	devstack.Await(t, "new messages", func() bool { return k.has(fresh) })
	lag, err := source.Lag(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if lag[0].AckPending != len(fresh) {
		t.Errorf("%d messages unacknowledged, want all %d: old acknowledgements silenced new messages", lag[0].AckPending, len(fresh))
	}
}

// A server that lost its newest messages, as after a power failure, gives their
// sequences to others, before or after the source is back. Stream and consumer
// look the same as before.
func TestServerLosesItsTail(t *testing.T) {
	t.Run("sequences free", func(t *testing.T) { losesTail(t, false) })
	t.Run("sequences taken", func(t *testing.T) { losesTail(t, true) })
}

func losesTail(t *testing.T, taken bool) {
	e := newEnv(t)
	data, backup := filepath.Join(e.server.Dir(), "jetstream"), filepath.Join(t.TempDir(), "backup")
	e.Stop(t)
	if err := os.CopyFS(backup, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	e.Start(t)
	k := &taker{}
	source := run(t, connect(t, e.server, e.Addr()), k, nil)
	e.Publish(t, names("lost", 50)...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand() == 50 })
	e.Cut(t)
	e.Stop(t)
	devstack.Await(t, "the source to notice", func() bool { return source.Health() != nil })
	held := k.take()
	// Some are answered while the server is away, some after it is back.
	for _, d := range held[:25] {
		if err := d.Receipt.Ack(); !errors.Is(err, jetstream.ErrNotConnected) {
			t.Fatalf("Ack while disconnected = %v, want ErrNotConnected", err)
		}
	}
	if err := errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(backup))); err != nil {
		t.Fatal(err)
	}
	e.Start(t)
	fresh := names("new", 50)
	if taken {
		e.Publish(t, fresh...)
	}
	e.Restore(t)
	devstack.Await(t, "health", func() bool { return source.Health() == nil })
	if !taken {
		e.Publish(t, fresh...)
	}
	devstack.Await(t, "new messages", func() bool { return k.has(fresh) })
	for _, d := range held[25:] {
		if err := d.Receipt.Ack(); !errors.Is(err, jetstream.ErrStale) {
			t.Fatalf("Ack of a lost message = %v, want ErrStale", err)
		}
	}
	lag, err := source.Lag(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if lag[0].AckPending != len(fresh) {
		t.Errorf("%d messages unacknowledged, want all %d: old acknowledgements silenced new messages", lag[0].AckPending, len(fresh))
	}
}

// Between the end of Run and Close the connection may be lost and come back;
// what was settled meanwhile still counts.
func TestSettledAfterRunAcrossAReconnection(t *testing.T) {
	e := newEnv(t)
	cfg := jetstream.DefaultSourceConfig()
	cfg.Consumers = []string{jetstream.ConsumerTelemetry}
	conn := connect(t, e.server, e.Addr())
	source, err := jetstream.NewSource(conn, cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	k := &taker{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx, k.deliver) }()
	e.Publish(t, names("m", 50)...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand() == 50 })
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	e.Cut(t)
	held := k.take()
	devstack.Await(t, "the connection to be lost", func() bool { return conn.Health() != nil })
	for _, d := range held {
		if err := d.Receipt.Ack(); !errors.Is(err, jetstream.ErrNotConnected) {
			t.Fatalf("Ack while disconnected = %v, want ErrNotConnected", err)
		}
	}
	e.Restore(t)
	settled(t, source)
	if err := source.Close(testContext(t)); err != nil {
		t.Errorf("Close = %v", err)
	}
}
