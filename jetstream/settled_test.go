package jetstream_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

func markOf(t testing.TB, d pipeline.Delivery) jetstream.Mark {
	t.Helper()
	m, ok := d.Receipt.(interface{ Mark() (jetstream.Mark, bool) }).Mark()
	if !ok {
		t.Fatal("a message that is in hand has no mark")
	}
	return m
}

// progress asks about one mark.
func progress(t testing.TB, conn *jetstream.Conn, m jetstream.Mark) jetstream.Progress {
	t.Helper()
	known, err := conn.Settled(testContext(t), m.Consumer, []jetstream.Mark{m})
	if err != nil {
		t.Fatal(err)
	}
	return known[0]
}

func awaitProgress(t testing.TB, conn *jetstream.Conn, m jetstream.Mark, want jetstream.Progress) {
	t.Helper()
	devstack.Await(t, "the mark to change", func() bool {
		known, err := conn.Settled(testContext(t), m.Consumer, []jetstream.Mark{m})
		return err == nil && known[0] == want
	})
}

// TestSettled: a mark is settled once everything before it is acknowledged, in whatever
// order and by whichever instance, and what is given back counts only when it has come
// again.
func TestSettled(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	createConsumer(t, js, nil)
	k, other := &taker{}, &taker{}
	conn := connect(t, server, "")
	run(t, conn, k, func(c *jetstream.SourceConfig) { c.Window = 40 })
	run(t, connect(t, server, ""), other, func(c *jetstream.SourceConfig) { c.Window = 60 })
	publish(t, js, names("m", 100)...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand()+other.inHand() == 100 })
	held := append(k.take(), other.take()...)
	marks := make([]jetstream.Mark, len(held))
	var last jetstream.Mark
	for i, d := range held {
		if marks[i] = markOf(t, d); marks[i].Sequence > last.Sequence {
			last = marks[i]
		}
	}
	if last.Sequence != 100 || last.Consumer != jetstream.ConsumerTelemetry {
		t.Fatalf("the last mark is %+v", last)
	}
	var first pipeline.Delivery
	for i, d := range held {
		if marks[i].Sequence == 1 {
			first = d
		} else if err := d.Receipt.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Flush(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if p := progress(t, conn, last); p != jetstream.MarkWaits {
		t.Errorf("with one message before it in hand: %d", p)
	}
	if err := first.Receipt.Release(); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the released message to come again", func() bool { return k.inHand()+other.inHand() == 1 })
	if p := progress(t, conn, last); p != jetstream.MarkWaits {
		t.Errorf("with one message before it released: %d", p)
	}
	for _, d := range append(k.take(), other.take()...) {
		if err := d.Receipt.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	awaitProgress(t, conn, last, jetstream.MarkSettled)
	for i := range marks {
		if p := progress(t, conn, marks[i]); p != jetstream.MarkSettled {
			t.Errorf("mark %d: %d", marks[i].Sequence, p)
		}
	}
}

// TestSettledAfterReplacement: the acknowledgements of another consumer, or of another
// stream under the same name, say nothing of a mark.
func TestSettledAfterReplacement(t *testing.T) {
	for _, what := range []string{"consumer", "stream"} {
		t.Run(what, func(t *testing.T) {
			server := devstack.TestNATS(t)
			js := direct(t, server)
			createConsumer(t, js, nil)
			k := &taker{}
			conn := connect(t, server, "")
			run(t, conn, k, nil)
			publish(t, js, names("old", 10)...)
			devstack.Await(t, "messages in hand", func() bool { return k.inHand() == 10 })
			held := k.take()
			mark := markOf(t, held[9])
			var err error
			if what == "consumer" {
				err = js.DeleteConsumer(testContext(t), "TELEMETRY", jetstream.ConsumerTelemetry)
			} else {
				err = js.DeleteStream(testContext(t), "TELEMETRY")
			}
			if err != nil {
				t.Fatal(err)
			}
			k.setAuto()
			fresh := names("new", 30)
			devstack.Await(t, "the stream", func() bool {
				_, err := js.Stream(testContext(t), "TELEMETRY")
				return err == nil
			})
			publish(t, js, fresh...)
			devstack.Await(t, "new messages", func() bool { return k.has(fresh) })
			awaitProgress(t, conn, mark, jetstream.MarkGone)
			if _, ok := held[0].Receipt.(interface{ Mark() (jetstream.Mark, bool) }).Mark(); ok {
				t.Error("a message of what was replaced can be marked")
			}
		})
	}
}

// TestSettledAfterALostTail: a server that has lost its newest messages gives their
// numbers to others, whose acknowledgements are not those of the mark.
func TestSettledAfterALostTail(t *testing.T) {
	e := newEnv(t)
	data := filepath.Join(e.server.Dir(), "jetstream")
	backup := filepath.Join(t.TempDir(), "backup")
	createConsumer(t, direct(t, e.server), nil)
	e.Stop(t)
	if err := os.CopyFS(backup, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	e.Start(t)
	k := &taker{}
	conn := connect(t, e.server, e.Addr())
	run(t, conn, k, nil)
	e.Publish(t, names("lost", 20)...)
	devstack.Await(t, "messages in hand", func() bool { return k.inHand() == 20 })
	held := k.take()
	mark := markOf(t, held[19])
	for _, d := range held {
		if err := d.Receipt.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	awaitProgress(t, conn, mark, jetstream.MarkSettled)
	e.Stop(t)
	if err := errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(backup))); err != nil {
		t.Fatal(err)
	}
	e.Start(t)
	k.setAuto()
	fresh := names("new", 30)
	e.Publish(t, fresh...)
	devstack.Await(t, "new messages", func() bool { return k.has(fresh) })
	awaitProgress(t, conn, mark, jetstream.MarkGone)
}

// TestSettledErrors: what cannot be asked is an error, never an answer.
func TestSettledErrors(t *testing.T) {
	e := newEnv(t)
	conn := connect(t, e.server, e.Addr())
	devstack.Await(t, "connection", func() bool { return conn.Health() == nil })
	if _, err := conn.Settled(testContext(t), "nobody", nil); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("an unknown consumer: %v", err)
	}
	if _, err := conn.Settled(testContext(t), jetstream.ConsumerShadow, nil); !errors.Is(err, natsjs.ErrStreamNotFound) {
		t.Errorf("no stream: %v", err)
	}
	e.Cut(t)
	devstack.Await(t, "the loss to be noticed", func() bool { return conn.Health() != nil })
	if _, err := conn.Settled(testContext(t), jetstream.ConsumerShadow, nil); err == nil {
		t.Error("an answer without a connection")
	}
}
