package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// TestErrorsAreTold apart, each provoked for real. Whatever it was, nothing is
// left behind, and the same batch goes through once the cause is gone.
func TestErrorsAreTold(tt *testing.T) {
	full := func() []store.Entry {
		return []store.Entry{
			telemetry(`{"seq":1,"site_id":"s1","metrics":{"a":1}}`), telemetry(`{"hello":1}`), shadow("d1", `{"reported":{"n":1},"version":1}`),
			entryOf(copyOf("tenant/t1/device/d1/commands/ack", `{"command_id":"c1"}`, noon)), refuse(telemetry(`{"seq":2}`), pipeline.TokenInvalid),
		}
	}
	trigger := `CREATE FUNCTION trip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '%s'; END $$;
		CREATE TRIGGER trip BEFORE INSERT ON telemetry FOR EACH ROW EXECUTE FUNCTION trip()`
	untrip := `DROP TRIGGER trip ON telemetry; DROP FUNCTION trip`
	raise := func(code string) string { return strings.Replace(trigger, "%s", code, 1) }
	t := newStoreTest(tt)
	for _, c := range []struct {
		name, cause, remedy string
		want                error
		says                string
	}{
		{"constraint", `ALTER TABLE telemetry ADD CONSTRAINT small CHECK (seq <> 1)`, `ALTER TABLE telemetry DROP CONSTRAINT small`, store.ErrData, "copy into telemetry"},
		{"not null", `ALTER TABLE quarantine_events ALTER COLUMN site_id SET NOT NULL`, `ALTER TABLE quarantine_events ALTER COLUMN site_id DROP NOT NULL`, store.ErrData, "insert into quarantine_events"},
		{"column too narrow", `ALTER TABLE telemetry ALTER COLUMN msg_type TYPE varchar(3) USING 'x'`, `ALTER TABLE telemetry ALTER COLUMN msg_type TYPE text`, store.ErrData, "copy into telemetry"},
		{"raised by a trigger", raise("P0001"), untrip, store.ErrData, "copy into telemetry"},
		{"data exception", raise("22023"), untrip, store.ErrData, "copy into telemetry"},
		{"limit exceeded", raise("54000"), untrip, store.ErrData, "copy into telemetry"},
		{"serialization failure", raise("40001"), untrip, store.ErrUnavailable, "copy into telemetry"},
		{"disk full", raise("53100"), untrip, store.ErrUnavailable, "copy into telemetry"},
		{"internal error", raise("XX000"), untrip, store.ErrUnavailable, "copy into telemetry"},
		{"table missing", `ALTER TABLE device_state RENAME TO gone`, `ALTER TABLE gone RENAME TO device_state`, store.ErrSchema, "update device_state"},
		{"ledger missing", `ALTER TABLE crossfade_ledger RENAME TO gone`, `ALTER TABLE gone RENAME TO crossfade_ledger`, store.ErrSchema, "insert into the ledger"},
		{"column missing", `ALTER TABLE device_commands RENAME COLUMN ack_details TO gone`, `ALTER TABLE device_commands RENAME COLUMN gone TO ack_details`, store.ErrSchema, "update device_commands"},
		{"key missing", `ALTER TABLE quarantine_counters_minute DROP CONSTRAINT quarantine_counters_minute_pkey`, `ALTER TABLE quarantine_counters_minute ADD PRIMARY KEY (bucket_minute, tenant_id, reason)`, store.ErrSchema, "quarantine_events"},
	} {
		t.exec(`TRUNCATE telemetry, crossfade_ledger, device_state, quarantine_events, quarantine_counters_minute`)
		t.exec(c.cause)
		batch := full()
		err := t.Commit(t.Context(), batch)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %v in %q", c.name, err, c.want, c.says)
		}
		for _, other := range []error{store.ErrData, store.ErrSchema, store.ErrUnavailable} {
			if other != c.want && errors.Is(err, other) {
				t.Errorf("%s: %v is also %v", c.name, err, other)
			}
		}
		t.exec(c.remedy)
		t.wantCount(0, `SELECT count(*) FROM crossfade_ledger`)
		t.wantFresh(c.name+", mended", len(batch), batch...)
	}
}

func TestErrDataSaysWhatPostgreSQLSaid(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`ALTER TABLE telemetry ADD CONSTRAINT no_sevens CHECK (seq <> 7)`)
	detail := store.Detail(t.Commit(t.Context(), []store.Entry{telemetry(`{"seq":7,"provision_token":"secret"}`)}))
	if !strings.Contains(detail, "no_sevens") || !strings.Contains(detail, "23514") || strings.Contains(detail, "secret") {
		t.Errorf("detail: %s", detail)
	}
	if store.Detail(errors.New("x")) == "" {
		t.Error("an error without an SQLSTATE has no detail")
	}
}

// TestUnavailable: lock time-outs, and a server that is not there or comes back.
func TestUnavailable(tt *testing.T) {
	pg := devstack.TestPostgres(tt)
	url, err := pg.CreateDatabase(tt.Context(), "unavailable")
	if err != nil {
		tt.Fatal(err)
	}
	migrate(tt, url)
	c := store.DefaultConfig(url)
	c.LockTimeout = 50 * time.Millisecond
	s, err := store.Open(tt.Context(), c)
	if err != nil {
		tt.Fatal(err)
	}
	tt.Cleanup(s.Close)
	t := storeTest{partitionTest{tt, s.Pool()}, s, url}
	batch := []store.Entry{telemetry(`{"seq":1}`)}
	unavailable := func(when string, err error) {
		t.Helper()
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", when, err)
		}
		if strings.Contains(err.Error(), strings.SplitN(strings.SplitN(url, "@", 2)[0], ":", 3)[2]) {
			t.Errorf("%s: the error holds the password", when)
		}
	}
	holder := t.begin()
	_, err = holder.Exec(t.Context(), `LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE`)
	t.must(err)
	err = t.Commit(t.Context(), batch)
	unavailable("lock time-out", err)
	if !errors.Is(err, store.ErrLocked) {
		t.Errorf("lock time-out: %v, want ErrLocked", err)
	}
	t.must(holder.Rollback(t.Context()))

	all := func(when string) {
		t.Helper()
		unavailable(when+": commit", t.Commit(t.Context(), batch))
		_, err := t.Known(t.Context(), []pipeline.Identity{batch[0].Msg.Identity})
		unavailable(when+": known", err)
		_, err = t.Devices(t.Context(), []pipeline.DeviceKey{{Tenant: "t1", Device: "d1"}})
		unavailable(when+": devices", err)
		unavailable(when+": ping", t.Ping(t.Context()))
	}
	t.must(pg.Stop(t.Context()))
	all("stopped")
	t.must(pg.Start(t.Context()))
	devstack.Await(tt, "it answers again", func() bool { return t.Ping(t.Context()) == nil })
	t.must(pg.Kill())
	all("killed")
	t.must(pg.Start(t.Context()))
	devstack.Await(tt, "it answers again", func() bool { return t.Ping(t.Context()) == nil })
	t.wantFresh("afterwards", 1, batch...)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := t.Commit(ctx, batch); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its context: %v", err)
	}
	bad := store.DefaultConfig(strings.Replace(url, "postgres:", "postgres:wrong", 2))
	bad.URL = strings.Replace(url, "/unavailable", "/nosuch", 1)
	missing, err := store.Open(t.Context(), bad)
	t.must(err)
	defer missing.Close()
	if err := missing.Ping(t.Context()); !errors.Is(err, store.ErrSchema) {
		t.Errorf("no such database: %v, want ErrSchema", err)
	}
}
