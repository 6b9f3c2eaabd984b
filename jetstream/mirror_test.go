package jetstream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// mqttReceipt stands for a PUBACK that is owed.
type mqttReceipt struct {
	mu              sync.Mutex
	acked, released int
	occurred        time.Time
	onAck           func()
}

func (r *mqttReceipt) Ack() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acked++
	if r.onAck != nil {
		r.onAck()
	}
	return nil
}

func (r *mqttReceipt) Release() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released++
	return nil
}

func (r *mqttReceipt) Occurred() time.Time { return r.occurred }

func (r *mqttReceipt) state() (acked, released int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acked, r.released
}

var occurred = time.UnixMilli(1_760_000_000_123)

func byMQTT(topic, body string) (pipeline.Delivery, *mqttReceipt) {
	r := &mqttReceipt{occurred: occurred}
	return pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Username: "t1/d1", Body: []byte(body), Receipt: r}, r
}

// mirror runs a mirror; stop ends it.
func mirror(t *testing.T, conn *jetstream.Conn, log *slog.Logger) (m *jetstream.Mirror, stop func()) {
	t.Helper()
	cfg := jetstream.DefaultMirrorConfig()
	cfg.AckTimeout = time.Second
	m, err := jetstream.NewMirror(conn, cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(stop)
	return m, stop
}

func ensure(t *testing.T, conn *jetstream.Conn) {
	t.Helper()
	if _, err := jetstream.Ensure(testContext(t), conn, jetstream.DefaultSetupOptions()); err != nil {
		t.Fatal(err)
	}
}

// stored reads everything in a stream, by subject order of storage.
func stored(t *testing.T, js natsjs.JetStream, stream string) []*natsjs.RawStreamMsg {
	t.Helper()
	s, err := js.Stream(testContext(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	var list []*natsjs.RawStreamMsg
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		msg, err := s.GetMsg(testContext(t), seq)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, msg)
	}
	return list
}

func TestMirrorSubjectsAndEnvelopes(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	conn := connect(t, server, "")
	ensure(t, conn)
	var log bytes.Buffer
	m, stop := mirror(t, conn, slog.New(slog.NewTextHandler(&log, nil)))
	const unpublished = ""
	cases := []struct {
		topic, body, stream, subject, payload, msgType string
	}{
		{"tenant/t1/device/d1/telemetry", `{"seq": 1.50, "n":12345678901234567890}`, "TELEMETRY", "telemetry.t1", `{"seq": 1.50, "n":12345678901234567890}`, "telemetry"},
		{"tenant/t1/device/d1/heartbeat", "not json \"\\\x01", "TELEMETRY", "telemetry.t1", `"not json \"\\\u0001"`, "heartbeat"},
		{"tenant/t1/device/d1/telemetry", "[1]", "TELEMETRY", "telemetry.t1", `"[1]"`, "telemetry"},
		{"tenant/t1/device/d1/telemetry", "", "TELEMETRY", "telemetry.t1", `""`, "telemetry"},
		{"tenant/t1/device/d1/telemetry", "{\"a\":\"\xff\"}", "TELEMETRY", "telemetry.t1", `"{\"a\":\"` + "\ufffd" + `\"}"`, "telemetry"},
		{"tenant/t.2/device/d1/shadow/reported", `{"reported":{}}`, "SHADOW", "shadow.t.2", `{"reported":{}}`, "shadow/reported"},
		{"tenant/t1/device/d1/commands/ack", `{}`, "COMMANDS", "commands.t1", `{}`, "commands/ack"},
		{"tenant/t1/other", `{}`, "TELEMETRY", "telemetry.t1", `{}`, ""},
		{"tenant/t1/device//telemetry", `{}`, "TELEMETRY", "telemetry.t1", `{}`, ""},
		{"tenant/t1/device/d1/commands", `{}`, unpublished, "", "", ""},
		{"tenant/t1/device/d1/commands/response", `{}`, unpublished, "", "", ""},
		{"tenant/t1/device/d1/shadow/desired", `{}`, unpublished, "", "", ""},
		{"tenant/t 1/device/d1/telemetry", `{}`, unpublished, "", "", ""},
		{"tenant/t 1/device/d2/telemetry", `{}`, unpublished, "", "", ""},
		{"tenant/t*/device/d1/telemetry", `{}`, unpublished, "", "", ""},
		{"tenant/t>/device/d1/telemetry", `{}`, unpublished, "", "", ""},
		{"tenant/.t/device/d1/telemetry", `{}`, unpublished, "", "", ""},
		{"tenant/a..b/device/d1/telemetry", `{}`, unpublished, "", "", ""},
		{"tenant/t\n/device/d1/telemetry", `{}`, unpublished, "", "", ""},
		{"tenant/" + strings.Repeat("x", 5000) + "/device/d1/telemetry", `{}`, unpublished, "", "", ""},
		{"tenant//device/d1/telemetry", `{}`, unpublished, "", "", ""},
		{"elsewhere/t1", `{}`, unpublished, "", "", ""},
		{"tenant/t3/device/d1/telemetry", `{"a":"` + strings.Repeat("x", 1<<20) + `"}`, unpublished, "", "", ""},
	}
	want := map[string]int{}
	for i, c := range cases {
		d, r := byMQTT(c.topic, c.body)
		m.Deliver(d)
		devstack.Await(t, "acknowledgement of "+c.topic[:min(len(c.topic), 60)], func() bool { acked, _ := r.state(); return acked == 1 })
		if c.stream == unpublished {
			continue
		}
		got := stored(t, js, c.stream)
		want[c.stream]++
		if len(got) != want[c.stream] {
			t.Fatalf("case %d: %s holds %d messages, want %d", i, c.stream, len(got), want[c.stream])
		}
		checkEnvelope(t, got[len(got)-1], c.topic, c.subject, c.payload, c.msgType)
	}
	stop()
	if s := m.Stats(); s.Published != 9 || s.Downlink != 3 || s.Unmirrorable != 10 || s.TooLarge != 1 || s.Waiting != 0 || s.InFlight != 0 {
		t.Errorf("stats = %+v", s)
	}
	if n := strings.Count(log.String(), `tenant="t 1"`); n != 1 {
		t.Errorf("tenant %q was warned about %d times, want once:\n%s", "t 1", n, log.String())
	}
	if !strings.Contains(log.String(), "max_payload") {
		t.Errorf("no warning about the large message:\n%s", log.String())
	}
}

func checkEnvelope(t *testing.T, msg *natsjs.RawStreamMsg, topic, subject, payload, msgType string) {
	t.Helper()
	var e struct {
		Topic    string          `json:"topic"`
		Tenant   string          `json:"tenant_id"`
		Device   string          `json:"device_id"`
		MsgType  string          `json:"msg_type"`
		Username string          `json:"username"`
		Payload  json.RawMessage `json:"payload"`
		TS       int64           `json:"ts"`
	}
	if err := json.Unmarshal(msg.Data, &e); err != nil {
		t.Fatalf("envelope %s: %v", msg.Data, err)
	}
	tenant := strings.Split(topic, "/")[1]
	if msg.Subject != subject || e.Topic != topic || e.Tenant != tenant || e.MsgType != msgType ||
		string(e.Payload) != payload || e.TS != occurred.UnixMilli() || e.Username != "t1/d1" {
		t.Errorf("%s: %s", msg.Subject, msg.Data)
	}
}

// Nothing is acknowledged on MQTT before the stream has it, and everything is
// once it has, with the server killed and restarted in between.
func TestMirrorLosesNothing(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	conn := connect(t, server, "")
	ensure(t, conn)
	m, stop := mirror(t, conn, testLog(t))
	var receipts []*mqttReceipt
	send := func(from, to int) {
		for i := from; i < to; i++ {
			d, r := byMQTT("tenant/t1/device/d1/telemetry", fmt.Sprintf(`{"seq":%d}`, i))
			receipts = append(receipts, r)
			m.Deliver(d)
		}
	}
	acked := func() (n int) {
		for _, r := range receipts {
			a, _ := r.state()
			n += a
		}
		return n
	}
	send(0, 2000)
	devstack.Await(t, "the first acknowledgements", func() bool { return acked() > 0 })
	if err := server.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the mirror to notice", func() bool { return m.Health() != nil })
	send(2000, 4000)
	devstack.Await(t, "an attempt while the server is away", func() bool { return m.Stats().Waiting >= 2000 })
	if got := acked(); got > 2000 {
		t.Errorf("%d messages acknowledged while the server was away", got-2000)
	}
	if err := server.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "everything to be acknowledged", func() bool { return acked() == len(receipts) })
	stop()
	seen := map[string]bool{}
	for _, msg := range stored(t, js, "TELEMETRY") {
		seen[string(msg.Data)] = true
	}
	if len(seen) != len(receipts) {
		t.Errorf("the stream holds %d different messages, want %d", len(seen), len(receipts))
	}
	for i, r := range receipts {
		if a, rel := r.state(); a != 1 || rel != 0 {
			t.Fatalf("message %d: acknowledged %d times, released %d times", i, a, rel)
		}
	}
}

// A stream that is missing keeps only its own messages back; at the end they
// are released, not acknowledged.
func TestMirrorWithoutStream(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	conn := connect(t, server, "")
	ensure(t, conn)
	if err := js.DeleteStream(testContext(t), "COMMANDS"); err != nil {
		t.Fatal(err)
	}
	m, stop := mirror(t, conn, testLog(t))
	stuck, stuckReceipt := byMQTT("tenant/t1/device/d1/commands/ack", `{}`)
	m.Deliver(stuck)
	fine, fineReceipt := byMQTT("tenant/t1/device/d1/telemetry", `{}`)
	m.Deliver(fine)
	devstack.Await(t, "the other stream's message", func() bool { a, _ := fineReceipt.state(); return a == 1 })
	devstack.Await(t, "a retry", func() bool { return m.Stats().Retries > 0 })
	stop()
	if a, r := stuckReceipt.state(); a != 0 || r != 1 {
		t.Errorf("acknowledged %d times, released %d times; want released", a, r)
	}
	late, lateReceipt := byMQTT("tenant/t1/device/d1/telemetry", `{}`)
	m.Deliver(late)
	if a, r := lateReceipt.state(); a != 0 || r != 1 {
		t.Errorf("after the end: acknowledged %d times, released %d times; want released", a, r)
	}
	if s := m.Stats(); s.Received != s.Published+s.Released || s.Waiting != 0 || s.InFlight != 0 {
		t.Errorf("stats = %+v", s)
	}
}

// A stream that never confirms holds up no other.
func TestMirrorWithSilentStream(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	if _, err := js.CreateStream(testContext(t), natsjs.StreamConfig{Name: "SHADOW", Subjects: []string{"shadow.>"}, NoAck: true}); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, server, "")
	ensure(t, conn)
	cfg := jetstream.DefaultMirrorConfig()
	cfg.AckTimeout = time.Hour
	m, err := jetstream.NewMirror(conn, cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	silent, silentReceipt := byMQTT("tenant/t1/device/d1/shadow/reported", `{}`)
	m.Deliver(silent)
	devstack.Await(t, "the silent stream's message on its way", func() bool { return m.Stats().InFlight == 1 })
	fine, fineReceipt := byMQTT("tenant/t1/device/d1/telemetry", `{}`)
	m.Deliver(fine)
	devstack.Await(t, "the other stream's message", func() bool { a, _ := fineReceipt.state(); return a == 1 })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v", err)
	}
	if a, r := silentReceipt.state(); a != 0 || r != 1 {
		t.Errorf("acknowledged %d times, released %d times; want released", a, r)
	}
}

// The acknowledgement comes after the stream has the message, not before.
func TestMirrorAcknowledgesAfterTheStream(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	conn := connect(t, server, "")
	ensure(t, conn)
	m, _ := mirror(t, conn, testLog(t))
	for i := range 50 {
		d, r := byMQTT("tenant/t1/device/d1/telemetry", fmt.Sprintf(`{"seq":%d}`, i))
		found := make(chan error, 1)
		r.onAck = func() {
			s, err := js.Stream(context.Background(), "TELEMETRY")
			if err == nil && s.CachedInfo().State.LastSeq < uint64(i+1) {
				err = errors.New("acknowledged before it was stored")
			}
			found <- err
		}
		m.Deliver(d)
		if err := <-found; err != nil {
			t.Fatal(err)
		}
	}
}
