package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/process"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// follower is as much of an instance as follows changes, with a cache that would
// believe for an hour what it has read.
type follower struct {
	*Bridge
	t    *testing.T
	name string
	db   *pgxpool.Pool
	sent int
}

// followers start two instances on one database, with device d1 of tenant t1.
func followers(t *testing.T, change func(*process.Options)) (a, b *follower, db *pgxpool.Pool) {
	t.Helper()
	url, db := followed(t)
	a, b = newFollower(t, "a", url, db, change), newFollower(t, "b", url, db, change)
	a.runs(a.followChanges)
	b.runs(b.followChanges)
	return a, b, db
}

func followed(t *testing.T) (url string, db *pgxpool.Pool) {
	t.Helper()
	url = devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	db, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	execOn(t, db, `INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd1', 's1')`)
	return url, db
}

// newFollower returns one that works and does not listen yet.
func newFollower(t *testing.T, name, url string, db *pgxpool.Pool, change func(*process.Options)) *follower {
	t.Helper()
	s, err := store.Open(t.Context(), store.DefaultConfig(url))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	o := process.DefaultOptions()
	o.Settings.RequireToken, o.Settings.RateLimit = false, 0
	o.RegistryTTL = time.Hour
	o.Logger, o.Registry = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	if change != nil {
		change(&o)
	}
	p, err := process.New(s, o)
	if err != nil {
		t.Fatal(err)
	}
	settings := newAppSettings(o.Settings, s.AppSettings, p.SetSettings, o.Logger)
	settings.beat = time.Hour
	f := &follower{t: t, name: name, db: db, Bridge: &Bridge{log: o.Logger, store: s, processor: p, appSettings: settings}}
	f.runs(p.Run)
	return f
}

// runs runs part until the test ends.
func (f *follower) runs(part func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { part(ctx) })
	f.t.Cleanup(func() { cancel(); running.Wait() })
}

func execOn(t *testing.T, db *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

type receiptAtOnce struct{}

func (receiptAtOnce) Ack() error          { return nil }
func (receiptAtOnce) Release() error      { return nil }
func (receiptAtOnce) Occurred() time.Time { return time.Now() }

// outcome has the instance process one more message and returns what became of it.
func (f *follower) outcome(device, members string) string {
	f.t.Helper()
	f.sent++
	site := f.name + fmt.Sprint(f.sent) // tells the message from all others
	f.processor.Submit(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/" + device + "/telemetry", Receipt: receiptAtOnce{},
		Body: fmt.Appendf(nil, `{"site_id":"s1","message_id":%q,"metrics":{"mark":%q}%s}`, site, site, members)})
	if err := f.processor.Drain(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	var what string
	if err := f.db.QueryRow(f.t.Context(), `SELECT 'written' FROM telemetry WHERE metrics ->> 'mark' = $1
		UNION ALL SELECT reason FROM quarantine_events WHERE payload -> 'metrics' ->> 'mark' = $1`, site).Scan(&what); err != nil {
		f.t.Fatal(err)
	}
	return what
}

// await sends until the outcome is the wanted one, and returns how long that took.
func (f *follower) await(want string, outcome func() string) time.Duration {
	f.t.Helper()
	began, got := time.Now(), ""
	for time.Since(began) < 30*time.Second {
		if got = outcome(); got == want {
			return time.Since(began)
		}
		time.Sleep(5 * time.Millisecond)
	}
	f.t.Fatalf("instance %s: %s, want %s", f.name, got, want)
	return 0
}

// TestRevokedDeviceStopsEverywhere: what operators change takes effect on every
// instance though each believes its cache for an hour.
func TestRevokedDeviceStopsEverywhere(t *testing.T) {
	a, b, db := followers(t, nil)
	d1 := func(f *follower) func() string { return func() string { return f.outcome("d1", "") } }
	for _, c := range []struct{ sql, want string }{
		{`SELECT`, "written"},
		{`UPDATE device_registry SET status = 'REVOKED'`, "DEVICE_REVOKED"},
		{`UPDATE device_registry SET status = 'ACTIVE'`, "written"},
		{`UPDATE device_registry SET site_id = 's2'`, "SITE_MISMATCH_REGISTRY_VS_PAYLOAD"},
		{`DELETE FROM device_registry`, "UNREGISTERED_DEVICE"},
		{`INSERT INTO device_registry (tenant_id, device_id, site_id, subscription_id) VALUES ('t1', 'd1', 's1', 'sub')`, "written"},
		{`INSERT INTO subscriptions (subscription_id, tenant_id, status) VALUES ('sub', 't1', 'EXPIRED')`, "SUBSCRIPTION_EXPIRED"},
		{`UPDATE subscriptions SET status = 'SUSPENDED'`, "SUBSCRIPTION_SUSPENDED"},
		{`DELETE FROM subscriptions`, "written"},
		{`TRUNCATE device_registry`, "UNREGISTERED_DEVICE"},
	} {
		execOn(t, db, c.sql)
		for _, f := range []*follower{a, b} {
			t.Logf("%s: %s after %v", c.sql, f.name, f.await(c.want, d1(f)))
		}
	}
}

// TestRoutesAreForgotten when their tenant's, or anything, is said to have changed. The
// instance does not listen, so that only the test says so.
func TestRoutesAreForgotten(t *testing.T) {
	url, db := followed(t)
	a := newFollower(t, "a", url, db, func(o *process.Options) { o.Routes = true })
	a.outcome("d1", "") // and t1 is known to have no routes
	for _, c := range []struct {
		sql  string
		told store.Change
		want int
	}{
		{`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type) VALUES ('t1', 'n', '#', 'webhook')`, store.Change{Kind: store.ChangeRoutes, Tenant: "t1"}, 1},
		{`DELETE FROM message_routes`, store.Change{Kind: store.ChangeEverything}, 1},
	} {
		execOn(t, db, c.sql)
		a.heard(c.told)
		a.outcome("d1", "")
		var routed int
		if err := db.QueryRow(t.Context(), `SELECT count(*) FROM crossfade_outbox`).Scan(&routed); err != nil || routed != c.want {
			t.Errorf("%s: %d messages are routed by then, want %d; %v", c.sql, routed, c.want, err)
		}
	}
}

// TestListeningEndsAndBegins: what was changed while nobody listened takes effect too.
func TestListeningEndsAndBegins(t *testing.T) {
	a, _, db := followers(t, nil)
	d1 := func() string { return a.outcome("d1", "") }
	a.await("written", d1)
	execOn(t, db, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()`)
	if _, err := db.Exec(t.Context(), `UPDATE device_registry SET status = 'REVOKED'`); err != nil {
		execOn(t, db, `UPDATE device_registry SET status = 'REVOKED'`) // the pool has lost connections too
	}
	a.await("DEVICE_REVOKED", d1)
}

// TestCertificatesAreFollowed: one that is added counts at once, one that is revoked
// does not any more.
func TestCertificatesAreFollowed(t *testing.T) {
	a, b, db := followers(t, func(o *process.Options) {
		o.Settings.RequireToken, o.Settings.CertAuth, o.Settings.CertTrustTopic = true, true, true
	})
	for _, c := range []struct{ sql, want string }{
		{`SELECT`, "TOKEN_NOT_SET_IN_REGISTRY"},
		{`INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, common_name, not_after) VALUES ('t1', 'd1', 'f', 't1/d1', now() + interval '1 day')`, "written"},
		{`UPDATE device_certificates SET status = 'REVOKED'`, "TOKEN_NOT_SET_IN_REGISTRY"},
		{`UPDATE device_certificates SET status = 'ACTIVE', not_after = now() - interval '1 second'`, "TOKEN_NOT_SET_IN_REGISTRY"},
	} {
		execOn(t, db, c.sql)
		for _, f := range []*follower{a, b} {
			f.await(c.want, func() string { return f.outcome("d1", "") })
		}
	}
}

// TestDevicesAreProvisionedOnEveryInstance: up to the limit, and by messages that
// pass the checks before.
func TestDevicesAreProvisionedOnEveryInstance(t *testing.T) {
	a, b, db := followers(t, func(o *process.Options) { o.AutoProvision = true })
	if got := a.outcome("new", ""); got != "NO_SUBSCRIPTION_CAPACITY" {
		t.Errorf("without a subscription: %s", got)
	}
	execOn(t, db, `INSERT INTO subscriptions (subscription_id, tenant_id, device_limit) VALUES ('sub', 't1', 2)`)
	if got := a.outcome("bad", `,"version":"9"`); got != "UNSUPPORTED_ENVELOPE_VERSION" {
		t.Errorf("a bad message: %s", got)
	}
	for _, f := range []*follower{a, b} {
		f.await("written", func() string { return f.outcome("new", "") })
		f.await("written", func() string { return f.outcome("second", "") })
		if got := f.outcome("third", ""); got != "NO_SUBSCRIPTION_CAPACITY" {
			t.Errorf("beyond the limit: %s", got)
		}
	}
	var got string
	if err := db.QueryRow(t.Context(), `SELECT string_agg(device_id || ' ' || site_id || ' ' || subscription_id, ', ' ORDER BY device_id) || ', ' || min(active_device_count)
		FROM device_registry JOIN subscriptions USING (subscription_id)`).Scan(&got); err != nil || got != "new s1 sub, second s1 sub, 2" {
		t.Errorf("registered: %s, %v", got, err)
	}
}

// TestAppSettingsAreFollowed on every instance.
func TestAppSettingsAreFollowed(t *testing.T) {
	a, b, db := followers(t, nil)
	pad := `,"pad":"` + strings.Repeat("x", 300) + `"`
	for _, c := range []struct{ sql, want string }{
		{`SELECT`, "written"},
		{`INSERT INTO app_settings VALUES ('MAX_PAYLOAD_BYTES', '200')`, "PAYLOAD_TOO_LARGE"},
		{`UPDATE app_settings SET value = '2000'`, "written"},
		{`DELETE FROM app_settings`, "written"},
		{`INSERT INTO app_settings VALUES ('RATE_LIMIT_RPS', '0.001'), ('RATE_LIMIT_BURST', '1')`, "RATE_LIMITED"},
	} {
		execOn(t, db, c.sql)
		for _, f := range []*follower{a, b} {
			f.await(c.want, func() string { return f.outcome("d1", pad) })
		}
	}
}

// TestAppSettingsAreReadOnABeat too: where nothing is announced.
func TestAppSettingsAreReadOnABeat(t *testing.T) {
	_, _, db := followers(t, nil)
	execOn(t, db, `DROP TRIGGER crossfade_changes ON app_settings`)
	s, err := store.Open(t.Context(), store.DefaultConfig(db.Config().ConnString()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	applied := make(chan check.Settings)
	ctx, cancel := context.WithCancel(t.Context())
	began := make(chan struct{}, 1)
	read := func(ctx context.Context, keys []string) (map[string]string, error) {
		values, err := s.AppSettings(ctx, keys)
		signal(began)
		return values, err
	}
	a := newAppSettings(check.DefaultSettings(), read, func(s check.Settings) error { applied <- s; return nil }, slog.New(slog.DiscardHandler))
	if a.beat > 10*time.Second {
		t.Errorf("the beat is %v: what is not announced is to take effect within seconds", a.beat)
	}
	a.beat = time.Millisecond
	var following sync.WaitGroup
	following.Go(func() { a.follow(ctx) })
	<-began // or the first reading might find it
	execOn(t, db, `INSERT INTO app_settings VALUES ('RATE_LIMIT_BURST', '3')`)
	select {
	case s := <-applied:
		if s.RateBurst != 3 {
			t.Errorf("got %+v", s)
		}
	case <-time.After(30 * time.Second):
		t.Error("it is not read again")
	}
	cancel()
	following.Wait()
}

// TestAppSettingsOverrideWhatIsConfigured, row by row, and what cannot be used
// changes nothing and is told once.
func TestAppSettingsOverrideWhatIsConfigured(t *testing.T) {
	configured := check.DefaultSettings()
	var rows map[string]string
	var broken error
	applied := configured
	var log bytes.Buffer
	a := newAppSettings(configured, func(context.Context, []string) (map[string]string, error) { return rows, broken },
		func(s check.Settings) error { applied = s; return nil }, slog.New(slog.NewTextHandler(&log, nil)))
	with := func(rps float64, burst, bytes int) check.Settings {
		s := configured
		s.RateLimit, s.RateBurst, s.MaxPayloadBytes = rps, burst, bytes
		return s
	}
	warnings := 0
	for _, c := range []struct {
		rows map[string]string
		want check.Settings
		told string // of the row that is warned of
	}{
		{nil, configured, ""},
		{map[string]string{"RATE_LIMIT_RPS": "7"}, with(7, 20, 8192), ""},
		{map[string]string{"RATE_LIMIT_RPS": "0.5", "RATE_LIMIT_BURST": " 3 ", "MAX_PAYLOAD_BYTES": `"100"`}, with(0.5, 3, 100), ""},
		{map[string]string{"RATE_LIMIT_RPS": "many", "RATE_LIMIT_BURST": "4"}, with(0.5, 4, 8192), "RATE_LIMIT_RPS"},
		{map[string]string{"RATE_LIMIT_RPS": "many", "RATE_LIMIT_BURST": "4"}, with(0.5, 4, 8192), ""},
		{map[string]string{"RATE_LIMIT_RPS": "-1", "RATE_LIMIT_BURST": "4"}, with(0.5, 4, 8192), "RATE_LIMIT_RPS"},
		{map[string]string{"RATE_LIMIT_RPS": "NaN"}, with(0.5, 20, 8192), "RATE_LIMIT_RPS"},
		{map[string]string{"RATE_LIMIT_RPS": "Inf"}, with(0.5, 20, 8192), "RATE_LIMIT_RPS"},
		{map[string]string{"RATE_LIMIT_RPS": "8"}, with(8, 20, 8192), ""},
		{map[string]string{"MAX_PAYLOAD_BYTES": "10"}, configured, "MAX_PAYLOAD_BYTES"},
		{map[string]string{"RATE_LIMIT_RPS": "0", "MAX_PAYLOAD_BYTES": "64"}, with(0, 20, 64), ""},
		{map[string]string{"RATE_LIMIT_BURST": "0"}, configured, "RATE_LIMIT_BURST"},
		{map[string]string{"RATE_LIMIT_BURST": "1.5"}, configured, "RATE_LIMIT_BURST"},
		{map[string]string{"MAX_PAYLOAD_BYTES": ""}, configured, "MAX_PAYLOAD_BYTES"},
		{nil, configured, ""},
	} {
		rows = c.rows
		log.Reset()
		if err := a.load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if applied != c.want {
			t.Errorf("%v: %+v, want %+v", c.rows, applied, c.want)
		}
		if told := strings.Contains(log.String(), "level=WARN"); told != (c.told != "") || told && (!strings.Contains(log.String(), "key="+c.told) || !strings.Contains(log.String(), "remedy=")) {
			t.Errorf("%v: the log says\n%s", c.rows, &log)
		}
		warnings += strings.Count(log.String(), "level=WARN")
	}
	if warnings != 8 {
		t.Errorf("%d warnings", warnings)
	}
	rows, broken = map[string]string{"RATE_LIMIT_RPS": "9"}, errors.New("away")
	if err := a.load(t.Context()); err == nil || applied != configured {
		t.Errorf("while the rows cannot be read: %v, %+v", err, applied)
	}
}
