package devstack_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

func connectPG(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(testContext(t), url)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(testContextNoCancel()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.Exec(testContext(t), sql)
	must(t, err)
}

func count(t *testing.T, conn *pgx.Conn, sql string) (n int) {
	t.Helper()
	must(t, conn.QueryRow(testContext(t), sql).Scan(&n))
	return n
}

func TestPostgresKeepsCommitsOverKillAndStop(t *testing.T) {
	p := devstack.TestPostgres(t)
	url, err := p.CreateDatabase(testContext(t), "mine \"own\"")
	must(t, err)
	conn := connectPG(t, url)
	exec(t, conn, "CREATE TABLE t (i int)")
	exec(t, conn, "INSERT INTO t VALUES (1)")
	exec(t, conn, "BEGIN")
	exec(t, conn, "INSERT INTO t VALUES (2)")

	must(t, p.Kill())
	if _, err := conn.Exec(testContext(t), "COMMIT"); err == nil {
		t.Error("a session committed after Kill")
	}
	must(t, p.Start(testContext(t)))
	conn = connectPG(t, url)
	if n := count(t, conn, "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows after Kill, want the 1 that was committed", n)
	}

	must(t, p.Stop(testContext(t)))
	must(t, p.Stop(testContext(t)))
	must(t, p.Start(testContext(t)))
	must(t, p.Start(testContext(t)))
	conn = connectPG(t, url)
	if n := count(t, conn, "SELECT count(*) FROM t"); n != 1 {
		t.Errorf("%d rows after Stop, want 1", n)
	}
}

func TestPostgresKillEndsBusySessions(t *testing.T) {
	p := devstack.TestPostgres(t)
	conn := connectPG(t, p.URL("postgres"))
	backend := int(conn.PgConn().PID())
	// A loop that does not wait for anything does not notice that the
	// postmaster is gone. It ends after a while, lest a failure leaves it
	// running for ever.
	exec(t, conn, `CREATE FUNCTION spin() RETURNS void LANGUAGE plpgsql AS
		'BEGIN WHILE clock_timestamp() < now() + interval ''3 minutes'' LOOP END LOOP; END'`)
	finished := make(chan error, 1)
	ctx := testContext(t)
	go func() {
		_, err := conn.Exec(ctx, "SELECT spin()")
		finished <- err
	}()
	watcher := connectPG(t, p.URL("postgres"))
	devstack.Await(t, "the session is busy", func() bool {
		return count(t, watcher, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT spin()'") == 1
	})
	must(t, p.Kill())
	if err := <-finished; err == nil {
		t.Error("the statement has ended well")
	}
	devstack.Await(t, "the session's process is gone", func() bool { return !alive(backend) })
	must(t, p.Start(testContext(t)))
	must(t, p.Kill())
	dir := p.Dir()
	must(t, p.Close())
	mustBeGone(t, dir)
}

func TestPostgresSettings(t *testing.T) {
	p, err := devstack.StartPostgres(testContext(t), devstack.PostgresOptions{Fsync: true, MaxConnections: 17})
	must(t, err)
	conn := connectPG(t, p.URL("postgres"))
	for setting, want := range map[string]string{
		"fsync": "on", "max_connections": "17", "jit": "off", "server_encoding": "UTF8", "listen_addresses": "127.0.0.1",
	} {
		var got string
		must(t, conn.QueryRow(testContext(t), "SELECT current_setting($1)", setting).Scan(&got))
		if got != want {
			t.Errorf("%s is %s, want %s", setting, got, want)
		}
	}
	bad := strings.Replace(p.URL("postgres"), "@", "x@", 1)
	_, err = pgx.Connect(testContext(t), bad)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "28P01" {
		t.Errorf("with a wrong password: want 28P01, got %v", err)
	}
	dir := p.Dir()
	must(t, p.Close())
	must(t, p.Close())
	mustBeGone(t, dir)
}

func TestPostgresErrorsSayWhatToDo(t *testing.T) {
	_, err := devstack.StartPostgres(testContext(t), devstack.PostgresOptions{MaxConnections: 3})
	wantError(t, err, "MaxConnections is 3: use at least 10")

	t.Setenv("CROSSFADE_PG_BIN", t.TempDir())
	_, err = devstack.StartPostgres(testContext(t), devstack.PostgresOptions{})
	wantError(t, err, "unset it")

	if os.Geteuid() != 0 {
		return // the rest is about the change of user
	}
	t.Setenv("CROSSFADE_PG_BIN", "")
	private := filepath.Join(t.TempDir(), "private")
	must(t, os.Mkdir(private, 0o700))
	_, err = devstack.StartPostgres(testContext(t), devstack.PostgresOptions{Dir: filepath.Join(private, "pg")})
	wantError(t, err, "chmod o+x "+private)
}

func TestDatabaseIsFreshAndDropped(t *testing.T) {
	var first string
	t.Run("user", func(t *testing.T) {
		first = devstack.TestDatabase(t)
		second := devstack.TestDatabase(t)
		if first == second {
			t.Fatal("two databases have the same URL")
		}
		a, b := connectPG(t, first), connectPG(t, second)
		exec(t, a, "CREATE TABLE only_here ()")
		if n := count(t, b, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"); n != 0 {
			t.Errorf("a fresh database has %d tables", n)
		}
	})
	_, err := pgx.Connect(testContext(t), first)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "3D000" {
		t.Errorf("want 3D000 (no such database) after the test, got %v", err)
	}
}

func TestDatabaseHonoursDatabaseURL(t *testing.T) {
	p := devstack.TestPostgres(t)
	given := p.URL("postgres")
	parsed, err := pgx.ParseConfig(given)
	must(t, err)
	for name, databaseURL := range map[string]string{
		"URL": given,
		"key and value": "host=127.0.0.1 sslmode=disable dbname=postgres user=" + parsed.User +
			" password=" + parsed.Password + " port=" + strings.TrimPrefix(given[strings.LastIndex(given, ":"):strings.LastIndex(given, "/")], ":"),
	} {
		t.Run(name, func(t *testing.T) {
			devstack.ShutdownShared()
			t.Cleanup(devstack.ShutdownShared)
			t.Setenv("DATABASE_URL", databaseURL)
			conn := connectPG(t, devstack.TestDatabase(t))
			if conn.Config().Port != parsed.Port || !strings.HasPrefix(conn.Config().Database, "crossfade_test_") {
				t.Errorf("connected to %s on port %d", conn.Config().Database, conn.Config().Port)
			}
		})
	}
}
