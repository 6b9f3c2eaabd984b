package jetstream_test

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// session stands for an MQTT session that acknowledges in order.
type session struct {
	mu    sync.Mutex
	acked []bool
	then  map[int]func()
}

func (s *session) deliver(m *jetstream.Mirror, topic, body string) {
	s.mu.Lock()
	r := &orderedReceipt{s, len(s.acked)}
	s.acked = append(s.acked, false)
	s.mu.Unlock()
	m.Deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(body), Receipt: r})
}

func (s *session) ack(i int, then func()) {
	s.mu.Lock()
	s.acked[i] = true
	if then != nil {
		s.then[i] = then
	}
	var due []func()
	for j, ok := range s.acked {
		if !ok {
			break
		}
		if f := s.then[j]; f != nil {
			due = append(due, f)
			delete(s.then, j)
		}
	}
	s.mu.Unlock()
	for _, f := range due {
		f()
	}
}

type orderedReceipt struct {
	*session
	i int
}

func (r *orderedReceipt) Ack() error                { r.ack(r.i, nil); return nil }
func (r *orderedReceipt) AckThen(then func()) error { r.ack(r.i, then); return nil }
func (r *orderedReceipt) Release() error            { return nil }
func (r *orderedReceipt) Occurred() time.Time       { return occurred }

// TestMirrorSentinel: a sentinel goes onto the subject of its type, and only once all
// that came before it is stored, however often that had to be tried.
func TestMirrorSentinel(t *testing.T) {
	server := devstack.TestNATS(t)
	conn := connect(t, server, "")
	cfg := jetstream.DefaultMirrorConfig()
	cfg.RetryBase = 2 * time.Second // in which a sentinel could overtake
	var mu sync.Mutex
	told := make(map[string]jetstream.Mark)
	cfg.Sentinel = func(s pipeline.Sentinel, m jetstream.Mark) {
		mu.Lock()
		defer mu.Unlock()
		told[s.Type] = m
	}
	m, err := jetstream.NewMirror(conn, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	// Without streams nothing is stored: what comes first is tried again and again.
	s := &session{then: make(map[int]func())}
	const before = 20
	for range before {
		s.deliver(m, "tenant/t1/device/d1/telemetry", `{"a":1}`)
	}
	devstack.Await(t, "attempts to fail", func() bool { return m.Stats().Retries >= before })
	ensure(t, conn)
	for _, typ := range pipeline.SentinelTypes() {
		s.deliver(m, pipeline.SentinelTopic("t1", typ), string(pipeline.SentinelPayload("n1")))
	}
	s.deliver(m, pipeline.SentinelTopic("t1", "telemetry"), `forged`)
	s.deliver(m, "tenant/t1/device/d1/telemetry", `{"a":2}`)
	devstack.Await(t, "everything to be stored", func() bool { return m.Stats().Published == before+3+2 })

	js := direct(t, server)
	for stream, typ := range map[string]string{"TELEMETRY": "telemetry", "SHADOW": "shadow/reported", "COMMANDS": "commands/ack"} {
		earlier, found := 0, false
		for i, msg := range stored(t, js, stream) {
			d := pipeline.Delivery{Path: pipeline.PathJetStream, Subject: msg.Subject, Body: msg.Data, Receipt: &orderedReceipt{}}
			switch sentinel, ok := pipeline.SentinelOf(&d); {
			case ok && sentinel.Nonce != "":
				found = true
				if sentinel.Type != typ || earlier < before && stream == "TELEMETRY" {
					t.Errorf("%s: %+v came after %d of %d messages", stream, sentinel, earlier, before)
				}
				mu.Lock()
				if told[typ].Sequence != uint64(i)+1 {
					t.Errorf("%s: told to be at %d, is at %d", stream, told[typ].Sequence, i+1)
				}
				mu.Unlock()
			case bytes.Contains(msg.Data, []byte(`{"a":1}`)):
				earlier++
			}
		}
		if !found {
			t.Errorf("%s: no sentinel", stream)
		}
	}

	// What the mirror was told of can be asked for, though nobody consumes yet.
	mu.Lock()
	mark := told["telemetry"]
	mu.Unlock()
	if p := progress(t, conn, mark); p != jetstream.MarkWaits {
		t.Errorf("progress before anybody consumes: %d", p)
	}
	k := &taker{}
	k.setAuto()
	run(t, conn, k, nil)
	awaitProgress(t, conn, mark, jetstream.MarkSettled)
}
