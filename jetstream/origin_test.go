package jetstream_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestMirrorMarksWhatNobodyAwaits: what arrives or is published while nobody may wait
// for the mirror's session, or is stored when that time is over, has no sibling to be
// dropped for; and a sentinel is one whatever its header says.
func TestMirrorMarksWhatNobodyAwaits(t *testing.T) {
	server := devstack.TestNATS(t)
	conn := connect(t, server, "")
	var mu sync.Mutex
	var proof uint64
	var until time.Time
	awaited := func(p uint64, u time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		proof, until = p, time.Now().Add(u)
	}
	cfg := jetstream.DefaultMirrorConfig()
	cfg.Awaited = func() (uint64, time.Time) {
		mu.Lock()
		defer mu.Unlock()
		return proof, until
	}
	m, err := jetstream.NewMirror(conn, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	s := &session{then: make(map[int]func())}
	sent := uint64(0)
	send := func(what string) {
		s.deliver(m, "tenant/t1/device/d1/telemetry", `{"what":"`+what+`"}`)
		sent++
	}
	settle := func() {
		devstack.Await(t, "everything to be stored", func() bool { return m.Stats().Published == sent })
	}

	send("arrived unproved, published proved: marked")
	awaited(7, time.Hour)
	send("arrived proved, tried again under another proof: marked")
	devstack.Await(t, "attempts to fail", func() bool { return m.Stats().Retries >= 2 }) // there is no stream
	awaited(8, time.Hour)
	ensure(t, conn)
	settle()
	send("proved: plain")
	s.deliver(m, pipeline.SentinelTopic("t1", "telemetry"), string(pipeline.SentinelPayload("plain")))
	sent++
	settle()
	awaited(8, -time.Millisecond) // clocks that stood still
	send("stored too late: marked")
	settle()
	awaited(0, 0)
	send("unproved: marked")
	s.deliver(m, pipeline.SentinelTopic("t1", "telemetry"), string(pipeline.SentinelPayload("marked")))
	sent++
	settle()
	awaited(9, time.Hour)
	send("proved again: plain")
	settle()

	k := &taker{}
	run(t, conn, k, nil)
	devstack.Await(t, "everything to come out", func() bool { return k.inHand() >= int(sent) })
	for _, d := range k.take() {
		body := string(d.Body)
		if marked := strings.Contains(body, "marked"); d.Sole != marked {
			t.Errorf("sole %t: %s", d.Sole, body)
		}
		if found, ok := pipeline.SentinelOf(&d); ok != strings.Contains(d.Subject+body, pipeline.SentinelDevice) || ok && found.Nonce == "" {
			t.Errorf("sentinel %t %+v: %s", ok, found, body)
		}
	}
}

// TestOriginOfOthers: whoever says nothing of this is taken to be awaited.
func TestOriginOfOthers(t *testing.T) {
	server := devstack.TestNATS(t)
	conn := connect(t, server, "")
	ensure(t, conn)
	m, _ := mirror(t, conn, slog.New(slog.DiscardHandler))
	d, r := byMQTT("tenant/t1/device/d1/telemetry", `{"a":1}`)
	m.Deliver(d)
	devstack.Await(t, "it is stored", func() bool { acked, _ := r.state(); return acked == 1 })
	if msgs := stored(t, direct(t, server), "TELEMETRY"); len(msgs) != 1 || len(msgs[0].Header) != 0 {
		t.Errorf("stored %+v", msgs)
	}
}
