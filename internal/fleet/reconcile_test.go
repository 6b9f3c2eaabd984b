package fleet_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

// The columns of CONTRACT.md that the fleet uses, and no more.
const tables = `
CREATE TABLE telemetry (time timestamptz NOT NULL, tenant_id text NOT NULL, device_id text NOT NULL,
  site_id text, msg_type text NOT NULL, seq bigint, metrics jsonb NOT NULL DEFAULT '{}');
CREATE TABLE quarantine_events (tenant_id text, reason text NOT NULL);
CREATE TABLE device_state (tenant_id text, device_id text, reported_version bigint, PRIMARY KEY (tenant_id, device_id));
CREATE TABLE subscriptions (subscription_id text PRIMARY KEY, tenant_id text NOT NULL, subscription_type text,
  status text, device_limit int, active_device_count int, created_at timestamptz);
CREATE TABLE device_registry (tenant_id text, device_id text, site_id text, status text,
  provision_token_hash text, subscription_id text REFERENCES subscriptions, PRIMARY KEY (tenant_id, device_id));`

func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), devstack.TestDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	exec(t, pool, tables)
	return pool
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

const perDevice = 1000

// settled is a record of 6 devices that had all of their messages acknowledged,
// with a pipeline that did everything right.
func settled(t *testing.T, pool *pgxpool.Pool) (*fleet.Record, []fleet.Device) {
	t.Helper()
	cfg := fleet.DefaultConfig()
	cfg.Devices = 6
	devices := fleet.Devices(cfg)
	rec := fleet.NewRecord(devices)
	shares := fleet.Shares{Heartbeat: 0.1, Bad: 0.02}
	var rows [][]any
	for _, d := range devices {
		for seq := int64(1); seq <= perDevice; seq++ {
			kind := shares.KindOf(d, seq)
			rec.Attempted(d, seq, kind)
			rec.Acked(d, seq, kind, true)
			if kind == fleet.KindBad {
				exec(t, pool, `INSERT INTO quarantine_events VALUES ($1, $2)`, d.Tenant, fleet.ExpectedReason(d, seq))
				continue
			}
			rows = append(rows, []any{time.Now(), d.Tenant, d.ID, d.Site, kind.MsgType(), seq})
		}
		rec.Attempted(d, 900, fleet.KindShadow)
		rec.Acked(d, 900, fleet.KindShadow, true)
		rec.Attempted(d, 950, fleet.KindShadow) // on its way
		exec(t, pool, `INSERT INTO device_state VALUES ($1, $2, 900)`, d.Tenant, d.ID)
	}
	columns := []string{"time", "tenant_id", "device_id", "site_id", "msg_type", "seq"}
	if _, err := pool.CopyFrom(t.Context(), pgx.Identifier{"telemetry"}, columns, pgx.CopyFromRows(rows)); err != nil {
		t.Fatal(err)
	}
	return rec, devices
}

func goodSeqs(d fleet.Device, n int) (seqs []int64) {
	shares := fleet.Shares{Heartbeat: 0.1, Bad: 0.02}
	for seq := int64(1); len(seqs) < n; seq++ {
		if shares.KindOf(d, seq) != fleet.KindBad {
			seqs = append(seqs, seq)
		}
	}
	return seqs
}

func badSeq(d fleet.Device) int64 {
	seq := int64(1)
	for (fleet.Shares{Heartbeat: 0.1, Bad: 0.02}).KindOf(d, seq) != fleet.KindBad {
		seq++
	}
	return seq
}

func TestReconcile(t *testing.T) {
	pool := database(t)
	const remove = `DELETE FROM telemetry WHERE tenant_id = $1 AND device_id = $2 AND seq = ANY($3)`
	const add = `INSERT INTO telemetry (time, tenant_id, device_id, msg_type, seq) SELECT now(), $1, $2, 'telemetry', s FROM unnest($3::bigint[]) AS s`
	for _, c := range []struct {
		name    string
		plant   func(t *testing.T, rec *fleet.Record, d fleet.Device)
		want    func(r *fleet.Tally) // from the clean outcome
		ok      bool
		example string
	}{
		{name: "clean", ok: true, plant: func(*testing.T, *fleet.Record, fleet.Device) {}, want: func(*fleet.Tally) {}},
		{
			name: "lost",
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				exec(t, pool, remove, d.Tenant, d.ID, goodSeqs(d, 3))
			},
			want:    func(r *fleet.Tally) { r.Lost, r.Stored, r.Rows = 3, r.Stored-3, r.Rows-3 },
			example: "lost acme/dev-0001 seq ",
		},
		{
			name: "lost for want of a subscriber",
			plant: func(t *testing.T, rec *fleet.Record, d fleet.Device) {
				rec.Attempted(d, perDevice+1, fleet.KindTelemetry)
				rec.Acked(d, perDevice+1, fleet.KindTelemetry, false)
			},
			want: func(r *fleet.Tally) {
				r.Attempted, r.Sent, r.Unrouted, r.Lost, r.LostUnrouted = r.Attempted+1, r.Sent+1, 1, 1, 1
			},
		},
		{
			name: "duplicated",
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				s := goodSeqs(d, 2)
				exec(t, pool, add, d.Tenant, d.ID, []int64{s[0], s[0], s[1]})
			},
			want:    func(r *fleet.Tally) { r.Duplicated, r.Rows = 3, r.Rows+3 },
			example: "duplicated acme/dev-0001 seq ",
		},
		{
			name: "stored under another device of the same name",
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				exec(t, pool, `UPDATE telemetry SET tenant_id = 'globex' WHERE tenant_id = $1 AND device_id = $2 AND seq = $3`, d.Tenant, d.ID, commonSeq)
			},
			want: func(r *fleet.Tally) { r.Lost, r.Duplicated, r.Stored = 1, 1, r.Stored-1 },
		},
		{
			name: "never attempted",
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				exec(t, pool, add, d.Tenant, d.ID, []int64{0, -5, perDevice + 1, 1 << 60})
				exec(t, pool, `INSERT INTO telemetry (time, tenant_id, device_id, msg_type) VALUES (now(), $1, $2, 'telemetry')`, d.Tenant, d.ID)
			},
			want:    func(r *fleet.Tally) { r.Unexpected, r.Rows = 5, r.Rows+5 },
			example: "unexpected acme/dev-0001 seq 1001",
		},
		{
			name: "bad message stored",
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				exec(t, pool, add, d.Tenant, d.ID, []int64{badSeq(d)})
			},
			want: func(r *fleet.Tally) { r.Unexpected, r.Rows = 1, r.Rows+1 },
		},
		{
			name: "uncertain may be stored or not", ok: true,
			plant: func(t *testing.T, rec *fleet.Record, d fleet.Device) {
				for seq := range int64(4) {
					rec.Attempted(d, perDevice+1+seq, fleet.KindTelemetry)
				}
				exec(t, pool, add, d.Tenant, d.ID, []int64{perDevice + 2, perDevice + 3})
			},
			want: func(r *fleet.Tally) {
				r.Attempted, r.Uncertain, r.UncertainStored = r.Attempted+4, 4, 2
				r.Stored, r.Rows = r.Stored+2, r.Rows+2
			},
		},
		{
			name: "uncertain but stored twice",
			plant: func(t *testing.T, rec *fleet.Record, d fleet.Device) {
				rec.Attempted(d, perDevice+1, fleet.KindTelemetry)
				exec(t, pool, add, d.Tenant, d.ID, []int64{perDevice + 1, perDevice + 1})
			},
			want: func(r *fleet.Tally) {
				r.Attempted, r.Uncertain, r.UncertainStored, r.Duplicated = r.Attempted+1, 1, 1, 1
				r.Stored, r.Rows = r.Stored+1, r.Rows+2
			},
		},
		{
			name: "strangers are no concern", ok: true,
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				exec(t, pool, add, d.Tenant, "stranger", []int64{1, 1})
				exec(t, pool, add, "elsewhere", d.ID, []int64{1, 1})
			},
			want: func(*fleet.Tally) {},
		},
		{
			name: "shadow behind",
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				exec(t, pool, `UPDATE device_state SET reported_version = 899 WHERE tenant_id = $1 AND device_id = $2`, d.Tenant, d.ID)
			},
			want:    func(r *fleet.Tally) { r.ShadowBehind = 1 },
			example: "shadow acme/dev-0001 version 899, want 900",
		},
		{
			name: "shadow on its way has arrived", ok: true,
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				exec(t, pool, `UPDATE device_state SET reported_version = 950 WHERE tenant_id = $1 AND device_id = $2`, d.Tenant, d.ID)
			},
			want: func(*fleet.Tally) {},
		},
		{
			name: "shadow from the future",
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				exec(t, pool, `UPDATE device_state SET reported_version = 951 WHERE tenant_id = $1 AND device_id = $2`, d.Tenant, d.ID)
			},
			want: func(r *fleet.Tally) { r.ShadowBehind = 1 },
		},
		{
			name: "shadow never stored",
			plant: func(t *testing.T, _ *fleet.Record, d fleet.Device) {
				exec(t, pool, `DELETE FROM device_state WHERE tenant_id = $1 AND device_id = $2`, d.Tenant, d.ID)
			},
			want: func(r *fleet.Tally) { r.ShadowBehind = 1 },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			exec(t, pool, `TRUNCATE telemetry, quarantine_events, device_state`)
			rec, devices := settled(t, pool)
			bad := rec.Counts().Bad
			good := perDevice*int64(len(devices)) - bad
			want := fleet.Tally{Attempted: good, Sent: good, Stored: good, Rows: good, BadSent: bad, ShadowDevices: 6}
			c.plant(t, rec, devices[0])
			c.want(&want)
			got, err := fleet.Reconcile(t.Context(), pool, rec)
			if err != nil {
				t.Fatal(err)
			}
			if got.Tally != want {
				t.Errorf("got\n%+v\nwant\n%+v", got.Tally, want)
			}
			if got.OK() != c.ok {
				t.Errorf("OK is %v: %s", got.OK(), got)
			}
			if !strings.Contains(strings.Join(got.Examples, "\n"), c.example) || c.ok && len(got.Examples) > 0 {
				t.Errorf("examples %q, want %q", got.Examples, c.example)
			}
			if got.Quarantine() != bad {
				t.Errorf("quarantined %v, want %d", got.Quarantined, bad)
			}
			if names := slices.Sorted(maps.Keys(got.Tenants)); !slices.Equal(names, []string{"acme", "globex", "initech"}) {
				t.Errorf("tenants %v", names)
			}
			var lost int64
			for _, tally := range got.Tenants {
				lost += tally.Lost
			}
			if lost != got.Lost {
				t.Errorf("tenants' losses sum to %d, want %d", lost, got.Lost)
			}
		})
	}
}

// commonSeq is good in both acme's and globex's first device.
var commonSeq = func() int64 {
	d := fleet.Devices(fleet.DefaultConfig())
	a, b := goodSeqs(d[0], 100), goodSeqs(d[1], 100)
	for _, seq := range a {
		if slices.Contains(b, seq) {
			return seq
		}
	}
	panic("no seq is good in both")
}()

func TestAwaitReconciledWaitsForThePipeline(t *testing.T) {
	pool := database(t)
	rec, devices := settled(t, pool)
	d := devices[0]
	late := goodSeqs(d, 2)
	exec(t, pool, `DELETE FROM telemetry WHERE tenant_id = $1 AND device_id = $2 AND seq = ANY($3)`, d.Tenant, d.ID, late)

	// Without patience: one look.
	r, err := fleet.AwaitReconciled(t.Context(), pool, rec, 0)
	if err != nil || r.Lost != 2 {
		t.Fatalf("%s, %v: want 2 lost", r, err)
	}
	type outcome struct {
		r   fleet.Report
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := fleet.AwaitReconciled(t.Context(), pool, rec, deadline)
		done <- outcome{r, err}
	}()
	for _, seq := range late {
		exec(t, pool, `INSERT INTO telemetry (time, tenant_id, device_id, msg_type, seq) VALUES (now(), $1, $2, 'telemetry', $3)`, d.Tenant, d.ID, seq)
	}
	if o := <-done; o.err != nil || !o.r.OK() {
		t.Errorf("%s, %v: want it to wait until all is stored", o.r, o.err)
	}
	// Waiting does not mend a duplicate: it comes back at once, however patient.
	exec(t, pool, `INSERT INTO telemetry (time, tenant_id, device_id, msg_type, seq) VALUES (now(), $1, $2, 'telemetry', $3)`, d.Tenant, d.ID, late[0])
	if r, err := fleet.AwaitReconciled(t.Context(), pool, rec, 1000*time.Hour); err != nil || r.Duplicated != 1 {
		t.Errorf("%s, %v: want 1 duplicated", r, err)
	}
}

// A user who is shown only some rows must not be told that the others are lost.
func TestReconcileRefusesToJudgeThroughRowSecurity(t *testing.T) {
	pool := database(t)
	rec, _ := settled(t, pool)
	role := fmt.Sprintf("fleet_reader_%d", time.Now().UnixNano())
	exec(t, pool, "CREATE ROLE "+role)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	exec(t, pool, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO "+role)
	exec(t, pool, "ALTER TABLE telemetry ENABLE ROW LEVEL SECURITY")
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), "SET ROLE "+role); err != nil {
		t.Fatal(err)
	}
	r, err := fleet.Reconcile(t.Context(), conn.Conn(), rec)
	if _, reset := conn.Exec(t.Context(), "RESET ROLE"); reset != nil {
		t.Fatal(reset)
	}
	if err == nil {
		t.Errorf("a verdict without seeing the rows: %s", r)
	}
}

func TestRegister(t *testing.T) {
	pool := database(t)
	cfg := fleet.DefaultConfig()
	devices := fleet.Devices(cfg)
	exec(t, pool, `INSERT INTO subscriptions VALUES ('own', 'globex', 'MAIN', 'ACTIVE', 5, 0, now())`)
	for range 2 { // a second time changes nothing
		if err := fleet.Register(t.Context(), pool, devices); err != nil {
			t.Fatal(err)
		}
		var registered, right, subscriptions, globex int
		if err := pool.QueryRow(t.Context(), `SELECT
			(SELECT count(*) FROM device_registry),
			(SELECT count(*) FROM device_registry JOIN subscriptions s USING (tenant_id, subscription_id)
				WHERE device_registry.status = 'ACTIVE' AND s.status = 'ACTIVE' AND s.subscription_type = 'MAIN'),
			(SELECT count(*) FROM subscriptions),
			(SELECT count(*) FROM device_registry WHERE subscription_id = 'own')`).Scan(&registered, &right, &subscriptions, &globex); err != nil {
			t.Fatal(err)
		}
		if registered != 60 || right != 60 || subscriptions != 3 || globex != 20 {
			t.Errorf("%d devices, %d of them under an active subscription, %d subscriptions, %d under the one that was there", registered, right, subscriptions, globex)
		}
	}
	var site, hash string
	if err := pool.QueryRow(t.Context(), `SELECT site_id, provision_token_hash FROM device_registry WHERE tenant_id = $1 AND device_id = $2`,
		devices[7].Tenant, devices[7].ID).Scan(&site, &hash); err != nil {
		t.Fatal(err)
	}
	if site != devices[7].Site || hash != devices[7].TokenHash() {
		t.Errorf("%s is registered with site %s and hash %s", devices[7], site, hash)
	}
	cfg.Seed++
	if err := fleet.Register(t.Context(), pool, fleet.Devices(cfg)); err == nil || !strings.Contains(err.Error(), "60 devices (acme/dev-0001 for one)") {
		t.Errorf("devices with other tokens: %v", err)
	}
	exec(t, pool, `UPDATE device_registry SET status = 'REVOKED' WHERE tenant_id = 'acme' AND device_id = 'dev-0003'`)
	if err := fleet.Register(t.Context(), pool, devices); err == nil || !strings.Contains(err.Error(), "acme/dev-0003") {
		t.Errorf("a revoked device: %v", err)
	}
}
