package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/session"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestEraBeginsBesideLocks: everything begins anew though somebody keeps rows locked.
// Their tenants count as inside at once, all others go on and are rolled back.
func TestEraBeginsBesideLocks(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "mqtt", "jetstream", "live", "free")
	o := newOracle(stage.MQTT)
	o.wish(stage.JetStream, "jetstream", "free")
	o.wish(stage.Live, "live")
	n, _ := alone(t, pool, o)
	for tenant, want := range map[string]stage.Stage{"mqtt": stage.MQTT, "jetstream": stage.JetStream, "live": stage.Live, "free": stage.JetStream} {
		devstack.Await(t, tenant+" is there", n.in(want, tenant))
	}
	devstack.Await(t, "live is confirmed", func() bool { return fact(t, pool, "live").ConfirmedAt != nil })
	others, err := pgxpool.New(t.Context(), pool.Config().ConnString()) // the instance's own has no connection to spare
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(others.Close)
	end := keepLocked(t, others, `SELECT FROM crossfade_stages WHERE tenant_id <> 'free' FOR UPDATE`)
	execute(t, pool, `INSERT INTO crossfade_sentinels (nonce, tenant_id, revision, purpose) VALUES ('n', 'live', 1, 'proof')`)
	keepLocked(t, others, `SELECT FROM crossfade_sentinels FOR UPDATE`)
	if err := Distrust(t.Context(), pool, "ops", "test"); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "an era has begun anew", func() bool { return proofsAnew(t, pool, "free") == 1 })
	inside := map[string]stage.Stage{"mqtt": stage.Shadow, "jetstream": stage.Live, "live": stage.Live}
	devstack.Await(t, "they count as inside", func() bool { return n.StageOf("mqtt") == stage.Shadow })
	devstack.Await(t, "leases from before are over", func() bool { return n.MayDrop() })
	o.override(stage.MQTT, "free", "jetstream")
	devstack.Await(t, "who is not locked goes back, and as far as mqtt", n.in(stage.MQTT, "free"))
	for tenant, want := range inside {
		f := fact(t, pool, tenant)
		if s, drop := n.Look(tenant); s != want || drop || f.Stage != want || !f.Undecided || f.ConfirmedAt != nil {
			t.Errorf("%s: %s, drop %v, %+v; want %s", tenant, s, drop, f, want)
		}
	}
	devstack.Await(t, "it is said why they wait", func() bool {
		err := n.Health()
		return err != nil && strings.Contains(err.Error(), "locked (jetstream, live, mqtt)")
	})
	end()
	devstack.Await(t, "they are taken inside and go on", n.in(stage.MQTT, "mqtt", "jetstream"))
	devstack.Await(t, "live is confirmed anew", func() bool { f := fact(t, pool, "live"); return !f.Undecided && f.ConfirmedAt != nil })
	for tenant, want := range map[string]int{"mqtt": 1, "jetstream": 1, "live": 0} {
		if got := proofsAnew(t, pool, tenant); got != want {
			t.Errorf("%s was taken inside %d times", tenant, got)
		}
	}
	devstack.Await(t, "nothing is said any more", func() bool { return n.Health() == nil })
}

// TestEvidenceOfAnotherHistory counts for nothing, though its row could not be removed.
func TestEvidenceOfAnotherHistory(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.JetStream)
	n, p := alone(t, pool, o)
	p.set(func(p *courier) { p.mute[pipeline.PathJetStream] = true })
	devstack.Await(t, "sentinels are out", func() bool { return p.count() > 0 })
	var old []Sentinel
	p.set(func(p *courier) { old = slices.Clone(p.sent) })
	end := keepLocked(t, pool, `SELECT FROM crossfade_sentinels FOR UPDATE`)
	if err := Distrust(t.Context(), pool, "ops", "test"); err != nil {
		t.Fatal(err)
	}
	var anew bool
	devstack.Await(t, "an era has begun anew", func() bool {
		return pool.QueryRow(t.Context(), `SELECT anew <> '' FROM crossfade_epoch`).Scan(&anew) == nil && anew
	})
	end()
	sent := p.count()
	if err := n.Saw(t.Context(), sightings(old, true, true)); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "others were sent, and looked at", func() bool { return p.count() > sent+1 })
	if s := n.StageOf("t"); s != stage.Live {
		t.Errorf("it is in %s by what was sent in another history", s)
	}
	p.set(func(p *courier) { p.mute = map[pipeline.Path]bool{} })
	devstack.Await(t, "it is in jetstream", n.in(stage.JetStream, "t"))
}

// idleTerm is a term that does nothing by itself, and waits for no lock for long.
func idleTerm(t *testing.T, pool *pgxpool.Pool, change func(*Options)) *term {
	t.Helper()
	options := brisk(t, pool, "idle", newOracle(stage.Live), nil)
	change(&options)
	c, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close(conn) })
	if _, err := conn.Exec(t.Context(), `SET lock_timeout = '500ms'`); err != nil {
		t.Fatal(err)
	}
	return newTerm(c, conn)
}

func rowCount(t testing.TB, pool *pgxpool.Pool, sql string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestLockedSentinels hold nobody up: neither the leader's notes nor its cleaning.
func TestLockedSentinels(t *testing.T) {
	ctx, pool := t.Context(), migrated(t)
	term := idleTerm(t, pool, func(o *Options) { o.BeatEvery = time.Hour })
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	execute(t, pool, `INSERT INTO crossfade_sentinels (nonce, tenant_id, revision, purpose) SELECT n, n, 1, 'beat' FROM unnest('{a,b,c,d}'::text[]) AS n`)
	end := keepLocked(t, pool, `SELECT FROM crossfade_sentinels WHERE nonce IN ('a', 'c') FOR UPDATE`)
	term.mail.sent, term.mail.failed = []string{"a", "b", "gone"}, []string{"c", "d", "gone too"}
	must("note", term.markDelivered(ctx))
	if n := rowCount(t, pool, `SELECT count(*) FROM crossfade_sentinels WHERE nonce = 'b' AND published_at IS NOT NULL OR nonce IN ('a', 'c') AND published_at IS NULL`); n != 3 {
		t.Errorf("%d sentinels are as they should be", n)
	}
	if !slices.Equal(term.mail.sent, []string{"a"}) || !slices.Equal(term.mail.failed, []string{"c"}) {
		t.Errorf("left for later: %v and %v", term.mail.sent, term.mail.failed)
	}
	end()
	must("note", term.markDelivered(ctx))
	if n := rowCount(t, pool, `SELECT count(*) FROM crossfade_sentinels WHERE published_at IS NOT NULL`); n != 2 || len(term.mail.sent)+len(term.mail.failed) > 0 {
		t.Errorf("%d are noted, left are %v and %v", n, term.mail.sent, term.mail.failed)
	}

	execute(t, pool, `INSERT INTO crossfade_path_latency (tenant_id, path, missing_since) VALUES ('a', 1, now()), ('b', 1, now()), ('a', 2, NULL), ('b', 2, NULL)`)
	execute(t, pool, `INSERT INTO crossfade_sightings (nonce, path, instance_id, kind, seen_at) SELECT n, 1, 'i', 'telemetry', now() FROM unnest('{a,b}'::text[]) AS n`)
	execute(t, pool, `UPDATE crossfade_sentinels SET published_at = now() - interval '1 h'`)
	end = keepLocked(t, pool, `SELECT FROM crossfade_path_latency WHERE tenant_id = 'a' FOR UPDATE`)
	must("measure", term.measure(ctx))
	measured := `SELECT count(*) FROM crossfade_path_latency WHERE path = 1 AND seen_at IS NOT NULL AND missing_since IS NULL OR path = 2 AND missing_since IS NOT NULL`
	if n := rowCount(t, pool, measured); n != 2 {
		t.Errorf("%d rows are measured beside the locked ones", n)
	}
	end()
	must("measure", term.measure(ctx))
	if n := rowCount(t, pool, measured); n != 4 {
		t.Errorf("%d rows are measured", n)
	}

	for _, statement := range []string{
		`UPDATE crossfade_sentinels SET created_at = now() - interval '2 h'`,
		`UPDATE crossfade_sightings SET seen_at = now() - interval '2 h', nonce = nonce || '?'`,
		`INSERT INTO crossfade_instances (instance_id, run, seen_at) SELECT n, 'r', now() - interval '1 day' FROM unnest('{a,b}'::text[]) AS n`,
	} {
		execute(t, pool, statement)
	}
	left := `SELECT (SELECT count(*) FROM crossfade_sentinels) + (SELECT count(*) FROM crossfade_sightings) + (SELECT count(*) FROM crossfade_instances) + (SELECT count(*) FROM crossfade_path_latency)`
	end = keepLocked(t, pool, `SELECT FROM crossfade_sentinels WHERE nonce = 'a' FOR UPDATE;
		SELECT FROM crossfade_sightings WHERE nonce = 'a?' FOR UPDATE;
		SELECT FROM crossfade_instances WHERE instance_id = 'a' FOR UPDATE;
		SELECT FROM crossfade_path_latency WHERE tenant_id = 'a' AND path = 1 FOR UPDATE`)
	must("prune", term.prune(ctx))
	if n := rowCount(t, pool, left); n != 4 {
		t.Errorf("%d rows are left, of which 4 are locked", n)
	}
	end()
	must("prune", term.prune(ctx))
	if n := rowCount(t, pool, left); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// TestStuckWithoutBeats: what was missing when beats were switched off keeps nobody
// where he is for good, since nothing could say that it has come.
func TestStuckWithoutBeats(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.Shadow)
	p := &courier{mute: map[pipeline.Path]bool{}}
	options := brisk(t, pool, "a", o, p)
	options.Retention = time.Hour
	first := start(t, options)
	devstack.Await(t, "it is in shadow", func() bool { return fact(t, pool, "t").Stage == stage.Shadow })
	first.halt()
	execute(t, pool, `INSERT INTO crossfade_path_latency (tenant_id, path, missing_since) VALUES ('t', 2, now() - interval '2 h')`)
	o.wish(stage.Live)
	n := start(t, options)
	p.set(func(p *courier) { p.carriers = []*Control{n.Control} })
	if err := n.TellLag(t.Context(), Hand{MQTT: &Census{}, JetStream: &Census{}}, nil); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "it is in live", n.in(stage.Live, "t"))
}
