package downlink_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/bridge/downlink"
)

// TestOneBadCommandStopsNobody: commands that PostgreSQL refuses to change keep no other
// tenant's from ending, and nothing else from being tidied.
func TestOneBadCommandStopsNobody(t *testing.T) {
	r := newRig(t)
	r.exec(`CREATE FUNCTION stubborn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.tenant_id = 'bad' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$`)
	r.exec(`CREATE TRIGGER stubborn BEFORE UPDATE ON device_commands FOR EACH ROW EXECUTE FUNCTION stubborn()`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, expires_at, status)
		SELECT 'bad', 'e' || i, 'd1', 'x', now() - interval '1 day', 'queued' FROM generate_series(1, 500) AS i`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, expires_at) VALUES ('bad', 'first', 'd1', 'x', '-infinity')`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, expires_at)
		SELECT 't1', 'e' || i, 'd1', 'x', now() - interval '1 day' * (i % 3) FROM generate_series(1, 1500) AS i`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, created_at, published_at) VALUES
		('bad', 'm', 'd1', 'x', now() - interval '1 hour', now() - interval '1 hour'), ('t1', 'm', 'd1', 'x', now() - interval '1 hour', now() - interval '1 hour')`)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type) VALUES ('bad', 'a', 'd1', 'x'), ('t1', 'a', 'd1', 'x')`)
	r.exec(`ALTER TABLE device_commands DISABLE TRIGGER stubborn; UPDATE device_commands SET status = 'delivered', acked_at = now() WHERE command_id = 'a'; ALTER TABLE device_commands ENABLE TRIGGER stubborn`)
	r.exec(`INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, command_id, body, created_at) VALUES (0, 't1', 'd1', 'response', 'c0', '{}', now() - interval '61 minutes')`)
	o := r.options("a")
	o.MQTT.URL = "mqtt://127.0.0.1:1" // nobody sends
	o.Missed = downlink.DefaultOptions().Missed / 48
	r.start(o)
	r.becomes("1500", `SELECT count(*) FROM device_commands WHERE tenant_id = 't1' AND status = 'expired'`)
	r.becomes("missed", `SELECT status FROM device_commands WHERE tenant_id = 't1' AND command_id = 'm'`)
	r.becomes("true", `SELECT published_at IS NOT NULL FROM device_commands WHERE tenant_id = 't1' AND command_id = 'a'`)
	r.becomes("0", `SELECT count(*) FROM crossfade_downlink WHERE kind = 'response'`)
	if n := r.text(`SELECT count(*) FROM device_commands WHERE tenant_id = 'bad' AND status IN ('queued', 'delivered') AND published_at IS NULL`); n != "502" {
		t.Errorf("%s of the others are as they were, want 502", n)
	}
}

// TestHeldCommandsStopNobody: expired commands that somebody holds, more than are changed
// at once, keep no others from ending, and end once they are free.
func TestHeldCommandsStopNobody(t *testing.T) {
	r := newRig(t)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, expires_at)
		SELECT 'held', 'e' || i, 'd1', 'x', now() - interval '1 day' FROM generate_series(1, 1100) AS i UNION ALL SELECT 't1', 'e', 'd1', 'x', now() - interval '1 hour'`)
	holder, err := r.pool.Begin(t.Context())
	must(t, err)
	t.Cleanup(func() { _ = holder.Rollback(context.Background()) })
	_, err = holder.Exec(t.Context(), `SELECT FROM device_commands WHERE tenant_id = 'held' FOR UPDATE`)
	must(t, err)
	o := r.options("a")
	o.MQTT.URL = "mqtt://127.0.0.1:1" // nobody sends
	r.start(o)
	r.becomes("t1", `SELECT string_agg(tenant_id, ' ') FROM device_commands WHERE status = 'expired'`)
	must(t, holder.Rollback(t.Context()))
	r.becomes("1101", `SELECT count(*) FROM device_commands WHERE status = 'expired'`)
}

// TestTidyingWaitsForNobody: rows that a sender holds are left to it, so that the two
// never wait for each other.
func TestTidyingWaitsForNobody(t *testing.T) {
	r := newRig(t)
	for v := range 3 {
		r.desire("d1", fmt.Sprintf(`{"v": %d}`, v))
		r.desire("d2", fmt.Sprintf(`{"v": %d}`, v))
	}
	r.command("d1", "c1")
	r.command("d2", "c2")
	r.exec(`UPDATE device_commands SET status = 'expired'`)
	r.exec(`INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind, command_id, body, created_at)
		SELECT 0, 't1', d, 'response', 'c0', '{}', now() - interval '61 minutes' FROM unnest(ARRAY['d1', 'd2']) AS d`)
	holder, err := r.pool.Begin(t.Context())
	must(t, err)
	t.Cleanup(func() { _ = holder.Rollback(context.Background()) })
	_, err = holder.Exec(t.Context(), `SELECT FROM crossfade_downlink WHERE device_id = 'd1' FOR UPDATE`)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var tidying sync.WaitGroup
	tidying.Go(func() { downlink.KeepTidy(ctx, r.pool, r.options("").Logger) })
	r.becomes("d1 command, d1 desired, d1 desired, d1 desired, d1 response, d2 desired",
		`SELECT string_agg(device_id || ' ' || kind, ', ' ORDER BY device_id, kind) FROM crossfade_downlink`)
	cancel()
	tidying.Wait()
	must(t, holder.Rollback(t.Context()))
}

// TestVersionOfAnOldSnapshot: a writer that inserts a row again without seeing that it
// was deleted numbers it from 1; the sender raises that, whether the version is below
// what was published or the same, and passes by a row that somebody holds.
func TestVersionOfAnOldSnapshot(t *testing.T) {
	for _, published := range []int{10, 1} {
		t.Run(fmt.Sprint(published), func(t *testing.T) {
			r := newRig(t)
			r.listen("#")
			_, stop := r.start(r.options("a"))
			r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state, desired_version) VALUES ('t1', 'd1', '{"a": 1}', $1)`, published)
			r.becomes(fmt.Sprint(published), `SELECT version FROM crossfade_desired_published`)
			r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
			stop()
			old, err := r.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
			must(t, err)
			_, err = old.Exec(t.Context(), `SELECT FROM crossfade_desired_versions`)
			must(t, err)
			r.exec(`DELETE FROM device_state`)
			_, err = old.Exec(t.Context(), `INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', 'd1', '{"a": 2}')`)
			must(t, err)
			must(t, old.Commit(t.Context()))
			if v := r.text(`SELECT desired_version FROM device_state`); v != "1" {
				t.Fatalf("version %s, want 1", v)
			}
			holder, err := r.pool.Begin(t.Context())
			must(t, err)
			_, err = holder.Exec(t.Context(), `SELECT FROM device_state FOR UPDATE`)
			must(t, err)
			r.start(r.options("b"))
			r.becomes("true", `SELECT last_error LIKE '%being changed%' FROM crossfade_downlink ORDER BY id LIMIT 1`)
			must(t, holder.Rollback(t.Context()))
			r.becomes(fmt.Sprint(published+1), `SELECT version FROM crossfade_desired_published`)
			r.becomes("0", `SELECT count(*) FROM crossfade_downlink`)
			r.becomes("0", `SELECT count(*) FROM crossfade_downlink_parked`)
			devstack.Await(t, "both states", func() bool { return len(r.bodies(desiredTopic("d1"))) == 2 })
			if last := r.bodies(desiredTopic("d1"))[1]; !strings.HasPrefix(last, fmt.Sprintf(`{"desired":{"a":2},"version":%d,`, published+1)) {
				t.Errorf("received %s", last)
			}
			// One that does not let itself be raised is parked.
			r.exec(`ALTER TABLE device_state DISABLE TRIGGER USER`)
			r.exec(`CREATE FUNCTION stubborn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.desired_version := 1; RETURN NEW; END $$`)
			r.exec(`CREATE TRIGGER stubborn BEFORE UPDATE ON device_state FOR EACH ROW EXECUTE FUNCTION stubborn()`)
			r.exec(`UPDATE device_state SET desired_state = '{"a": 3}'`)
			r.exec(`INSERT INTO crossfade_downlink (lane, tenant_id, device_id, kind) VALUES (crossfade_lane('t1', 'd1'), 't1', 'd1', 'desired')`)
			r.becomes("true", `SELECT reason LIKE '%does not let itself be raised%' FROM crossfade_downlink_parked`)
		})
	}
}
