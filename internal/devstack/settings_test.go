package devstack_test

import (
	"os"
	osexec "os/exec"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// TestWithoutSettings: only what configures Crossfade goes, and only with libpq what
// configures PostgreSQL's clients; the given environment stays as it was.
func TestWithoutSettings(t *testing.T) {
	given := []string{"PATH=/bin", "CROSSFADE_NATS_URL=nats://192.0.2.1", "DATABASE_URL=postgres://192.0.2.1", "DATABASE_URLS=x", "PGHOST=192.0.2.1", "BE_CROSSFADE=1"}
	before := slices.Clone(given)
	if got, want := devstack.WithoutSettings(given, true), []string{"PATH=/bin", "DATABASE_URLS=x", "BE_CROSSFADE=1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := devstack.WithoutSettings(given, false), []string{"PATH=/bin", "DATABASE_URLS=x", "PGHOST=192.0.2.1", "BE_CROSSFADE=1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !slices.Equal(given, before) {
		t.Errorf("the given environment became %q", given)
	}
}

// TestTempDirClearsUpAfterTheKilled: what a process that is gone has left goes at the
// next making, what is in use stays.
func TestTempDirClearsUpAfterTheKilled(t *testing.T) {
	devstack.TestTempDir(t)
	dir, remove, err := devstack.TempDir("some")
	must(t, err)
	// A copy has the file, and nobody's lock on it: the maker has gone.
	abandoned := dir + "-abandoned"
	must(t, osexec.Command("cp", "-r", dir, abandoned).Run())
	_, removeSecond, err := devstack.TempDir("some")
	must(t, err)
	if _, err := os.Stat(abandoned); !os.IsNotExist(err) {
		t.Errorf("the abandoned directory is still there: %v", err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the directory in use is gone: %v", err)
	}
	must(t, remove())
	must(t, removeSecond())
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDropDatabase drops one that somebody uses, and one that is not there.
func TestDropDatabase(t *testing.T) {
	p := devstack.TestPostgres(t)
	url, err := p.CreateDatabase(t.Context(), "some")
	must(t, err)
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	defer conn.Close(t.Context())
	must(t, p.DropDatabase(t.Context(), "some"))
	must(t, p.DropDatabase(t.Context(), "some"))
	if again, err := pgx.Connect(t.Context(), url); err == nil {
		t.Errorf("the database is still there: %v", again.Close(t.Context()))
	}
}
