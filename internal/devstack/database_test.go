package devstack_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestNewDatabaseBesideTheGivenOne(t *testing.T) {
	given := devstack.TestDatabase(t)
	t.Setenv("DATABASE_URL", given)
	d, err := devstack.NewDatabase(testContext(t), "crossfade_demo")
	must(t, err)
	conn := connectPG(t, d.URL())
	if name := conn.Config().Database; name != d.Name() || !strings.HasPrefix(name, "crossfade_demo_") || d.Private() || !strings.Contains(given, "@"+d.Address()+"/") {
		t.Errorf("database %s is %+v", name, d)
	}
	exec(t, conn, "CREATE TABLE t ()")
	must(t, d.Close()) // though somebody is connected
	_, err = pgx.Connect(testContext(t), d.URL())
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "3D000" {
		t.Errorf("want 3D000 (no such database) after Close, got %v", err)
	}
	exec(t, connectPG(t, given), "SELECT 1") // the given one is still there
}

func TestNewDatabaseOnAPrivateServer(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	d, err := devstack.NewDatabase(testContext(t), "crossfade_demo")
	must(t, err)
	if conn := connectPG(t, d.URL()); conn.Config().Database != "crossfade_demo" || d.Name() != "crossfade_demo" || !d.Private() {
		t.Errorf("database %s is %+v", conn.Config().Database, d)
	}
	must(t, d.Close())
	if _, err := pgx.Connect(testContext(t), d.URL()); err == nil || devstack.PortTaken(portOf(t, d.Address())) {
		t.Error("the server is still there after Close")
	}
}

func TestNewDatabaseSaysWhatIsWrong(t *testing.T) {
	for given, want := range map[string]string{
		"postgres://u:hunter2@%zz":                              "unset it to have a private PostgreSQL started",
		"host=127.0.0.1 port=1 user=u password=hunter2":         "unset it to have a private PostgreSQL started",
		"postgres://u:hunter2@127.0.0.1:1/x?sslmode=disable":    "connect to PostgreSQL",
		"postgres://u:hunter2@127.0.0.1:1/x?sslmode=hunter2bad": "DATABASE_URL",
	} {
		t.Setenv("DATABASE_URL", given)
		_, err := devstack.NewDatabase(testContext(t), "crossfade_demo")
		wantError(t, err, want)
		if strings.Contains(err.Error(), "u:hunter2") || strings.Contains(err.Error(), "=hunter2 ") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

// TestOwnerOfADatabaseHasNoRights beyond those that docs/database.md gives the owner, and is
// gone with the database.
func TestOwnerOfADatabaseHasNoRights(t *testing.T) {
	admin := connectPG(t, devstack.TestDatabase(t))
	owner := ""
	t.Run("while the test runs", func(t *testing.T) {
		conn := connectPG(t, devstack.TestOwnedDatabase(t))
		must(t, conn.QueryRow(testContext(t), "SELECT current_user").Scan(&owner))
		exec(t, conn, "CREATE TABLE t ()")
		if n := count(t, conn, `SELECT count(*) FROM pg_roles WHERE rolname = current_user
			AND NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)`); n != 1 {
			t.Errorf("%s has attributes", owner)
		}
		if n := count(t, conn, "SELECT count(*) FROM pg_roles WHERE rolname <> current_user AND pg_has_role(oid, 'MEMBER')"); n != 0 {
			t.Errorf("%s is a member of %d roles", owner, n)
		}
		for _, sql := range []string{"CREATE SCHEMA s", "CREATE ROLE r", "SELECT FROM pg_authid", "ALTER SYSTEM SET work_mem = '1MB'"} {
			var pgErr *pgconn.PgError
			if _, err := conn.Exec(testContext(t), sql); !errors.As(err, &pgErr) || pgErr.Code != "42501" {
				t.Errorf("%s: %v, want it refused", sql, err)
			}
		}
	})
	if n := count(t, admin, "SELECT count(*) FROM pg_roles WHERE rolname = '"+owner+"'"); n != 0 {
		t.Errorf("%s is left", owner)
	}
}
