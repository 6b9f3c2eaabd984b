package bridge_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/route"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// noReceipt is for copies that come from no source.
type noReceipt struct{}

func (noReceipt) Ack() error          { return nil }
func (noReceipt) Release() error      { return nil }
func (noReceipt) Occurred() time.Time { return time.Now() }

// writer commits messages that match a route, as ingest does.
type writer struct {
	*stack
	store *store.Store
	route *route.Route
	sent  map[string]int // by tenant and device
}

func (s *stack) writer() *writer {
	s.t.Helper()
	c := store.DefaultConfig(s.database)
	st, err := store.Open(s.t.Context(), c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(st.Close)
	r, err := route.Compile(route.Row{ID: "1", NumericID: true, TopicFilter: "#", DestinationType: route.DestinationWebhook})
	if err != nil {
		s.t.Fatal(err)
	}
	return &writer{s, st, r, make(map[string]int)}
}

// write commits the next message of each device in one transaction, and again until
// PostgreSQL takes it.
func (w *writer) write(tenant string, devices, bytes int) {
	w.t.Helper()
	entries := make([]store.Entry, devices)
	decoder := pipeline.NewDecoder("")
	for i := range entries {
		device := fmt.Sprintf("d%d", i)
		w.sent[tenant+"/"+device]++
		d := &pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/" + tenant + "/device/" + device + "/telemetry", Receipt: noReceipt{},
			Body: fmt.Appendf(nil, `{"seq":%d,"site_id":"s","note":%q}`, w.sent[tenant+"/"+device], strings.Repeat("x", bytes))}
		entries[i] = store.Entry{Msg: new(pipeline.Message), Device: &pipeline.Device{Site: "s"}, Routes: []*route.Route{w.route}}
		decoder.Decode(entries[i].Msg, d)
	}
	for {
		err := w.store.Commit(w.t.Context(), entries)
		if err == nil {
			return
		}
		if !errors.Is(err, store.ErrUnavailable) {
			w.t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// wantPublished waits until the outbox is empty, and fails unless the stream then
// holds every message that was written, once, and each device's in order.
func (w *writer) wantPublished() {
	w.t.Helper()
	devstack.Await(w.t, "the outbox is empty", func() bool {
		var n int
		err := w.pool.QueryRow(w.t.Context(), `SELECT count(*) FROM crossfade_outbox`).Scan(&n)
		return err == nil && n == 0
	})
	got := make(map[string]int)
	ids := make(map[string]bool)
	for _, m := range w.routed() {
		var body struct {
			Topic   string
			Payload struct{ Seq int }
		}
		if err := json.Unmarshal(m.Data, &body); err != nil {
			w.t.Fatalf("%v: %s", err, m.Data)
		}
		topic, _ := pipeline.ParseTopic(body.Topic)
		device := topic.Tenant + "/" + topic.Device
		if body.Payload.Seq != got[device]+1 {
			w.t.Errorf("%s: message %d comes after %d", device, body.Payload.Seq, got[device])
		}
		got[device] = body.Payload.Seq
		if id := m.Header.Get(nats.MsgIdHdr); ids[id] || id == "" {
			w.t.Errorf("message %q is there twice, or has no ID", id)
		} else {
			ids[id] = true
		}
		if want := "routes." + topic.Tenant; m.Subject != want {
			w.t.Errorf("subject %s, want %s", m.Subject, want)
		}
	}
	for device, n := range w.sent {
		if got[device] != n {
			w.t.Errorf("%s: %d messages are published, want %d", device, got[device], n)
		}
	}
}

// routed is all that is in the ROUTES stream.
func (s *stack) routed() []*natsjs.RawStreamMsg {
	s.t.Helper()
	stream, err := s.jetstream().Stream(s.t.Context(), "ROUTES")
	if err != nil {
		s.t.Fatal(err)
	}
	state := stream.CachedInfo().State
	var list []*natsjs.RawStreamMsg
	for seq := state.FirstSeq; seq <= state.LastSeq && seq > 0; seq++ {
		m, err := stream.GetMsg(s.t.Context(), seq)
		if err != nil {
			s.t.Fatal(err)
		}
		list = append(list, m)
	}
	return list
}

// publisher is an instance that has JetStream alone.
func (s *stack) publisher(instance string) bridge.Config {
	c := s.config(instance)
	c.MQTT, c.Mirror = nil, nil
	return c
}

// TestPublishersShareTheOutbox: three instances publish, one of them is killed in
// mid-flow and comes back; nothing is lost, doubled or overtaken.
func TestPublishersShareTheOutbox(t *testing.T) {
	s := newStack(t)
	w := s.writer()
	children := []*child{s.spawn(s.publisher("a")), s.spawn(s.publisher("b")), s.spawn(s.publisher("c"))}
	shares := func(children ...*child) (sum float64, all bool) {
		all = true
		for _, k := range children {
			_, metrics := k.get("/metrics")
			n := metric(t, metrics, "crossfade_outbox_lanes")
			sum, all = sum+n, all && n > 0
		}
		return sum, all
	}
	devstack.Await(t, "all three have lanes", func() bool { sum, all := shares(children...); return all && sum == store.OutboxLanes })
	for i := range 150 {
		w.write("t1", 60, 10)
		switch i {
		case 50:
			children[0].kill()
		case 100:
			children[0] = s.spawn(s.publisher("a"))
		}
	}
	w.wantPublished()
	devstack.Await(t, "the one that came back has its share", func() bool { sum, all := shares(children...); return all && sum == store.OutboxLanes })
}

// TestPublisherThatWasFrozen: one of two stops in the midst of its turn, PostgreSQL
// ends its session and the other publishes what it had read. Once it goes on, with
// rows that are not its own any more, nothing is doubled or overtaken.
func TestPublisherThatWasFrozen(t *testing.T) {
	s := newStack(t)
	w := s.writer()
	for range 60 {
		w.write("t1", 30, 10)
	}
	frozen := s.spawn(s.publisher("a"))
	s.start(s.publisher("b"))
	js := s.jetstream()
	devstack.Await(t, "messages are published", func() bool {
		stream, err := js.Stream(t.Context(), "ROUTES")
		return err == nil && stream.CachedInfo().State.Msgs > 300
	})
	if err := frozen.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := s.pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'crossfade routes' AND datname = current_database()`); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		w.write("t1", 30, 10)
	}
	devstack.Await(t, "the other publishes all", func() bool { return s.count(`SELECT count(*) FROM crossfade_outbox`) == 0 })
	if err := frozen.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "it shares the work again", func() bool {
		_, metrics := frozen.get("/metrics")
		return metric(t, metrics, "crossfade_outbox_lanes") == store.OutboxLanes/2
	})
	for range 5 {
		w.write("t1", 30, 10)
	}
	w.wantPublished()
}

// TestOutboxThroughNATSOutage: ingest goes on while NATS is dead, readiness says
// what waits, and all is published afterwards, in order.
func TestOutboxThroughNATSOutage(t *testing.T) {
	s := newStack(t)
	w := s.writer()
	i := s.start(s.publisher("a"))
	for range 20 {
		w.write("t1", 50, 10)
	}
	if err := s.nats.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		w.write("t1", 50, 10)
	}
	if n := s.count(`SELECT count(*) FROM crossfade_outbox`); n < 20*50 {
		t.Errorf("%d rows wait, want at least 1000", n)
	}
	devstack.Await(t, "readiness speaks of the routes", func() bool { return !i.Ready().Checks["routes"].OK })
	if i.Ready().Checks["routes"].Required {
		t.Error("routes make the instance unready")
	}
	devstack.Await(t, "the instance leaves its lanes to others", func() bool {
		return s.count(`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crossfade routes' AND datname = current_database()`) == 0
	})
	if err := s.nats.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantPublished()
	devstack.Await(t, "readiness is content", func() bool { return i.Ready().Checks["routes"].OK })
}

// TestOutboxThroughNATSKills: two instances work off a backlog, and the server is
// killed in the midst of it, again and again.
func TestOutboxThroughNATSKills(t *testing.T) {
	s := newStack(t)
	w := s.writer()
	for range 150 {
		w.write("t1", 60, 10)
	}
	s.start(s.publisher("a"))
	s.start(s.publisher("b"))
	for kill := range uint64(4) {
		js := s.jetstream()
		devstack.Await(t, "messages are published", func() bool {
			stream, err := js.Stream(t.Context(), "ROUTES")
			return err == nil && stream.CachedInfo().State.Msgs > 1000*(kill+1)
		})
		if err := s.nats.Kill(); err != nil {
			t.Fatal(err)
		}
		w.write("t1", 60, 10)
		if err := s.nats.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.wantPublished()
}

// TestOutboxThroughPostgresRestart: what is published and not deleted when the
// database goes away is not published again.
func TestOutboxThroughPostgresRestart(t *testing.T) {
	pg := devstack.TestPostgres(t)
	url, err := pg.CreateDatabase(t.Context(), "crossfade")
	if err != nil {
		t.Fatal(err)
	}
	s := newStackOn(t, url)
	w := s.writer()
	i := s.start(s.publisher("a"))
	var restarting sync.WaitGroup
	for n := range 120 {
		w.write("t1", 60, 10)
		if n == 40 {
			restarting.Go(func() {
				if err := errors.Join(pg.Kill(), pg.Start(context.Background())); err != nil {
					t.Error(err)
				}
			})
		}
	}
	restarting.Wait()
	w.wantPublished()
	devstack.Await(t, "readiness is content", func() bool { return i.Ready().Ready && i.Ready().Checks["routes"].OK })
}

// TestPublishedRowsThatCannotBeDeleted are remembered: nothing else is done before
// they are gone, and they are not published again.
func TestPublishedRowsThatCannotBeDeleted(t *testing.T) {
	s := newStack(t)
	w := s.writer()
	if _, err := s.pool.Exec(t.Context(), `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
		CREATE TRIGGER refuse BEFORE DELETE ON crossfade_outbox EXECUTE FUNCTION refuse()`); err != nil {
		t.Fatal(err)
	}
	i := s.start(s.publisher("a"))
	w.write("t1", 10, 10)
	devstack.Await(t, "readiness says that rows cannot be deleted", func() bool { return strings.Contains(i.Ready().Checks["routes"].Error, "delete published rows") })
	published := len(s.routed())
	w.write("t1", 10, 10)
	// A duplicate window so short that a repeat would be stored: the stream forgets.
	stream, err := s.jetstream().Stream(t.Context(), "ROUTES")
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.Duplicates = 100 * time.Millisecond
	if _, err := s.jetstream().UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	tries := s.count(`SELECT sum(xact_rollback) FROM pg_stat_database WHERE datname = current_database()`)
	devstack.Await(t, "the deletion is tried again", func() bool {
		return s.count(`SELECT sum(xact_rollback) FROM pg_stat_database WHERE datname = current_database()`) > tries+2
	})
	if n := len(s.routed()); n != published {
		t.Errorf("%d more messages are published while the deletion fails", n-published)
	}
	if _, err := s.pool.Exec(t.Context(), `DROP TRIGGER refuse ON crossfade_outbox`); err != nil {
		t.Fatal(err)
	}
	w.wantPublished()
}

// TestParkedRowsHoldNobodyUp: a tenant that no subject can name, and a message that
// is larger than NATS takes, beside others of the same device and of other tenants (P6).
func TestParkedRowsHoldNobodyUp(t *testing.T) {
	s := newStack(t)
	w := s.writer()
	i := s.start(s.publisher("a"))
	for range 3 {
		w.write("no subject", 5, 10)
		w.write("t1", 5, 10)
	}
	w.write("t2", 1, 2<<20)
	w.write("t2", 1, 10)
	devstack.Await(t, "all is published or parked", func() bool { return s.count(`SELECT count(*) FROM crossfade_outbox`) == 0 })
	if n := s.count(`SELECT count(*) FROM crossfade_outbox_parked WHERE tenant_id = 'no subject' AND reason LIKE '%NATS subject%'`); n != 15 {
		t.Errorf("%d rows of the tenant are parked, want 15", n)
	}
	if n := s.count(`SELECT count(*) FROM crossfade_outbox_parked WHERE tenant_id = 't2' AND reason LIKE '%bytes%'`); n != 1 {
		t.Errorf("%d large rows are parked, want 1", n)
	}
	metrics := i.metrics()
	if n := metric(t, metrics, "crossfade_outbox_parked_total"); n != 16 {
		t.Errorf("crossfade_outbox_parked_total is %v, want 16", n)
	}
	if n := metric(t, metrics, "crossfade_outbox_published_total"); n != 16 {
		t.Errorf("crossfade_outbox_published_total is %v, want 16", n)
	}
	if len(s.routed()) != 16 {
		t.Errorf("%d messages are published, want 16", len(s.routed()))
	}
}

// TestRouteFromEndToEnd: an envelope comes in, a message goes out for every route that
// takes it.
func TestRouteFromEndToEnd(t *testing.T) {
	s := newStack(t)
	s.register("t1")
	if _, err := s.pool.Exec(t.Context(), `INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type, destination_config, payload_filter) VALUES
		('t1', 'all', 'tenant/t1/device/+/telemetry', 'webhook', '{"url":"http://x"}', '{"seq":{"$lt":3}}'), ('t1', 'row', '#', 'postgresql', '{}', NULL),
		('t1', 'rest', '#', 'mqtt_republish', '{}', '{"seq":{"$gte":2}}')`); err != nil {
		t.Fatal(err)
	}
	i := s.start(s.publisher("a"))
	s.flip(flags.JetStream, "t1")
	s.publish(s.jetstream(), "t1", 5)
	const all = `{"id":1,"topic_filter":"tenant/t1/device/+/telemetry","destination_type":"webhook","destination_config":{"url":"http://x"},"payload_filter":{"seq":{"$lt":3}}}`
	const rest = `{"id":3,"topic_filter":"#","destination_type":"mqtt_republish","destination_config":{},"payload_filter":{"seq":{"$gte":2}}}`
	wanted := []struct {
		route string
		seq   int
	}{{all, 0}, {all, 1}, {all, 2}, {rest, 2}, {rest, 3}, {rest, 4}}
	devstack.Await(t, "all messages are published", func() bool { return len(s.routed()) == len(wanted) })
	for n, m := range s.routed() {
		want := fmt.Sprintf(`{"route":%s,"topic":"tenant/t1/device/d1/telemetry","payload":{"metrics":{"v":1},"provision_token":"tok","seq":%d,"site_id":"s"},"tenant_id":"t1"}`,
			wanted[n].route, wanted[n].seq)
		if string(m.Data) != want {
			t.Errorf("got  %s\nwant %s", m.Data, want)
		}
	}
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
}
