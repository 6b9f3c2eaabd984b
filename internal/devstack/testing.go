package devstack

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// TB is the part of testing.TB that the helpers need. It keeps the testing
// package out of the programs that use devstack.
type TB interface {
	Helper()
	Cleanup(func())
	Failed() bool
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

// Main is for TestMain. It recognises child processes (RunChild) at once; its
// Run runs the tests and stops the shared PostgreSQL afterwards, so that
// goleak finds nothing of it:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m)) }
func Main(m interface{ Run() int }) interface{ Run() int } {
	RunChild()
	return testMain{m}
}

type testMain struct{ tests interface{ Run() int } }

func (m testMain) Run() int {
	defer ShutdownShared()
	return m.tests.Run()
}

// MainWithCrossfade is Main for tests that start the crossfade program: it is built
// before they run, with the race detector where they have it, and its path stored
// in program.
func MainWithCrossfade(m interface{ Run() int }, program *string) interface{ Run() int } {
	return withCrossfade{Main(m), program}
}

type withCrossfade struct {
	tests   interface{ Run() int }
	program *string
}

func (w withCrossfade) Run() int {
	dir, err := os.MkdirTemp("", "crossfade-program-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	*w.program = filepath.Join(dir, "crossfade")
	build := exec.Command("go", "build", "-race="+strconv.FormatBool(underRace()), "-o", *w.program, "github.com/crossfade-io/crossfade/cmd/crossfade")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build crossfade for the tests: %v\n%s", err, out)
		return 1
	}
	return w.tests.Run()
}

// underRace reports whether this program was built with the race detector.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

var shared = struct {
	sync.Mutex
	tried    bool
	postgres *Postgres
	adminURL string
	err      error
}{}

// sharedAdminURL starts the one server of this test process on its first call,
// unless DATABASE_URL names one.
func sharedAdminURL() (string, error) {
	shared.Lock()
	defer shared.Unlock()
	if shared.tried {
		return shared.adminURL, shared.err
	}
	shared.tried = true
	if given := os.Getenv("DATABASE_URL"); given != "" {
		shared.adminURL = given
		return given, nil
	}
	shared.postgres, shared.err = StartPostgres(context.Background(), PostgresOptions{MaxConnections: 300})
	if shared.err == nil {
		shared.adminURL = shared.postgres.URL(pgSuperuser)
	}
	return shared.adminURL, shared.err
}

// ShutdownShared stops the PostgreSQL behind TestDatabase, if there is one, and
// removes its data. A TestMain that does not use Main calls it after m.Run.
func ShutdownShared() {
	shared.Lock()
	defer shared.Unlock()
	if shared.postgres != nil {
		if err := shared.postgres.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the tests' shared PostgreSQL:", err)
		}
	}
	shared.postgres, shared.adminURL, shared.err, shared.tried = nil, "", nil, false
}

// TestDatabase returns the URL of a new, empty database with a random name,
// which is dropped when the test ends, whoever is still connected. It is on a
// PostgreSQL that all tests of the process share, or on the one that
// DATABASE_URL names, whose user must be allowed to create databases.
func TestDatabase(tb TB) string {
	tb.Helper()
	admin, err := sharedAdminURL()
	if err != nil {
		tb.Fatalf("PostgreSQL for the tests: %v", err)
	}
	d, err := databaseBeside(context.Background(), admin, "crossfade_test")
	if err != nil {
		tb.Fatalf("database for the test: %v", err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Errorf("end of the test: %v", err)
		}
	})
	return d.URL()
}

// TestOwnedDatabase is TestDatabase as an installation has it: the URL connects as a
// role that may create tables in the schema public and has no other right, neither on the
// server nor by membership. What it connects is what docs/database.md calls the owner.
// DATABASE_URL's user must be allowed to create roles besides.
func TestOwnedDatabase(tb TB) string {
	tb.Helper()
	var owner string
	tb.Cleanup(func() { // after the database
		if owner == "" {
			return
		}
		admin, err := sharedAdminURL()
		if err == nil {
			err = execute(context.Background(), admin, "DROP ROLE "+owner)
		}
		if err != nil {
			tb.Errorf("end of the test: role %s is left: %v", owner, err)
		}
	})
	database := TestDatabase(tb)
	name, password := "owner_"+strings.ToLower(randomSecret()), randomSecret()
	if err := execute(context.Background(), database, "CREATE ROLE "+name+" LOGIN PASSWORD '"+password+"'"); err != nil {
		tb.Fatalf("owner of the test's database: %v", err)
	}
	owner = name
	if err := execute(context.Background(), database, "GRANT CREATE, USAGE ON SCHEMA public TO "+owner); err != nil {
		tb.Fatalf("owner of the test's database: %v", err)
	}
	asOwner, err := withUser(database, owner, password)
	if err != nil {
		tb.Fatalf("owner of the test's database: %v", err)
	}
	return asOwner
}

// TestTempDir has all temporary files of the test, its children's too, made in a
// directory of its own, which is removed when the test ends. It is below /tmp, not
// below t.TempDir, whose parents are closed to the OS user postgres.
func TestTempDir(tb interface {
	TB
	Setenv(key, value string)
}) (dir string) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "crossfade-test-")
	if err != nil {
		tb.Fatalf("temporary directory for the test: %v", err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("end of the test: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatalf("temporary directory for the test: %v", err)
	}
	tb.Setenv("TMPDIR", dir)
	return dir
}

// TestPostgres returns a PostgreSQL of the test's own, for tests that stop or
// kill it. It is closed when the test ends.
func TestPostgres(tb TB) *Postgres {
	tb.Helper()
	p, err := StartPostgres(context.Background(), PostgresOptions{})
	if err != nil {
		tb.Fatalf("PostgreSQL for the test: %v", err)
	}
	closeAtEnd(tb, "PostgreSQL", p.d.logPath(), p.Close)
	return p
}

// TestMosquitto returns a broker of the test's own, closed when the test ends.
func TestMosquitto(tb TB) *Mosquitto {
	tb.Helper()
	m, err := StartMosquitto(context.Background(), MosquittoOptions{})
	if err != nil {
		tb.Fatalf("Mosquitto for the test: %v", err)
	}
	closeAtEnd(tb, "Mosquitto", m.d.logPath(), m.Close)
	return m
}

// TestNATS returns a NATS server in a process of its own, which can be killed;
// it is closed when the test ends. TestMain must have called RunChild or Main.
func TestNATS(tb TB) *NATS {
	tb.Helper()
	n, err := StartNATS(context.Background(), NATSOptions{})
	if err != nil {
		tb.Fatalf("NATS for the test: %v", err)
	}
	closeAtEnd(tb, "NATS", n.d.logPath(), n.Close)
	return n
}

func closeAtEnd(tb TB, name, log string, close func() error) {
	tb.Cleanup(func() {
		tail := ""
		if tb.Failed() {
			tail = logFile(log).tail()
		}
		if err := close(); err != nil {
			tb.Errorf("close the test's %s: %v", name, err)
		}
		if tail != "" {
			tb.Logf("%s:%s", name, tail)
		}
	})
}

// Await waits until a condition holds. It fails the test after two minutes, which is more
// than a loaded machine needs for what a test waits for.
func Await(t TB, what string, holds func() bool) {
	t.Helper()
	const patience = 2 * time.Minute
	beat := time.NewTicker(5 * time.Millisecond)
	defer beat.Stop()
	for end := time.Now().Add(patience); !holds(); <-beat.C {
		if time.Now().After(end) {
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
	}
}

// Log keeps what several goroutines write, for a test to read meanwhile.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements [io.Writer].
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String is what has been written so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
