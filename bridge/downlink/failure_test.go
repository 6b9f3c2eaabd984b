package downlink_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/eclipse/paho.golang/packets"

	"github.com/crossfade-io/crossfade/bridge/downlink"
)

// TestBrokerRestarts: states and commands that are written before, while and after the
// broker is stopped all arrive, in order, and every published_at is true.
func TestBrokerRestarts(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	a, b := r.options("a"), r.options("b")
	a.Patience, b.Patience = time.Second, time.Second
	first, _ := r.start(a)
	r.start(b)
	const devices = 20
	n := 0
	load := func() {
		for range 5 {
			n++
			r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) SELECT 't1', 'd' || i, jsonb_build_object('v', $1::int) FROM generate_series(1, $2::int) AS i
				ON CONFLICT (tenant_id, device_id) DO UPDATE SET desired_state = EXCLUDED.desired_state`, n, devices)
			r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) SELECT 't1', format('c%s-%s', $1::int, i), 'd' || i, 'x' FROM generate_series(1, $2::int) AS i`, n, devices)
		}
	}
	load()
	must(t, r.broker.Stop(context.Background()))
	load()
	devstack.Await(t, "health to say that the broker is away", func() bool {
		err := first.Health()
		return err != nil && strings.Contains(err.Error(), "connect")
	})
	must(t, r.broker.Start(context.Background()))
	load()
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	devstack.Await(t, "health again", func() bool { return first.Health() == nil })
	r.becomes("0", `SELECT count(*) FROM device_commands WHERE published_at IS NULL OR status <> 'queued'`)
	devstack.Await(t, "every command and the last states", func() bool {
		last := r.inOrder()
		seen := make(map[string]bool)
		for _, p := range r.all() {
			seen[string(p.Properties.CorrelationData)] = true
		}
		for d := range devices {
			if last["tenant/t1/device/"+numbered(d+1)] != int64(n) {
				return false
			}
		}
		return len(seen) == n*devices+1 // states have none
	})
}

// TestBrokerKilled: what was not confirmed by a broker that is killed goes out once it
// is back. (What it had confirmed it may have forgotten: that is beyond us.)
func TestBrokerKilled(t *testing.T) {
	r := newRig(t)
	o := r.options("a")
	o.Patience = time.Second
	s, _ := r.start(o)
	r.desire("d1", `{"v": 1}`)
	r.becomes("1", `SELECT version FROM crossfade_desired_published`)
	must(t, r.broker.Kill())
	r.desire("d1", `{"v": 2}`)
	r.command("d1", "c1")
	devstack.Await(t, "health to say that the broker is away", func() bool { return s.Health() != nil })
	must(t, r.broker.Start(context.Background()))
	r.listen("#")
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	devstack.Await(t, "the last state, retained", func() bool { return r.inOrder()["tenant/t1/device/d1"] == 2 })
	r.becomes("true", `SELECT published_at IS NOT NULL FROM device_commands`)
}

// TestKilledSender: killed at any moment, before and after confirmations, nothing is
// lost; what is sent twice has the same command_id.
func TestKilledSender(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	for round := range 5 {
		k := r.spawn("sender-"+numbered(round%2), r.broker.URL())
		for d := range 200 {
			r.command(numbered(d), fmt.Sprintf("c%d-%d", round, d))
		}
		devstack.Await(t, "some commands", func() bool { return len(r.all()) > round*200+40 })
		k.kill()
	}
	r.start(r.options("last"))
	r.becomes("0", `SELECT count(*) FROM device_commands WHERE published_at IS NULL`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	devstack.Await(t, "every command", func() bool {
		seen := make(map[string]bool)
		for _, p := range r.all() {
			seen[string(p.Properties.CorrelationData)] = true
		}
		return len(seen) == 1000
	})
}

// TestKilledAroundThePUBACK: killed before the broker has the command, it arrives once
// by the next; killed after the confirmation and before it is written down, twice, with
// the same command_id.
func TestKilledAroundThePUBACK(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	w := r.wire()
	before := r.spawn("before", w.url())
	r.becomes("64", `SELECT count(*) FROM crossfade_downlink_lanes`)
	w.hold(true)
	r.command("d1", "c1")
	devstack.Await(t, "the command to be under way", w.carries)
	before.kill()
	w.drop()

	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c2', 'd2', 'x')`)
	tx, err := r.pool.Begin(t.Context())
	must(t, err)
	_, err = tx.Exec(t.Context(), `SELECT FROM crossfade_downlink WHERE command_id = 'c2' FOR UPDATE`) // it can't be deleted meanwhile
	must(t, err)
	after := r.spawn("after", r.broker.URL())
	devstack.Await(t, "both commands", func() bool { return len(r.bodies(commandTopic("d1"))) == 1 && len(r.bodies(commandTopic("d2"))) == 1 })
	r.becomes("1", `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) // confirmed
	after.kill()
	must(t, tx.Rollback(t.Context()))
	r.start(r.options("last"))
	r.becomes("2", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	devstack.Await(t, "the second once more", func() bool { return len(r.bodies(commandTopic("d2"))) == 2 })
	if again := r.bodies(commandTopic("d2")); again[0] != again[1] {
		t.Errorf("received %q", again)
	}
	for _, body := range r.bodies(commandTopic("d1")) {
		if !strings.Contains(body, `"command_id":"c1"`) {
			t.Errorf("received %s", body)
		}
	}
}

// TestLockedCommandHoldsUpNobody: a command that somebody holds is sent once, and
// written down when it can be; others go on.
func TestLockedCommandHoldsUpNobody(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) SELECT 't1', 'c' || i, 'd' || i, 'x' FROM generate_series(0, 9) AS i`)
	tx, err := r.pool.Begin(t.Context())
	must(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), `SELECT FROM device_commands WHERE command_id = 'c3' FOR UPDATE`)
	must(t, err)
	r.start(r.options("a"))
	r.becomes("9", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	r.desire("d5", `{"a": 1}`)
	devstack.Await(t, "others", func() bool { return len(r.bodies(desiredTopic("d5"))) == 1 })
	must(t, tx.Rollback(t.Context()))
	r.becomes("10", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	if list := r.bodies(commandTopic("d3")); len(list) != 1 {
		t.Errorf("the command that was locked arrived %d times", len(list))
	}
}

// TestRefusedRowHoldsUpNobody: where PostgreSQL refuses what is to be written of one
// command, the others are written.
func TestRefusedRowHoldsUpNobody(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	r.exec(`CREATE FUNCTION stubborn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.command_id = 'c3' THEN RAISE EXCEPTION 'no' USING ERRCODE = '45000'; END IF; RETURN NEW; END $$`)
	r.exec(`CREATE TRIGGER stubborn BEFORE UPDATE ON device_commands FOR EACH ROW EXECUTE FUNCTION stubborn()`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) SELECT 't1', 'c' || i, 'd' || i, 'x' FROM generate_series(0, 9) AS i`)
	r.start(r.options("a"))
	r.becomes("9", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	r.desire("d5", `{"a": 1}`)
	r.becomes("1", `SELECT count(*) FROM crossfade_desired_published`)
	r.exec(`DROP TRIGGER stubborn ON device_commands`)
	r.becomes("10", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	devstack.Await(t, "every command", func() bool { return len(r.all()) == 11 })
	if list := r.bodies(commandTopic("d3")); len(list) != 1 {
		t.Errorf("the command arrived %d times", len(list))
	}
}

// TestNotAuthorized: parked with the broker's reason, others go on; retried once the
// broker allows it, or dropped.
func TestNotAuthorized(t *testing.T) {
	dir := t.TempDir()
	acl := filepath.Join(dir, "acl")
	// Mosquitto of Debian 12 tells a publisher that it is not authorized (0x87).
	must(t, os.WriteFile(acl, []byte("topic readwrite tenant/t1/device/d1/#\ntopic readwrite tenant/t1/device/d2/shadow/#\n"), 0o600))
	r := newRig(t, "acl_file "+acl)
	r.listen("tenant/#")
	s, _ := r.start(r.options("a"))
	// A session that comes out of Mosquitto's file has no user until its client is back:
	// before that, nothing that takes one is queued for it.
	restart := func() {
		before := r.listening.Load()
		must(t, r.broker.Stop(t.Context()))
		must(t, r.broker.Start(t.Context()))
		devstack.Await(t, "the devices to listen again", func() bool { return r.listening.Load() > before })
	}
	allow := "user " + r.broker.User() + "\n"
	must(t, os.WriteFile(acl, []byte(allow+"topic readwrite tenant/t1/device/d1/#\ntopic readwrite tenant/t1/device/d2/shadow/#\n"), 0o600))
	restart()
	for d := range 4 {
		r.command(numbered(d), fmt.Sprintf("c%d", d))
		r.desire(numbered(d), `{"a": 1}`)
	}
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'bad', 'x/y', 'x'), ('t1', 'wild', 'x+', 'x')`)
	r.becomes("7", `SELECT count(*) FROM crossfade_downlink_parked`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	devstack.Await(t, "what is allowed", func() bool {
		return len(r.bodies(commandTopic("d1"))) > 0 && len(r.bodies(desiredTopic("d1"))) > 0 && len(r.bodies(desiredTopic("d2"))) > 0 // twice is no fault of QoS 1
	})
	list, err := downlink.List(t.Context(), r.pool, downlink.Parked, downlink.Filter{Tenants: []string{"t1"}, Devices: []string{"d2"}}, 10)
	must(t, err)
	if len(list) != 1 || list[0].Kind != downlink.Command || list[0].CommandID != "c2" || !strings.Contains(list[0].Why, "not authorized") {
		t.Errorf("parked: %+v", list)
	}
	if why := r.text(`SELECT string_agg(reason, ' ') FROM crossfade_downlink_parked WHERE command_id IN ('bad', 'wild')`); strings.Count(why, "cannot be a level of an MQTT topic") != 2 {
		t.Errorf("parked for %s", why)
	}
	// Mended.
	must(t, os.WriteFile(acl, []byte(allow+"topic readwrite #\n"), 0o600))
	restart()
	n, err := downlink.Retry(t.Context(), r.pool, downlink.Parked, downlink.Filter{Devices: []string{"d2", "d3"}, Kinds: []downlink.Kind{downlink.Command}})
	if err != nil || n != 2 {
		t.Errorf("Retry = %d, %v", n, err)
	}
	devstack.Await(t, "what was parked", func() bool { return len(r.bodies(commandTopic("d2")))+len(r.bodies(commandTopic("d3"))) == 2 })
	// A state that is published after all takes its parked mark along.
	r.desire("d3", `{"a": 2}`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink_parked WHERE device_id = 'd3'`)
	n, err = downlink.Drop(t.Context(), r.pool, downlink.Parked, downlink.Filter{Devices: []string{"x/y", "x+"}})
	if err != nil || n != 2 {
		t.Errorf("Drop = %d, %v", n, err)
	}
	r.becomes("2", `SELECT count(*) FROM crossfade_downlink_parked`) // both of d0
	_ = s
}

// answers is a broker of a few lines, which confirms with the codes that it is told
// for each topic, one after the other, and with success once there are none left.
type answers struct {
	mu       sync.Mutex
	codes    map[string][]byte
	received []string
	hangUps  int
	banned   string // the client ID that may not connect
}

// hangUp in place of a code makes it end the connection.
const hangUp = 0x01

func (r *rig) answering(codes map[string][]byte) (*answers, string) {
	r.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.T, err)
	a := &answers{codes: codes}
	var work sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			work.Go(func() { a.serve(c) })
		}
	})
	r.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		work.Wait()
	})
	return a, "mqtt://" + l.Addr().String()
}

func (a *answers) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			return
		}
		answer := packets.NewControlPacket(packets.PINGRESP)
		switch content := p.Content.(type) {
		case *packets.Connect:
			answer = packets.NewControlPacket(packets.CONNACK)
			if a.bans(content.ClientID) {
				answer.Content.(*packets.Connack).ReasonCode = 0x85
			}
		case *packets.Publish:
			answer = packets.NewControlPacket(packets.PUBACK)
			ack := answer.Content.(*packets.Puback)
			if ack.PacketID, ack.ReasonCode = content.PacketID, a.take(content); ack.ReasonCode == hangUp {
				return
			}
		case *packets.Disconnect:
			return
		}
		if _, err := answer.WriteTo(c); err != nil {
			return
		}
	}
}

func (a *answers) take(p *packets.Publish) byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	code := byte(0)
	if list := a.codes[p.Topic]; len(list) > 0 {
		code, a.codes[p.Topic] = list[0], list[1:]
	}
	if code == hangUp {
		a.hangUps++
	} else if code < 0x80 {
		a.received = append(a.received, p.Topic+" "+string(p.Properties.CorrelationData))
	}
	return code
}

func (a *answers) bans(clientID string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return clientID == a.banned
}

func (a *answers) ban(clientID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.banned = clientID
}

func (a *answers) all() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.received)
}

// TestErrorCodes: a broker that is full or does not say why is asked again, and a
// device's later rows wait for it; what it will never take is parked, and they do not.
func TestErrorCodes(t *testing.T) {
	r := newRig(t)
	a, url := r.answering(map[string][]byte{
		commandTopic("quota"):   {0x97, 0x97, 0x80, 0x83},
		commandTopic("topic"):   {0x90},
		commandTopic("format"):  {0x99},
		desiredTopic("login"):   {0x87},
		desiredTopic("nobody"):  {0x10}, // no subscribers: a success
		commandTopic("invalid"): {0x80},
	})
	o := r.options("a")
	o.MQTT.URL = url
	o.FirstRetry = 200 * time.Millisecond
	for _, d := range []string{"quota", "topic", "format", "invalid"} {
		for i := range 3 {
			r.command(d, fmt.Sprintf("%s-%d", d, i))
		}
	}
	r.desire("login", `{"a": 1}`)
	r.desire("nobody", `{"a": 1}`)
	r.start(o)
	r.becomes("1", `SELECT attempts FROM crossfade_downlink WHERE command_id = 'quota-0'`)
	r.becomes("7", `SELECT count(*) FROM device_commands WHERE published_at IS NOT NULL AND device_id <> 'quota'`)
	list, err := downlink.List(t.Context(), r.pool, downlink.Waiting, downlink.Filter{Devices: []string{"quota"}}, 10)
	must(t, err)
	if len(list) != 3 || list[0].Attempts == 0 || list[0].NextTry.IsZero() || !strings.Contains(list[0].Why, "refuses") || list[1].Attempts != 0 {
		t.Errorf("waiting: %+v", list)
	}
	n, err := downlink.Retry(t.Context(), r.pool, downlink.Waiting, downlink.Filter{})
	if err != nil || n > 1 {
		t.Errorf("Retry = %d, %v", n, err)
	}
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
	r.becomes("format-0 login topic-0", `SELECT string_agg(coalesce(command_id, device_id), ' ' ORDER BY coalesce(command_id, device_id)) FROM crossfade_downlink_parked`)
	var of []string
	for _, line := range a.all() {
		if topic, id, _ := strings.Cut(line, " "); topic == commandTopic("quota") {
			of = append(of, id)
		}
	}
	if !slices.Equal(of, []string{"quota-0", "quota-1", "quota-2"}) {
		t.Errorf("taken in the order %q", of)
	}
}

// TestBytesAreBounded: states that are larger than a turn's bytes go out one by one.
func TestBytesAreBounded(t *testing.T) {
	r := newRig(t)
	r.listen("#")
	o := r.options("a")
	o.Bytes = 1024
	r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) SELECT 't1', 'd' || i, jsonb_build_object('a', repeat('x', 5000)) FROM generate_series(1, 50) AS i`)
	r.start(o)
	devstack.Await(t, "every state", func() bool { return len(r.all()) == 50 })
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
}

// TestTidy: a mark of each device stands for all, and what is pointless goes, without
// a sender.
func TestTidy(t *testing.T) {
	r := newRig(t)
	for v := range 10 {
		r.desire("d1", fmt.Sprintf(`{"v": %d}`, v))
		r.desire("d2", fmt.Sprintf(`{"v": %d}`, v))
	}
	r.command("d1", "c1")
	r.command("d1", "c2")
	r.desire("d3", `{"v": 0}`)
	r.command("d3", "c3") // which goes between the two
	r.desire("d3", `{"v": 1}`)
	r.exec(`UPDATE device_commands SET status = 'delivered' WHERE command_id = 'c2'`)
	r.exec(`INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, command_id, body, created_at) VALUES (0, 't1', 'd1', 'response', 'c0', '{}', now() - interval '61 minutes')`)
	ctx, cancel := context.WithCancel(t.Context())
	var tidying sync.WaitGroup
	tidying.Go(func() { downlink.KeepTidy(ctx, r.pool, r.options("").Logger) })
	defer tidying.Wait()
	defer cancel()
	r.becomes("d1 desired, d1 command, d2 desired, d3 desired, d3 command, d3 desired", `SELECT string_agg(device_id || ' ' || kind, ', ' ORDER BY device_id, id) FROM crossfade_downlink`)
}
