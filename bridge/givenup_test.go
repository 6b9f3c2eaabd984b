package bridge_test

import (
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// TestGivenUpMessagesAreWritten: what JetStream will never deliver again, because other
// instances had it as often as its consumer's limit permits and wrote nothing, is written,
// once, by however many instances hear of it (P1, P2).
func TestGivenUpMessagesAreWritten(t *testing.T) {
	s := newStack(t)
	js := s.jetstream()
	s.consumer(js, "TELEMETRY", "telemetry.>", natsjs.ConsumerConfig{
		Durable: "ingest-workers", AckPolicy: natsjs.AckExplicitPolicy, MaxDeliver: 2, AckWait: time.Minute})
	s.register("t1")
	const n = 20
	s.publish(js, "t1", n)
	c, err := js.Consumer(t.Context(), "TELEMETRY", "ingest-workers")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		batch, err := c.Fetch(n)
		if err != nil {
			t.Fatal(err)
		}
		var got []natsjs.Msg // none goes back before all have come: it would come again instead of another
		for m := range batch.Messages() {
			got = append(got, m)
		}
		if len(got) != n {
			t.Fatalf("%d messages came, want %d: %v", len(got), n, batch.Error())
		}
		for _, m := range got {
			if err := m.Nak(); err != nil {
				t.Fatal(err)
			}
		}
	}
	i, other := s.start(s.config("a")), s.start(s.config("b"))
	devstack.Await(t, "the messages in the table", func() bool { return s.count(`SELECT count(*) FROM telemetry WHERE tenant_id = 't1'`) == n })
	devstack.Await(t, "their acknowledgements", func() bool {
		info, err := c.Info(t.Context())
		return err == nil && info.NumRedelivered == 0 && info.NumAckPending == 0
	})
	if got := s.count(`SELECT count(*) FROM telemetry`); got != n {
		t.Errorf("%d rows, want %d", got, n)
	}
	if text := i.metrics() + other.metrics(); !strings.Contains(text, `crossfade_jetstream_given_up_total{part="ingest-workers",result="taken"} 20`) ||
		!strings.Contains(text, `crossfade_jetstream_given_up_messages{stream="TELEMETRY"}`) {
		t.Error("the metrics do not say so")
	}
}
