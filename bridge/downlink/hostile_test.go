package downlink_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/prometheus/client_golang/prometheus"
)

// TestPoisonIsParked: a message upon which the broker hangs up is parked in the end with
// that reason; 100 others go out meanwhile, and it takes a bounded number of connections.
func TestPoisonIsParked(t *testing.T) {
	r := newRig(t)
	a, url := r.answering(map[string][]byte{commandTopic("bad"): bytes.Repeat([]byte{hangUp}, 100)})
	o := r.options("a")
	o.MQTT.URL = url
	r.command("bad", "poison")
	for i := range 100 {
		r.command(numbered(i), fmt.Sprint("c", i))
	}
	r.start(o)
	r.becomes("100", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	r.becomes("poison", `SELECT string_agg(command_id, ' ') FROM crossfade_downlink_parked`)
	if why := r.text(`SELECT reason FROM crossfade_downlink_parked`); !strings.Contains(why, "ends the connection upon the message") {
		t.Errorf("parked for %s", why)
	}
	r.command("bad", "next")
	r.command("d1", "last")
	r.becomes("101", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.hangUps > 20 {
		t.Errorf("the broker had to hang up %d times", a.hangUps)
	}
}

// TestRestartsParkNothing: a broker that is killed ten times while it is sent to. What
// was under way each time is sent again and not held against anything.
func TestRestartsParkNothing(t *testing.T) {
	r := newRig(t)
	w := r.wire()
	o := r.options("a")
	o.MQTT.URL, o.LastRetry = w.url(), 200*time.Millisecond
	r.start(o)
	r.becomes("64", `SELECT count(*) FROM crossfade_downlink_lanes`)
	for round := range 10 {
		r.becomes(fmt.Sprint(round*300), `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
		w.hold(true)
		r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) SELECT 't1', format('c%s-%s', $1::int, i), 'd' || i, 'x' FROM generate_series(1, 300) AS i`, round)
		devstack.Await(t, "commands to be under way", w.carries)
		must(t, r.broker.Kill())
		w.drop()
		must(t, r.broker.Start(t.Context()))
	}
	r.becomes("3000", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink_parked`)
	families, err := o.Registry.(*prometheus.Registry).Gather()
	must(t, err)
	for _, f := range families {
		if n := f.GetMetric()[0].GetCounter().GetValue(); f.GetName() == "crossfade_downlink_failures_total" && n != 0 {
			t.Errorf("%v attempts are taken to have failed", n)
		}
	}
}

// TestExpiresUnderWay: a command that expires while it is under way is not sent again
// over the next connection.
func TestExpiresUnderWay(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	w := r.wire()
	o := r.options("a")
	o.MQTT.URL = w.url()
	r.start(o)
	r.becomes("64", `SELECT count(*) FROM crossfade_downlink_lanes`)
	r.command("d0", "first")
	r.becomes("1", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	w.hold(true)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, expires_at) VALUES ('t1', 'c1', 'd1', 'x', now() + interval '2 seconds')`)
	devstack.Await(t, "the command to be under way", w.carries)
	r.becomes("true", `SELECT expires_at < now() FROM device_commands WHERE command_id = 'c1'`)
	w.drop()
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	r.becomes("expired", `SELECT status FROM device_commands WHERE command_id = 'c1'`)
	r.command("d0", "last")
	devstack.Await(t, "what comes after it", func() bool { return len(r.bodies(commandTopic("d0"))) == 2 })
	if list := r.bodies(commandTopic("d1")); len(list) > 0 {
		t.Errorf("sent after it had expired: %q", list)
	}
}

// TestLaneThatCannotBeFenced: a former holder that cannot be cut off keeps its lanes from
// being sent and no others, until it can be, or until an operator says that it is gone.
func TestLaneThatCannotBeFenced(t *testing.T) {
	r := newRig(t)
	a, url := r.answering(nil)
	a.ban("it's a ghost")
	o := r.options("a")
	o.MQTT.URL, o.LastRetry = url, 200*time.Millisecond
	haunt := func(device string) {
		r.exec(`INSERT INTO crossfade_downlink_lanes (lane, client_id) VALUES (crossfade_lane('t1', $1), 'it''s a ghost')
			ON CONFLICT (lane) DO UPDATE SET client_id = EXCLUDED.client_id`, device)
	}
	haunt("d1")
	const devices = 50
	for i := range devices {
		r.command(numbered(i), fmt.Sprint("c", i))
	}
	elsewhere := r.text(`SELECT count(*) FROM device_commands WHERE crossfade_lane(tenant_id, device_id) <> crossfade_lane('t1', 'd1')`)
	s, stop := r.start(o)
	r.becomes(elsewhere, `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	remedy := `DELETE FROM crossfade_downlink_lanes WHERE client_id = 'it''s a ghost'`
	devstack.Await(t, "health to name it and the way out", func() bool {
		err := s.Health()
		return err != nil && strings.Contains(err.Error(), "devices of 1 of the 64 lanes") && strings.Contains(err.Error(), remedy)
	})
	r.exec(remedy)
	r.becomes("50", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	devstack.Await(t, "health", func() bool { return s.Health() == nil })
	stop()

	haunt("d1")
	r.command("d1", "again")
	r.command("d2", "also")
	o.Registry = prometheus.NewRegistry()
	s, _ = r.start(o)
	r.becomes("51", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	a.ban("")
	r.becomes("52", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	devstack.Await(t, "health", func() bool { return s.Health() == nil })
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink_lanes WHERE client_id <> 'a'`)
}

// TestFormerHolderComesBack: a former holder that cannot be cut off is no trouble any more
// once it has come back by itself and holds its lanes.
func TestFormerHolderComesBack(t *testing.T) {
	r := newRig(t)
	a, url := r.answering(nil)
	a.ban("b")
	o := r.options("a")
	o.MQTT.URL, o.LastRetry = url, time.Minute // it is not going to be tried again
	r.exec(`INSERT INTO crossfade_downlink_lanes (lane, client_id) SELECT lane, 'b' FROM generate_series(0, 31) AS lane`)
	s, _ := r.start(o)
	devstack.Await(t, "health to name it", func() bool {
		err := s.Health()
		return err != nil && strings.Contains(err.Error(), "devices of 32 of the 64 lanes")
	})
	_, stop := r.start(r.options("b"))
	devstack.Await(t, "health", func() bool { return s.Health() == nil })
	r.becomes("true", `SELECT count(*) FILTER (WHERE client_id = 'a') > 10 AND count(*) FILTER (WHERE client_id = 'b') > 10 FROM crossfade_downlink_lanes`)
	// It leaves in order: nobody is to be cut off.
	stop()
	r.becomes("64", `SELECT count(*) FROM crossfade_downlink_lanes WHERE client_id = 'a'`)
	if err := s.Health(); err != nil {
		t.Error(err)
	}
}

// TestManyRefusedRows: thousands of outcomes that PostgreSQL refuses hold up nobody else,
// and are written once it takes them.
func TestManyRefusedRows(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	r.exec(`CREATE FUNCTION stubborn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.tenant_id = 'bad' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$`)
	r.exec(`CREATE TRIGGER stubborn BEFORE UPDATE ON device_commands FOR EACH ROW EXECUTE FUNCTION stubborn()`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) SELECT 'bad', 'c' || i, 'd' || i, 'x' FROM generate_series(1, 1000) AS i`)
	o := r.options("a")
	o.LastRetry = time.Second
	r.start(o)
	devstack.Await(t, "all to be sent", func() bool { return len(r.all()) == 1000 })
	for i := range 5 {
		r.desire(numbered(i), `{"a": 1}`)
	}
	r.becomes("5", `SELECT count(*) FROM crossfade_desired_published`)
	r.exec(`DROP TRIGGER stubborn ON device_commands`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	r.becomes("0", `SELECT count(*) FROM device_commands WHERE published_at IS NULL`)
	devstack.Await(t, "the states", func() bool { return len(r.all()) == 1005 })
}
