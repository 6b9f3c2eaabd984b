package bridge_test

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline"
)

// group makes an instance one of several that divide MQTT messages, and mirroring,
// among them. It sends no sentinels but those of the test and of proofs.
func group(c bridge.Config) bridge.Config {
	c.MQTT.Group = "ingest"
	if c.Mirror != nil {
		c.Mirror.Group = "mirrors"
	}
	c.Control.Dwell = 100 * time.Millisecond
	c.Control.BeatEvery = 0
	return c
}

// sender publishes to the broker of the installation.
func (s *stack) sender() *legacy_mqtt.Publisher {
	s.t.Helper()
	p, err := legacy_mqtt.NewPublisher(*s.config("test").MQTT, legacy_mqtt.DefaultPublisherOptions())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = p.Close(s.t.Context()) })
	return p
}

// nonce is one as a leader makes it.
func (s *stack) nonce(tenant string) string {
	s.t.Helper()
	seal, err := control.OpenSeal(s.t.Context(), s.pool)
	if err != nil {
		s.t.Fatal(err)
	}
	return seal.Nonce(tenant)
}

// sentinel publishes one as a leader does, and returns its nonce.
func (s *stack) sentinel(p *legacy_mqtt.Publisher, tenant string) string {
	s.t.Helper()
	nonce := s.nonce(tenant)
	if _, err := s.pool.Exec(s.t.Context(), `INSERT INTO crossfade_sentinels (nonce, tenant_id, revision, purpose, published_at) VALUES ($1, $2, 0, 'beat', now())`, nonce, tenant); err != nil {
		s.t.Fatal(err)
	}
	s.send(p, tenant, nonce)
	return nonce
}

func (s *stack) send(p *legacy_mqtt.Publisher, tenant, nonce string) {
	s.t.Helper()
	for _, msgType := range pipeline.SentinelTypes() {
		s.device(p, pipeline.SentinelTopic(tenant, msgType), string(pipeline.SentinelPayload(nonce)))
	}
}

func (s *stack) device(p *legacy_mqtt.Publisher, topic, payload string) {
	s.t.Helper()
	if err := p.Publish(s.t.Context(), legacy_mqtt.Message{Topic: topic, Payload: []byte(payload)}); err != nil {
		s.t.Fatal(err)
	}
}

// forge publishes what is no sentinel on the reserved device, a sentinel that nobody has
// sent, and one that nobody waits for.
func (s *stack) forge(p *legacy_mqtt.Publisher, tenant string) {
	s.t.Helper()
	for _, msgType := range []string{"telemetry", "heartbeat", "shadow/reported", "commands", "x/y"} {
		s.device(p, pipeline.SentinelTopic(tenant, msgType), `{"site_id":"s","provision_token":"tok","metrics":{"a":1}}`)
		s.device(p, pipeline.SentinelTopic(tenant, msgType), `no JSON`)
	}
	s.send(p, tenant, rand.Text())
	s.send(p, tenant, s.nonce(tenant))
}

// sightings are those of a nonce by a path: "instance kind" by MQTT and of mirrors,
// and kinds alone by JetStream, where any instance will do.
func (s *stack) sightings(nonce string, p pipeline.Path) []string {
	s.t.Helper()
	rows, err := s.pool.Query(s.t.Context(), `
SELECT DISTINCT CASE WHEN path = 1 OR kind = 'mirror' THEN instance_id || ' ' ELSE '' END || kind
  FROM crossfade_sightings WHERE nonce = $1 AND path = $2 ORDER BY 1`, nonce, int16(p))
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	var list []string
	for rows.Next() {
		var what string
		if err := rows.Scan(&what); err != nil {
			s.t.Fatal(err)
		}
		list = append(list, what)
	}
	return list
}

func (s *stack) awaitSightings(nonce string, p pipeline.Path, want ...string) {
	s.t.Helper()
	var got []string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("seen by %s: %q, want %q", p, got, want)
		}
	}()
	devstack.Await(s.t, "the sentinel has come out of "+p.String(), func() bool {
		got = s.sightings(nonce, p)
		return slices.Equal(got, want)
	})
}

// ofSessions are the MQTT sightings of instances.
func ofSessions(instances ...string) (list []string) {
	for _, i := range instances {
		for _, kind := range []string{control.KindCommands, control.KindShadow, control.KindTelemetry} {
			list = append(list, i+" "+kind)
		}
	}
	return list
}

// ofStreams are the JetStream sightings, with mirrors of these instances.
func ofStreams(mirrors ...string) (list []string) {
	for _, i := range mirrors {
		list = append(list, i+" "+control.KindMirror)
	}
	return append(list, control.KindCommands, control.KindShadow, control.KindTelemetry)
}

// TestSentinelsComeOutOfBothPaths: in each of the stages, of every instance's session
// and every mirror's, amid traffic; and they, and whatever else comes for the reserved
// device, leave no trace in telemetry, quarantine, ledger or routes.
func TestSentinelsComeOutOfBothPaths(t *testing.T) {
	s := newStack(t)
	s.register("acme")
	if _, err := s.pool.Exec(t.Context(), `INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type, destination_config) VALUES ('acme', 'all', '#', 'webhook', '{}')`); err != nil {
		t.Fatal(err)
	}
	a, b := s.start(group(s.config("a"))), s.start(group(s.config("b")))
	p := s.sender()
	traffic := some()
	traffic.Tenants, traffic.Devices, traffic.PerDevice, traffic.Rate = 1, 4, 500, 250
	playing := s.playing(traffic)
	for _, at := range []stage.Stage{stage.MQTT, stage.Shadow, stage.Live, stage.JetStream} {
		s.flip(flags.Variant(at), "acme")
		s.arrive(at, "acme")
		for range 3 {
			nonce := s.sentinel(p, "acme")
			s.awaitSightings(nonce, pipeline.PathMQTT, ofSessions("a", "b")...)
			s.awaitSightings(nonce, pipeline.PathJetStream, ofStreams("a", "b")...)
		}
		s.forge(p, "acme")
	}
	record := playing()
	written := int(record.Counts().Acked)
	nonce := s.sentinel(p, "acme") // all of it is before this one
	s.awaitSightings(nonce, pipeline.PathMQTT, ofSessions("a", "b")...)
	s.awaitSightings(nonce, pipeline.PathJetStream, ofStreams("a", "b")...)
	s.reconcile(record)
	entries := s.count(`SELECT count(*) FROM crossfade_ledger`)
	if sent := written + int(record.Counts().Shadow); entries != sent { // shadow reports are no part of Acked
		t.Errorf("the ledger has %d messages of %d", entries, sent)
	}
	s.forge(p, "acme")
	nonce = s.sentinel(p, "acme")
	s.awaitSightings(nonce, pipeline.PathMQTT, ofSessions("a", "b")...)
	s.awaitSightings(nonce, pipeline.PathJetStream, ofStreams("a", "b")...)
	if n := s.count(`SELECT count(*) FROM crossfade_ledger`) - entries; n != 0 {
		t.Errorf("%d messages on the reserved device are in the ledger", n)
	}
	for what, sql := range map[string]string{
		"telemetry":  `SELECT count(*) FROM telemetry WHERE device_id = 'crossfade-sentinel' OR metrics::text LIKE '%sentinel%'`,
		"quarantine": `SELECT count(*) FROM quarantine_events`,
		"registry":   `SELECT count(*) FROM device_registry WHERE device_id = 'crossfade-sentinel'`,
		"state":      `SELECT count(*) FROM device_state WHERE device_id = 'crossfade-sentinel'`,
		"outbox":     `SELECT count(*) FROM crossfade_outbox WHERE convert_from(body, 'UTF8') LIKE '%sentinel%'`,
		"unknown":    `SELECT count(*) FROM crossfade_sightings AS g WHERE NOT EXISTS (SELECT FROM crossfade_sentinels AS n WHERE n.nonce = g.nonce) AND EXISTS (SELECT FROM crossfade_sentinels AS n WHERE n.purpose = 'beat')`,
	} {
		if n := s.count(sql); n != 0 {
			t.Errorf("%s: %d traces of sentinels", what, n)
		}
	}
	devstack.Await(t, "the routes are published", func() bool { return len(s.routed()) == written })
	for _, m := range s.routed() {
		if strings.Contains(string(m.Data), pipeline.SentinelDevice) {
			t.Fatalf("a sentinel was routed: %s", m.Data)
		}
	}
	for _, i := range []*instance{a, b} {
		shown := i.metrics()
		for _, path := range []string{"mqtt", "jetstream"} {
			if !strings.Contains(shown, fmt.Sprintf(`crossfade_sentinels_total{path=%q,result="seen"} `, path)) ||
				strings.Contains(shown, fmt.Sprintf(`crossfade_sentinels_total{path=%q,result="forged"} 0`, path)) && path == "mqtt" {
				t.Error("sentinels are not counted")
			}
		}
	}
}

// TestDeadMirror: nothing takes MQTT messages to JetStream. Sentinels come out of the
// sessions and of nothing else, and the tenant stays where it is safe, with the reason.
func TestDeadMirror(t *testing.T) {
	s := newStack(t)
	s.register("acme")
	for _, name := range []string{"a", "b"} {
		c := group(s.config(name))
		c.Mirror = nil
		s.start(c)
	}
	s.flip(flags.JetStream, "acme")
	nonce := s.sentinel(s.sender(), "acme")
	s.awaitSightings(nonce, pipeline.PathMQTT, ofSessions("a", "b")...)
	devstack.Await(t, "the tenant waits for JetStream", func() bool {
		return s.count(`SELECT count(*) FROM crossfade_stages WHERE stage = 'live' AND waits_for LIKE '%JetStream%'`) == 1
	})
	if seen := s.sightings(nonce, pipeline.PathJetStream); len(seen) != 0 {
		t.Errorf("came out of JetStream: %q", seen)
	}
}

// TestDeadJetStream: its server is away for a while. Sentinels come out of the sessions
// meanwhile, and out of the streams once it is back.
func TestDeadJetStream(t *testing.T) {
	s := newStack(t)
	s.register("acme")
	s.start(group(s.config("a")))
	s.start(group(s.config("b")))
	s.flip(flags.Shadow, "acme")
	if err := s.nats.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	nonce := s.sentinel(s.sender(), "acme")
	s.awaitSightings(nonce, pipeline.PathMQTT, ofSessions("a", "b")...)
	if seen := s.sightings(nonce, pipeline.PathJetStream); len(seen) != 0 {
		t.Errorf("came out of JetStream: %q", seen)
	}
	if err := s.nats.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.awaitSightings(nonce, pipeline.PathJetStream, ofStreams("a", "b")...)
}

// TestHeldCopyDelaysSighting: a copy stands by before the sentinel, whose session has
// proved nothing until the copy's message is there.
func TestHeldCopyDelaysSighting(t *testing.T) {
	s := newStack(t)
	s.register("acme")
	c := group(s.config("a"))
	c.Mirror, c.JetStream, c.NATS = nil, nil, nil
	c.StandbyWait = time.Hour
	i := s.start(c)
	s.stay(stage.Live, "acme")
	p := s.sender()
	received := func() int { return i.series(`crossfade_source_received_total{part="session",source="mqtt"}`) }
	devstack.Await(t, "its own session is proved, by sentinels of its own", func() bool { return i.series("crossfade_mqtt_session_proved") == 1 })
	before := received()
	const payload = `{"site_id":"s","provision_token":"tok","seq":1,"metrics":{"a":1}}`
	s.device(p, "tenant/acme/device/d1/telemetry", payload)
	nonce := s.sentinel(p, "acme")
	devstack.Await(t, "everything has arrived", func() bool { return received() >= before+4 })
	devstack.Await(t, "the copy stands by", func() bool { return strings.Contains(i.metrics(), `crossfade_standby_held{path="mqtt"} 1`) })
	if seen := s.sightings(nonce, pipeline.PathMQTT); len(seen) != 0 {
		t.Errorf("%q although a copy before it stands by", seen)
	}
	s.commitElsewhere("acme", payload)
	s.awaitSightings(nonce, pipeline.PathMQTT, ofSessions("a")...)
}

// TestStoppedPostgresDelaysSighting: what came before the sentinel cannot be written,
// so nothing is proved before it is.
func TestStoppedPostgresDelaysSighting(t *testing.T) {
	pg := devstack.TestPostgres(t)
	database, err := pg.CreateDatabase(t.Context(), "crossfade")
	if err != nil {
		t.Fatal(err)
	}
	s := newStackOn(t, database)
	s.register("acme")
	i := s.start(group(s.config("a")))
	s.stay(stage.Shadow, "acme")
	p := s.sender()
	nonce := s.nonce("acme")
	if _, err := s.pool.Exec(t.Context(), `INSERT INTO crossfade_sentinels (nonce, tenant_id, revision, purpose, published_at) VALUES ($1, 'acme', 0, 'beat', now())`, nonce); err != nil {
		t.Fatal(err)
	}
	seen := func() int { return i.series(`crossfade_sentinels_total{path="mqtt",result="seen"}`) }
	devstack.Await(t, "its own session is proved", func() bool { return i.series("crossfade_mqtt_session_proved") == 1 && seen() > 0 })
	received := func() int { return i.series(`crossfade_source_received_total{part="session",source="mqtt"}`) }
	before, arrived := seen(), received()
	if err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.device(p, "tenant/acme/device/d1/telemetry", `{"site_id":"s","provision_token":"tok","seq":1,"metrics":{"a":1}}`)
	s.send(p, "acme", nonce)
	devstack.Await(t, "everything has arrived", func() bool { return received() >= arrived+4 })
	if n := seen(); n != before {
		t.Errorf("%d sentinels came out of MQTT before a message that cannot be written", n-before)
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.pool.Reset()
	s.awaitSightings(nonce, pipeline.PathMQTT, ofSessions("a")...)
	s.awaitSightings(nonce, pipeline.PathJetStream, ofStreams("a")...)
	if n := s.count(`SELECT count(*) FROM telemetry`); n != 1 {
		t.Errorf("%d rows of telemetry when the sentinel is out, want 1", n)
	}
}

// TestMirrorThatIsAway: one of the mirrors that share a subscription is stopped. What
// the other brings says nothing of its session, until it is back.
func TestMirrorThatIsAway(t *testing.T) {
	s := newStack(t)
	s.register("acme")
	s.start(group(s.config("a")))
	b := s.start(group(s.config("b")))
	if err := b.shutdown(); err != nil {
		t.Fatal(err)
	}
	p := s.sender()
	nonce := s.sentinel(p, "acme")
	s.awaitSightings(nonce, pipeline.PathMQTT, ofSessions("a")...)
	s.awaitSightings(nonce, pipeline.PathJetStream, ofStreams("a")...)
	s.start(group(s.config("b")))
	s.awaitSightings(nonce, pipeline.PathMQTT, ofSessions("a", "b")...)
	s.awaitSightings(nonce, pipeline.PathJetStream, ofStreams("a", "b")...)
}
