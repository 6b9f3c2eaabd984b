package bridge_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
)

// TestMirrorThatWasForgotten: two mirrors share the work. One is stopped with messages in
// its session, whose MQTT copies others drop; it is forgotten; and it comes back when the
// tenant is in mqtt, where JetStream copies are dropped. It says that its are not to be,
// until its session is proved.
func TestMirrorThatWasForgotten(t *testing.T) {
	s := newStack(t)
	s.register("acme")
	shares := func(c bridge.Config) bridge.Config {
		c.Mirror.Group, c.Control.BeatEvery = "mirrors", 0
		return c
	}
	a := s.start(shares(s.config("a")))
	only := shares(s.config("m"))
	only.MQTT, only.JetStream = nil, nil
	proved := func(i *instance) {
		t.Helper()
		devstack.Await(t, "the mirror's session is proved", func() bool { return i.series("crossfade_mirror_session_proved") == 1 })
	}
	m := s.start(only)
	proved(a)
	proved(m)
	s.flip(flags.Variant(stage.JetStream), "acme")
	s.arrive(stage.JetStream, "acme")
	if err := m.shutdown(); err != nil {
		t.Fatal(err)
	}
	dropped := func(path string) int { return a.series(`crossfade_dropped_total{path="` + path + `"}`) }
	p, seq := s.sender(), 0
	message := func() {
		seq++
		s.device(p, "tenant/acme/device/d1/telemetry", fmt.Sprintf(`{"site_id":"s","provision_token":"tok","seq":%d,"metrics":{"a":1}}`, seq))
	}
	before := dropped("mqtt")
	devstack.Await(t, "its own session is proved", func() bool { message(); return dropped("mqtt") > before })
	for range 20 {
		message()
	}
	devstack.Await(t, "the MQTT copies are dropped", func() bool { return dropped("mqtt") >= before+20 })
	if err := control.Forget(t.Context(), s.pool, "m"); err != nil {
		t.Fatal(err)
	}
	s.flip(flags.Variant(stage.MQTT), "acme")
	s.arrive(stage.MQTT, "acme")
	rows := func() int { return s.count(`SELECT count(*) FROM telemetry`) }
	if n := rows(); n == seq {
		t.Fatalf("all %d messages are there: the stopped mirror has none of them", n)
	}
	m = s.start(only)
	devstack.Await(t, "what it had is written", func() bool { return rows() == seq })
	proved(m)
	before = dropped("jetstream")
	for range 20 {
		message()
	}
	devstack.Await(t, "what comes later is dropped again", func() bool { return dropped("jetstream") >= before+20 })
}

// TestTooLargeForTheMirror: a message whose envelope NATS does not take ends in
// quarantine in stage jetstream, too, where other MQTT copies are dropped unseen; or it is
// written, where it is no more than the stream that refuses it.
func TestTooLargeForTheMirror(t *testing.T) {
	s := newStack(t)
	s.register("acme")
	if _, err := s.jetstream().CreateStream(t.Context(), natsjs.StreamConfig{Name: "TELEMETRY", Subjects: []string{"telemetry.>"}, MaxMsgSize: 8 << 10}); err != nil {
		t.Fatal(err)
	}
	a := s.start(s.config("a"))
	s.flip(flags.Variant(stage.JetStream), "acme")
	s.arrive(stage.JetStream, "acme")
	p, seq := s.sender(), 0
	message := func(text string) {
		seq++
		s.device(p, "tenant/acme/device/d1/telemetry", fmt.Sprintf(`{"site_id":"s","provision_token":"tok","seq":%d,"metrics":{"a":"%s"}}`, seq, text))
	}
	devstack.Await(t, "copies to be dropped", func() bool {
		message("x")
		return !strings.Contains(a.metrics(), `crossfade_dropped_total{path="mqtt"} 0`)
	})
	large := seq + 1
	message(strings.Repeat("x", 2<<20)) // max_payload is 1 MiB
	devstack.Await(t, "quarantine", func() bool {
		return s.count(`SELECT count(*) FROM quarantine_events WHERE reason = 'PAYLOAD_TOO_LARGE'`) == 1
	})
	message("y")
	message(strings.Repeat("z", 8<<10-90)) // max_payload_bytes would do, with the envelope it is too much
	devstack.Await(t, "the others", func() bool { return s.count(`SELECT count(*) FROM telemetry`) == seq-1 })
	if n := s.count(`SELECT count(*) FROM telemetry WHERE seq = $1`, large); n != 0 {
		t.Error("it is written")
	}
}
