package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// place prepares the environment: no settings of the caller's, a PostgreSQL that
// the tests share, and a directory of its own for what the demo leaves behind. It
// returns that directory and the shared PostgreSQL.
func place(t *testing.T) (dir, admin string) {
	t.Helper()
	admin = devstack.TestDatabase(t)
	dir = devstack.TestTempDir(t)
	t.Setenv("DATABASE_URL", admin)
	// Settings for another installation must not reach this one.
	t.Setenv("CROSSFADE_MQTT_URL", "mqtt://192.0.2.1:1883")
	t.Setenv("CROSSFADE_BRIDGE_DEFAULT_STAGE", "jetstream")
	return dir, admin
}

// nothingLeft fails the test if the demo left processes, files or a database.
func nothingLeft(t *testing.T, dir, admin string) {
	t.Helper()
	if left := processesBelow(t, dir); len(left) > 0 {
		t.Errorf("still running: %s", left)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Errorf("left behind: %s", f.Name())
	}
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var databases []string
	if err := conn.QueryRow(t.Context(), `SELECT array_agg(datname::text) FROM pg_database WHERE datname LIKE $1`,
		fmt.Sprintf("crossfade_demo_%d_%%", os.Getpid())).Scan(&databases); err != nil {
		t.Fatal(err)
	}
	if len(databases) > 0 {
		t.Errorf("databases left behind: %s", databases)
	}
}

// processesBelow lists the running processes that have TMPDIR=dir in their
// environment or dir on their command line, apart from this one.
func processesBelow(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Readlink("/proc/self")
	if err != nil {
		t.Skip("no /proc")
	}
	var found []string
	for _, p := range all {
		environ, err := os.ReadFile(p + "/environ")
		command, err2 := os.ReadFile(p + "/cmdline")
		if err != nil || err2 != nil || filepath.Base(p) == self {
			continue // gone, or another user's
		}
		if bytes.Contains(environ, []byte("TMPDIR="+dir)) || bytes.Contains(command, []byte(dir)) {
			found = append(found, filepath.Base(p)+" "+strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return found
}
