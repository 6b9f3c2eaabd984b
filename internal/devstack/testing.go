package devstack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
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
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	name := "crossfade_test_" + strings.ToLower(randomSecret())
	testURL, err := withDatabase(admin, name)
	if err != nil {
		tb.Fatalf("DATABASE_URL: %v", err)
	}
	if err := createDatabase(ctx, admin, name); err != nil {
		tb.Fatalf("database for the test: %v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		if err := dropDatabase(ctx, admin, name); err != nil {
			tb.Errorf("drop the test's database: %v", err)
		}
	})
	return testURL
}

// withDatabase replaces the database in a connection string of either form
// that libpq knows.
func withDatabase(connection, database string) (string, error) {
	if _, err := pgx.ParseConfig(connection); err != nil {
		return "", err // pgx leaves passwords out of its errors
	}
	if !strings.HasPrefix(connection, "postgres://") && !strings.HasPrefix(connection, "postgresql://") {
		return connection + " dbname='" + database + "'", nil
	}
	u, err := url.Parse(connection)
	if err != nil {
		return "", errors.New("it is no valid URL") // the parser's error would quote the password
	}
	u.Path, u.RawPath = "/"+database, ""
	query := u.Query()
	query.Del("dbname")
	u.RawQuery = query.Encode()
	return u.String(), nil
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
			tail = logTail(log)
		}
		if err := close(); err != nil {
			tb.Errorf("close the test's %s: %v", name, err)
		}
		if tail != "" {
			tb.Logf("%s:%s", name, tail)
		}
	})
}
