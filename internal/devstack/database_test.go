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
