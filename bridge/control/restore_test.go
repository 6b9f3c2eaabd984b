package control

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/session"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline"
)

// backup is what pg_dump saves of each table.
type backup map[string][]byte

func dump(t testing.TB, url string) backup {
	t.Helper()
	pool := open(t, url)
	defer pool.Close()
	rows, err := pool.Query(t.Context(), `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relpersistence = 'p'`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	saved := backup{}
	for _, table := range tables {
		var out bytes.Buffer
		err := pool.AcquireFunc(t.Context(), func(conn *pgxpool.Conn) error {
			_, err := conn.Conn().PgConn().CopyTo(t.Context(), &out, "COPY "+table+" TO STDOUT")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		saved[table] = out.Bytes()
	}
	return saved
}

// restore puts rows back as pg_restore does with --disable-triggers. The verb empties
// the tables before.
func (b backup) restore(t testing.TB, url, verb string, tables ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close(conn)
	if len(tables) == 0 {
		tables = slices.Collect(maps.Keys(b))
	}
	statements := []string{verb + " " + strings.Join(tables, ", ")}
	if verb == "DELETE FROM" {
		statements = []string{`SET session_replication_role = replica`}
		for _, table := range tables {
			statements = append(statements, verb+" "+table)
		}
	}
	for _, statement := range append(statements, `SET session_replication_role = replica`) {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	for _, table := range tables {
		if _, err := conn.PgConn().CopyFrom(t.Context(), bytes.NewReader(b[table]), "COPY "+table+" FROM STDIN"); err != nil {
			t.Fatalf("%s: %v", table, err)
		}
	}
}

// TestBackupIntoTheSameServer: a tenant was moved from mqtt to jetstream, everybody
// stopped, and a backup from before is brought back: PostgreSQL's timeline is the same,
// and nobody is left who knows more. Nobody drops by what came back.
func TestBackupIntoTheSameServer(t *testing.T) {
	for name, restore := range map[string]func(t *testing.T, url string, saved backup){
		"tables made anew": func(t *testing.T, url string, saved backup) {
			pool := open(t, url)
			execute(t, pool, `DROP SCHEMA public CASCADE`)
			execute(t, pool, `CREATE SCHEMA public`)
			pool.Close()
			if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
				t.Fatal(err)
			}
			saved.restore(t, url, "DELETE FROM")
		},
		"rows only":                 func(t *testing.T, url string, saved backup) { saved.restore(t, url, "TRUNCATE") },
		"rows only, deleted before": func(t *testing.T, url string, saved backup) { saved.restore(t, url, "DELETE FROM") },
		"stages only": func(t *testing.T, url string, saved backup) {
			saved.restore(t, url, "TRUNCATE", "crossfade_stages", "crossfade_sentinels", "crossfade_sightings")
		},
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); bringBack(t, restore) })
	}
}

func bringBack(t *testing.T, restore func(t *testing.T, url string, saved backup)) {
	url := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), url, nil); err != nil {
		t.Fatal(err)
	}
	pool := open(t, url)
	register(t, pool, "t")
	o := newOracle(stage.MQTT)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is in mqtt", func() bool { s, drop := n.Look("t"); return s == stage.MQTT && drop })
	saved := dump(t, url)
	o.wish(stage.JetStream)
	devstack.Await(t, "it is in jetstream", func() bool { s, drop := n.Look("t"); return s == stage.JetStream && drop })
	n.halt()
	if err := n.SignOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool.Close()
	restore(t, url, saved)
	pool = open(t, url)
	if s := fact(t, pool, "t").Stage; s != stage.MQTT {
		t.Fatalf("the backup is of %s", s)
	}
	execute(t, pool, `UPDATE crossfade_epoch SET epoch = epoch + 1`) // by hand: it was brought back all the same
	p := &courier{mute: map[pipeline.Path]bool{}}
	m := start(t, brisk(t, pool, "a", newOracle(stage.MQTT), p))
	p.set(func(p *courier) { p.carriers = []*Control{m.Control} })
	looks := watch(t, m, "t")
	devstack.Await(t, "it is in mqtt again", func() bool { s, drop := m.Look("t"); return s == stage.MQTT && drop })
	if n := proofsAnew(t, pool, "t"); n != 1 {
		t.Errorf("it was taken inside %d times", n)
	}
	for i, l := range looks() {
		if l.drop && fact(t, pool, "t").Revision < 3 {
			t.Errorf("look %d: it would drop in %s before it was proved anew", i, l.stage)
		}
	}
	within(t, pool)
}

// within: the last step was taken when leases from before were over.
func within(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	var settled bool
	if err := pool.QueryRow(t.Context(), `SELECT e.settles_at > '-infinity' AND max(h.at) >= e.settles_at FROM crossfade_epoch AS e, crossfade_stage_history AS h
		GROUP BY e.settles_at`).Scan(&settled); err != nil || !settled {
		t.Errorf("a step was taken before leases of the other history were over: %v, %v", settled, err)
	}
}

// TestRestartCostsNothing: nothing is proved anew when all instances stop and start, nor
// after what PostgreSQL's own maintenance does to the table.
func TestRestartCostsNothing(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	o := newOracle(stage.MQTT)
	n, _ := alone(t, pool, o)
	devstack.Await(t, "it is in mqtt", func() bool { s, drop := n.Look("t"); return s == stage.MQTT && drop })
	n.halt()
	if err := n.SignOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{`VACUUM FULL`, `VACUUM (FREEZE)`, `REINDEX TABLE crossfade_epoch`, `ANALYZE`, `SELECT FROM crossfade_epoch FOR UPDATE`} {
		execute(t, pool, statement)
	}
	m, _ := alone(t, pool, o)
	devstack.Await(t, "it is in mqtt again", func() bool { s, drop := m.Look("t"); return s == stage.MQTT && drop })
	if n := proofsAnew(t, pool, "t"); n != 0 {
		t.Errorf("it was taken inside %d times", n)
	}
}

// TestDistrust: an operator says what PostgreSQL cannot tell.
func TestDistrust(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	n, _ := alone(t, pool, newOracle(stage.MQTT))
	devstack.Await(t, "it is in mqtt", func() bool { s, drop := n.Look("t"); return s == stage.MQTT && drop })
	if err := Distrust(t.Context(), pool, "ops", "a snapshot of the disk"); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "it is taken inside", func() bool { return proofsAnew(t, pool, "t") == 1 })
	devstack.Await(t, "it is in mqtt again", func() bool { s, drop := n.Look("t"); return s == stage.MQTT && drop })
	within(t, pool)
	execute(t, pool, `DELETE FROM crossfade_epoch`)
	if err := Distrust(t.Context(), pool, "ops", ""); err == nil || !strings.Contains(err.Error(), "no row") {
		t.Errorf("there is nothing to doubt: %v", err)
	}
}

// TestLongestLeaseIsWaitedFor, not that of who happens to lead.
func TestLongestLeaseIsWaitedFor(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	options := brisk(t, pool, "a", newOracle(stage.MQTT), nil)
	options.LeaseMost = time.Hour
	n := start(t, options)
	devstack.Await(t, "it leads", n.Leading)
	if err := Distrust(t.Context(), pool, "ops", "test"); err != nil {
		t.Fatal(err)
	}
	var waits float64
	devstack.Await(t, "everything begins anew", func() bool {
		err := pool.QueryRow(t.Context(), `SELECT coalesce(extract(epoch FROM nullif(settles_at, '-infinity') - now())::float8, 0) FROM crossfade_epoch`).Scan(&waits)
		return err == nil && waits > 0
	})
	if waits < 3000 {
		t.Errorf("leases from before are waited for %.0f s", waits)
	}
	options.LeaseTTL = 2 * time.Hour
	if err := options.Validate(); err == nil || !strings.Contains(err.Error(), "LeaseMost") {
		t.Errorf("a lease that is too long: %v", err)
	}
}
