package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/route"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// TestNotify: listeners learn the tenants of a batch's fresh telemetry, in as many
// payloads as PostgreSQL's bound makes necessary.
func TestNotify(tt *testing.T) {
	t := newStoreTest(tt)
	conn := schemaConn(tt, t.url)
	schemaExec(tt, conn, `LISTEN telemetry_inserted`)
	at := func(tenant, payload string) store.Entry {
		return entryOf(copyOf("tenant/"+tenant+"/device/d1/telemetry", payload, noon))
	}
	// next returns what is told of one batch; a sentinel tenant ends it.
	next := func() (tenants []string, payloads int) {
		t.commit(at("~end", fmt.Sprintf(`{"ts":%q}`, time.Now().Format(time.RFC3339Nano))))
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			n, err := conn.WaitForNotification(ctx)
			cancel()
			t.must(err)
			var list []string
			t.must(json.Unmarshal([]byte(n.Payload), &list))
			if n.Channel != "telemetry_inserted" || len(n.Payload) >= 8000 {
				t.Fatalf("%d bytes on %s", len(n.Payload), n.Channel)
			}
			if slices.Equal(list, []string{"~end"}) {
				return tenants, payloads
			}
			tenants, payloads = append(tenants, list...), payloads+1
		}
	}
	batch := []store.Entry{at("t2", `{"seq":1}`), at(`t"é\`, `{"seq":1}`), at("t2", `{"seq":2}`), refuse(at("t3", `{"seq":1}`), pipeline.TokenInvalid),
		entryOf(copyOf("tenant/t4/device/d1/shadow/reported", `{"reported":{}}`, noon)), at("t1", `{"seq":1}`)}
	t.commit(batch...)
	if got, n := next(); n != 1 || !slices.Equal(got, []string{`t"é\`, "t1", "t2"}) {
		t.Errorf("%d payloads: %q", n, got)
	}
	t.commit(batch...)
	if got, _ := next(); got != nil {
		t.Errorf("copies that are not fresh: %q", got)
	}
	batch = nil
	for i := range 300 {
		batch = append(batch, at(fmt.Sprintf("%04d%s", i, strings.Repeat("x", 60)), `{"seq":1}`))
	}
	t.commit(batch...)
	if got, n := next(); n != 3 || len(got) != 300 || !slices.IsSorted(got) {
		t.Errorf("%d payloads with %d tenants", n, len(got))
	}
}

// TestNotifyWithAFullQueue: who listens and does not come to read fills the queue of
// notifications, 8 GB of it. What ingest writes is written all the same, with routes,
// acks and devices that register themselves; a commit that fails waits: it is no fault of
// the messages.
func TestNotifyWithAFullQueue(tt *testing.T) {
	t := newStoreTest(tt)
	// 8 GB are too many for a test; so are the others' notifications.
	t.exec(`CREATE SCHEMA fuller; CREATE FUNCTION fuller.pg_notification_queue_usage() RETURNS float8 LANGUAGE sql AS 'SELECT 0.95::float8';
		INSERT INTO subscriptions (subscription_id, tenant_id) VALUES ('s', 't1'), ('s3', 't3');
		INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('t1', 'c1', 'd1', 'x')`)
	full := func(yes bool) {
		path, of := "RESET search_path", "public"
		if yes {
			path, of = "SET search_path = fuller, public, pg_catalog", "fuller, public, pg_catalog"
		}
		t.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I ` + path + `', current_database()); END $$;
			ALTER FUNCTION crossfade_devices_changed() SET search_path = ` + of)
	}
	all := func(tenant string) {
		one := openStoreTest(tt, t.url)
		e := entryOf(copyOf("tenant/"+tenant+"/device/d1/telemetry", `{"seq":1}`, noon))
		e.Routes = []*route.Route{testRoute(tt, "1")}
		one.wantFresh("telemetry with a route", 1, e)
		one.wantFresh("an ack", 1, entryOf(copyOf("tenant/"+tenant+"/device/d1/commands/ack", `{"command_id":"c1"}`, noon)))
		_, refused, err := one.Provision(t.Context(), []store.NewDevice{newDevice(tenant, "d9")})
		t.must(errors.Join(refused, err))
	}
	conn := schemaConn(tt, t.url)
	schemaExec(tt, conn, `LISTEN telemetry_inserted; LISTEN crossfade_outbox; LISTEN crossfade_downlink; LISTEN crossfade_changes`)
	full(true)
	all("t1")
	full(false)
	all("t3")
	for _, want := range []string{"crossfade_outbox", `telemetry_inserted["t3"]`, "crossfade_downlink", `crossfade_changes{"d" : ["t3", "d9"]}`} {
		n, err := conn.WaitForNotification(t.Context())
		t.must(err)
		if got := n.Channel + n.Payload; got != want {
			t.Errorf("the queue being empty again: got %s, want %s", got, want)
		}
	}
	t.exec(`CREATE FUNCTION full_queue() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		RAISE EXCEPTION 'too many notifications in the NOTIFY queue' USING ERRCODE = 'program_limit_exceeded'; END $$;
		CREATE CONSTRAINT TRIGGER full_queue AFTER INSERT ON crossfade_downlink DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION full_queue();
		CREATE CONSTRAINT TRIGGER full_queue AFTER INSERT ON device_registry DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION full_queue()`)
	if err := t.Commit(t.Context(), []store.Entry{ack("d2", `{"command_id":"c1"}`)}); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrData) {
		t.Errorf("an ack: %v", err)
	}
	if _, refused, err := t.Provision(t.Context(), []store.NewDevice{newDevice("t1", "d8")}); refused != nil || !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrData) {
		t.Errorf("a device that registers itself: %v, %v", refused, err)
	}
}
