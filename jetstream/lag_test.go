package jetstream_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

func publishOn(t *testing.T, js natsjs.JetStream, subject string, n int) {
	t.Helper()
	for range n {
		if _, err := js.Publish(testContext(t), subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
}

// counted is what undelivered messages there are, by subject.
func counted(t *testing.T, source *jetstream.Source, most int) (jetstream.Backlog, jetstream.Looked, map[string]int) {
	t.Helper()
	b := source.Backlogs(testContext(t))[0]
	if b.Err != nil {
		t.Fatal(b.Err)
	}
	subjects := map[string]int{}
	looked, err := source.Undelivered(testContext(t), &b, most, func(subject string, stored time.Time) {
		if stored.Before(b.Oldest) {
			t.Errorf("a message of %v is older than the oldest, of %v", stored, b.Oldest)
		}
		subjects[subject]++
	})
	if err != nil {
		t.Fatal(err)
	}
	return b, looked, subjects
}

// TestBacklogIsToldApart: what is in hand, what nobody was given, and whose it is; also
// behind a message that stays unacknowledged while thousands after it are done with.
func TestBacklogIsToldApart(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	createConsumer(t, js, func(c *natsjs.ConsumerConfig) { c.MaxAckPending, c.AckWait = 10, time.Minute })
	k := &taker{}
	source := run(t, connect(t, server, ""), k, func(c *jetstream.SourceConfig) { c.Window = 10 })
	if b, looked, _ := counted(t, source, 100); b.Undelivered+uint64(b.Unacknowledged) != 0 || !b.Oldest.IsZero() || !looked.All {
		t.Fatalf("of nothing: %+v, %+v", b, looked)
	}
	publishOn(t, js, "telemetry.acme", 1)
	devstack.Await(t, "the first is in hand", func() bool { return k.inHand() == 1 })
	publishOn(t, js, "telemetry.globex", 20)
	devstack.Await(t, "the hand is full", func() bool { return k.inHand() == 10 })
	held := k.take()
	for _, d := range held[1:] { // the first stays
		if err := d.Receipt.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	devstack.Await(t, "the hand is full again", func() bool { return k.inHand() == 9 })
	publishOn(t, js, "telemetry.initech", 5)

	b, looked, subjects := counted(t, source, 100)
	if b.Undelivered != 7 || b.Unacknowledged != 10 || !looked.All || looked.Seen != 7 || !maps.Equal(subjects, map[string]int{"telemetry.globex": 2, "telemetry.initech": 5}) {
		t.Errorf("%+v, %+v, %v", b, looked, subjects)
	}
	if first := held[0].Receipt.Occurred(); !b.Oldest.Equal(first) || b.At.Before(first) || b.At.Sub(first) > time.Hour {
		t.Errorf("oldest %v at %v, want %v", b.Oldest, b.At, first)
	}
	inHand := map[string]int{}
	source.InHand(func(stream, subject string, stored time.Time) {
		if inHand[stream+" "+subject]++; stored.IsZero() {
			t.Error("it has no time")
		}
	})
	if !maps.Equal(inHand, map[string]int{"TELEMETRY telemetry.acme": 1, "TELEMETRY telemetry.globex": 9}) {
		t.Errorf("in hand: %v", inHand)
	}

	b, looked, subjects = counted(t, source, 3)
	if looked.All || looked.Seen != 3 || !maps.Equal(subjects, map[string]int{"telemetry.globex": 2, "telemetry.initech": 1}) {
		t.Errorf("three of them: %+v, %v", looked, subjects)
	}
	if n, err := source.UndeliveredOn(testContext(t), &b, "telemetry.initech"); err != nil || n != 5 {
		t.Errorf("%d, %v, want 5", n, err)
	}
	// What was looked at is still delivered once, and nobody else's consumer is left.
	stream, err := js.Stream(testContext(t), "TELEMETRY")
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Consumers; n != 1 {
		t.Errorf("%d consumers are left", n)
	}
	k.setAuto()
	for _, d := range append(k.take(), held[0]) {
		if err := d.Receipt.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	settled(t, source)
}

// TestNobodyLooksIntoAWorkQueue: a second consumer would take messages away.
func TestNobodyLooksIntoAWorkQueue(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	if _, err := js.CreateStream(testContext(t), natsjs.StreamConfig{Name: "TELEMETRY", Subjects: []string{"telemetry.>"}, Retention: natsjs.WorkQueuePolicy}); err != nil {
		t.Fatal(err)
	}
	k := &taker{}
	source := run(t, connect(t, server, ""), k, func(c *jetstream.SourceConfig) { c.Window = 1 })
	publishOn(t, js, "telemetry.acme", 3)
	devstack.Await(t, "one is in hand", func() bool { return k.inHand() == 1 })
	b := source.Backlogs(testContext(t))[0]
	if b.Err != nil || b.Undelivered != 2 || b.Unacknowledged != 1 || b.Oldest.IsZero() {
		t.Fatalf("%+v", b)
	}
	_, err := source.Undelivered(testContext(t), &b, 10, func(string, time.Time) { t.Error("it was looked at") })
	if err == nil || !strings.Contains(err.Error(), "another consumer would get in the way") {
		t.Errorf("error %v", err)
	}
}

// TestBacklogOfAServerThatIsAway is an error and not zero.
func TestBacklogOfAServerThatIsAway(t *testing.T) {
	server := devstack.TestNATS(t)
	source := run(t, connect(t, server, ""), &taker{}, nil)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "an error", func() bool {
		b := source.Backlogs(testContext(t))[0]
		return b.Err != nil && b.Stream == "TELEMETRY"
	})
}
