package jetstream_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

const advisories = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.TELEMETRY." + jetstream.ConsumerTelemetry

func limited(c *natsjs.ConsumerConfig) { c.MaxDeliver, c.AckWait = 2, time.Minute }

// consumerInfo is what the server says of ingest-workers.
func consumerInfo(t testing.TB, js natsjs.JetStream) *natsjs.ConsumerInfo {
	t.Helper()
	c, err := js.Consumer(testContext(t), "TELEMETRY", jetstream.ConsumerTelemetry)
	must(t, err)
	return c.CachedInfo()
}

// giveUp has the server deliver all that waits and hands it back, as often as the
// consumer's limit says, as an instance does that is stopped again and again. The next
// pull, whoever makes it, has the server give it up. None is handed back before all have
// come: the server would deliver it again instead of one that has not come yet, and give
// it up while nobody listens.
func giveUp(t testing.TB, js natsjs.JetStream, n int) {
	t.Helper()
	c, err := js.Consumer(testContext(t), "TELEMETRY", jetstream.ConsumerTelemetry)
	must(t, err)
	for range c.CachedInfo().Config.MaxDeliver {
		batch, err := c.Fetch(n)
		must(t, err)
		got := make([]natsjs.Msg, 0, n)
		for m := range batch.Messages() {
			got = append(got, m)
		}
		must(t, batch.Error())
		if len(got) != n {
			t.Fatalf("%d messages came, want %d", len(got), n)
		}
		for _, m := range got {
			must(t, m.Nak())
		}
	}
}

// refuser releases the first deliveries of each message and keeps the later ones.
type refuser struct {
	taker
	refusals int
}

func (k *refuser) deliver(d pipeline.Delivery) {
	k.mu.Lock()
	again := k.count[bodyOf(d)] < k.refusals
	k.mu.Unlock()
	if !again {
		k.taker.deliver(d)
		return
	}
	k.mu.Lock()
	if k.count == nil {
		k.count = map[string]int{}
	}
	k.count[bodyOf(d)]++
	k.mu.Unlock()
	_ = d.Receipt.Release()
}

// A consumer with a limit on deliveries, as in the field. Messages that were handed back
// so often that the server never delivers them again are delivered all the same, and
// again when they are handed back once more, until they are acknowledged; and the server
// is told of that.
func TestGivenUpMessagesAreTakenIn(t *testing.T) {
	natsServer := devstack.TestNATS(t)
	js := direct(t, natsServer)
	createConsumer(t, js, limited)
	ids := names("m", 200) // more than may be in hand at once
	k := &refuser{refusals: 4}
	source := runTo(t, connect(t, natsServer, ""), k.deliver, testLog(t))
	publish(t, js, ids...)
	acked := 0
	for acked < len(ids) {
		devstack.Await(t, "messages in hand", func() bool { return k.inHand() > 0 })
		for _, d := range k.take() {
			if n := k.taker.times(bodyOf(d)); n != 5 {
				t.Errorf("%s is in hand after %d deliveries, want 5", bodyOf(d), n)
			}
			must(t, d.Receipt.Ack())
			if err := d.Receipt.Release(); !errors.Is(err, jetstream.ErrSettled) {
				t.Errorf("settled twice: %v", err)
			}
			acked++
		}
	}
	settled(t, source)
	devstack.Await(t, "the server to forget their deliveries", func() bool { return consumerInfo(t, js).NumRedelivered == 0 })
	if s := source.Stats()[0]; s.GivenUpTaken != 200 || s.GivenUpLost != 0 || s.InHand != 0 || s.Acked != 200 {
		t.Errorf("stats: %+v", s)
	}
}

// What is delivered is what an ordinary delivery would have been, as the only copy.
func TestGivenUpDelivery(t *testing.T) {
	natsServer := devstack.TestNATS(t)
	js := direct(t, natsServer)
	createConsumer(t, js, limited)
	_, err := js.PublishMsg(testContext(t), &nats.Msg{Subject: "telemetry.t7", Data: []byte("body"), Header: nats.Header{"Crossfade-Origin": {"http"}}})
	must(t, err)
	giveUp(t, js, 1)
	k := &taker{}
	run(t, connect(t, natsServer, ""), k, nil)
	devstack.Await(t, "the message", func() bool { return k.inHand() == 1 })
	d := k.take()[0]
	stream, err := js.Stream(testContext(t), "TELEMETRY")
	must(t, err)
	stored, err := stream.GetMsg(testContext(t), 1)
	must(t, err)
	if d.Path != pipeline.PathJetStream || d.Subject != "telemetry.t7" || bodyOf(d) != "body" || !d.Sole ||
		d.Origin != pipeline.OriginHTTP || !d.Receipt.Occurred().Equal(stored.Time) {
		t.Errorf("delivery %+v, occurred %s, want %s", d, d.Receipt.Occurred(), stored.Time)
	}
	if m, ok := d.Receipt.(interface{ Mark() (jetstream.Mark, bool) }).Mark(); ok {
		t.Errorf("it has the mark %+v, though its consumer counts it as acknowledged", m)
	}
	must(t, d.Receipt.Ack())
}

// All instances hear, so that a message is not lost with one of them.
func TestGivenUpWithTwoInstances(t *testing.T) {
	natsServer := devstack.TestNATS(t)
	js := direct(t, natsServer)
	createConsumer(t, js, limited)
	first, second := &taker{}, &taker{}
	logged := &devstack.Log{}
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	dies, ended := start(ctx, t, connect(t, natsServer, ""), unlessGivenUp(first), slog.New(slog.NewTextHandler(logged, nil)))
	lives := runTo(t, connect(t, natsServer, ""), unlessGivenUp(second), testLog(t))
	devstack.Await(t, "both", func() bool { return dies.Health() == nil })
	publish(t, js, "m")
	devstack.Await(t, "both to have it", func() bool { return first.inHand() == 1 && second.inHand() == 1 })
	cancel()
	must(t, <-ended)
	must(t, dies.Close(testContext(t)))
	if n := dies.Stats()[0].GivenUpLost; n != 1 || !strings.Contains(logged.String(), "another instance") {
		t.Errorf("the instance that has stopped counts %d lost; its log: %s", n, logged.String())
	}
	if n := consumerInfo(t, js).NumRedelivered; n != 1 {
		t.Errorf("the server shows %d given-up messages before one is acknowledged, want 1", n)
	}
	must(t, second.take()[0].Receipt.Ack())
	devstack.Await(t, "the server to forget it", func() bool { return consumerInfo(t, js).NumRedelivered == 0 })
	if s := lives.Stats()[0]; s.GivenUpTaken != 1 || s.GivenUpLost != 0 {
		t.Errorf("stats of the instance that lives: %+v", s)
	}
}

// However many are given up at once, no more are in hand than the window permits, nor more
// than a few beyond what pulls have spoken for.
func TestGivenUpInHand(t *testing.T) {
	for name, c := range map[string]struct{ window, most int }{"small window": {10, 10}, "large window": {1000, 64}} {
		t.Run(name, func(t *testing.T) {
			natsServer := devstack.TestNATS(t)
			js := direct(t, natsServer)
			createConsumer(t, js, limited)
			const n = 150
			publish(t, js, names("m", n)...)
			giveUp(t, js, n)
			k := &taker{}
			peak := 0
			hold := unlessGivenUp(k)
			source := runTo(t, connect(t, natsServer, ""), func(d pipeline.Delivery) { // one by one: all are given up
				hold(d)
				peak = max(peak, k.inHand())
			}, testLog(t), func(cfg *jetstream.SourceConfig) { cfg.Window = c.window })
			for left := n; left > 0; {
				devstack.Await(t, "messages in hand", func() bool { return k.inHand() >= min(left, c.most) })
				for _, d := range k.take() {
					left--
					must(t, d.Receipt.Ack())
				}
			}
			settled(t, source)
			if s := source.Stats()[0]; s.GivenUpTaken != n || s.InHand != 0 {
				t.Errorf("stats: %+v", s)
			}
			if peak != c.most {
				t.Errorf("%d in hand at most, want %d", peak, c.most)
			}
		})
	}
}

// unlessGivenUp hands back what the server would deliver again.
func unlessGivenUp(k *taker) func(pipeline.Delivery) {
	return func(d pipeline.Delivery) {
		if d.Sole {
			k.deliver(d)
			return
		}
		_ = d.Receipt.Release()
	}
}

// A user that may not hear of it is told so once, with the subject, and loses nothing else.
func TestGivenUpDenied(t *testing.T) {
	guard := func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "admin", Password: goodPassword},
			{Username: "crossfade", Password: goodPassword, Permissions: &server.Permissions{
				Subscribe: &server.SubjectPermission{Deny: []string{"$JS.EVENT.>"}}}},
		}
	}
	g, c := login{guard: guard, secrets: []string{goodPassword},
		config: func(c *jetstream.Config) { c.User, c.Password = "crossfade", goodPassword }}.connect(t)
	c.awaitHealth()
	nc, err := nats.Connect("nats://"+g.address(), nats.UserInfo("admin", goodPassword), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	must(t, err)
	defer nc.Close()
	js, err := natsjs.New(nc)
	must(t, err)
	createConsumer(t, js, limited)
	k := &taker{auto: true}
	source := runTo(t, c.Conn, k.deliver, c.log)
	warnings := func() int { return strings.Count(c.logged.String(), "grant it the right to subscribe") }
	devstack.Await(t, "the warning", func() bool { return warnings() == 1 })
	g.stop()
	devstack.Await(t, "the loss of the connection", func() bool { return source.Health() != nil })
	g.start(guard)
	publish(t, js, "m")
	devstack.Await(t, "the message", func() bool { return k.times("m") == 1 })
	if text := c.logged.String(); warnings() != 1 || !strings.Contains(text, advisories) || strings.Contains(text, "NATS connection error") {
		t.Errorf("it is to be told once, with the subject %s, and as nothing else:\n%s", advisories, text)
	}
	settled(t, source)
}

// A message that has left the stream meanwhile is counted, and what is no advisory ignored.
func TestGivenUpAndGone(t *testing.T) {
	natsServer := devstack.TestNATS(t)
	js := direct(t, natsServer)
	createConsumer(t, js, limited)
	k := &taker{auto: true}
	logged := &devstack.Log{}
	source := runTo(t, connect(t, natsServer, ""), k.deliver, slog.New(slog.NewTextHandler(logged, nil)))
	publish(t, js, "gone")
	settled(t, source)
	stream, err := js.Stream(testContext(t), "TELEMETRY")
	must(t, err)
	must(t, stream.DeleteMsg(testContext(t), 1))
	for _, advisory := range []string{
		"", "\x00", `{"stream":"TELEMETRY","consumer":"ingest-workers","stream_seq":0}`,
		`{"stream":"TELEMETRY","consumer":"ingest-workers","stream_seq":1,"deliveries":2}`,
	} {
		must(t, js.Conn().Publish(advisories, []byte(advisory)))
	}
	devstack.Await(t, "the loss to be told", func() bool { return strings.Contains(logged.String(), "it is lost unless") })
	if n := source.Stats()[0].GivenUpLost; n != 1 {
		t.Errorf("%d are counted as lost, want 1", n)
	}
	if text := logged.String(); !strings.Contains(text, "sequence=1") || !strings.Contains(text, "does not hold it") || strings.Count(text, "cannot read an advisory") != 1 {
		t.Errorf("the log: %s", text)
	}
	publish(t, js, "next")
	devstack.Await(t, "what comes after", func() bool { return k.times("next") == 1 })
	if s := source.Stats()[0]; s.GivenUpTaken != 0 || s.FetchErrors != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// What was given up while nobody listened cannot be found any more, only counted; and the
// remedy that operators are told works.
func TestGivenUpUnheard(t *testing.T) {
	natsServer := devstack.TestNATS(t)
	js := direct(t, natsServer)
	createConsumer(t, js, limited)
	publish(t, js, names("m", 3)...)
	giveUp(t, js, 3)
	c, err := js.Consumer(testContext(t), "TELEMETRY", jetstream.ConsumerTelemetry)
	must(t, err)
	_, err = c.Fetch(1, natsjs.FetchMaxWait(100*time.Millisecond))
	must(t, err)
	devstack.Await(t, "the server to give up", func() bool { return consumerInfo(t, js).NumAckPending == 0 })

	conn := connect(t, natsServer, "")
	if found := givenUpFinding(t, conn); !strings.Contains(found, "delete the consumer") {
		t.Errorf("what operators are told: %q", found)
	}
	k := &taker{auto: true}
	source := run(t, conn, k, nil)
	if b := source.Backlogs(testContext(t))[0]; b.Err != nil || b.GivenUp != 3 {
		t.Errorf("backlog: %+v", b)
	}
	must(t, js.DeleteConsumer(testContext(t), "TELEMETRY", jetstream.ConsumerTelemetry))
	devstack.Await(t, "the messages", func() bool { return k.has(names("m", 3)) })
	settled(t, source)
	if found := givenUpFinding(t, conn); found != "" {
		t.Errorf("still told: %s", found)
	}
}

func givenUpFinding(t *testing.T, conn *jetstream.Conn) string {
	t.Helper()
	report, err := jetstream.Ensure(testContext(t), conn, jetstream.DefaultSetupOptions())
	must(t, err)
	for _, f := range report.Findings {
		if strings.Contains(f.Setting, "given up") {
			return f.String()
		}
	}
	return ""
}
