package flags_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m)) }

// never is a beat that no test lives to see.
const never = time.Hour

// deadline is how long a test waits for what must come; nothing is measured by it.
const deadline = 30 * time.Second

// migrated returns the URL of a database that has all migrations.
func migrated(t *testing.T) string {
	t.Helper()
	url := devstack.TestDatabase(t)
	migrate(t, url)
	return url
}

func migrate(t *testing.T, url string) {
	t.Helper()
	if _, err := migrations.Apply(t.Context(), url, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
}

func openPool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func setTarget(t *testing.T, pool *pgxpool.Pool, tenant string, v flags.Variant) {
	t.Helper()
	if _, err := flags.OpenStore(pool).SetTargets(t.Context(), []string{tenant}, v, "test", ""); err != nil {
		t.Fatal(err)
	}
}

// storeOptions are options that hear of changes by notification only.
func storeOptions(t *testing.T, url string) flags.StoreProviderOptions {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	o := flags.DefaultStoreProviderOptions()
	o.Conn, o.Beat, o.MaxStale = config, never, 3*never
	o.RetryMin, o.RetryMax = 10*time.Millisecond, 100*time.Millisecond
	return o
}

func storeClient(t *testing.T, o flags.StoreProviderOptions) *flags.Client {
	t.Helper()
	provider, err := flags.NewStoreProvider(o)
	if err != nil {
		t.Fatal(err)
	}
	co := flags.DefaultOptions()
	co.Provider, co.Logger = provider, o.Logger
	return newClient(t, co)
}

func newClient(t *testing.T, o flags.Options) *flags.Client {
	t.Helper()
	c, err := flags.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

// await evaluates whenever Changes signals, and fails when the answer is not
// what it should be before the deadline. It does not poll.
func await(t *testing.T, c *flags.Client, tenant string, good func(flags.Variant, error) bool) {
	t.Helper()
	limit := time.After(deadline)
	for {
		v, err := c.Desired(t.Context(), tenant)
		if good(v, err) {
			return
		}
		select {
		case <-c.Changes():
		case <-limit:
			t.Fatalf("still variant %q, error %v", v, err)
		}
	}
}

func is(want flags.Variant) func(flags.Variant, error) bool {
	return func(v flags.Variant, err error) bool { return err == nil && v == want }
}

// fails: no answer, for this cause, and nothing that could be taken for one.
func fails(cause flags.Cause) func(flags.Variant, error) bool {
	return func(v flags.Variant, err error) bool { return v == "" && causeOf(err) == cause }
}

// causeOf returns the cause in an ErrNoAnswer, and nothing for any other error.
func causeOf(err error) flags.Cause {
	if no, ok := errors.AsType[*flags.NoAnswerError](err); ok && errors.Is(err, flags.ErrNoAnswer) {
		return no.Cause
	}
	return ""
}

// logBuffer keeps a log and tells when a text has come into it.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
	grew chan struct{}
}

func newLog() (*slog.Logger, *logBuffer) {
	b := &logBuffer{grew: make(chan struct{}, 1)}
	return slog.New(slog.NewTextHandler(b, nil)), b
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.grew <- struct{}{}:
	default:
	}
	return b.text.Write(p)
}

func (b *logBuffer) await(t *testing.T, text string) {
	t.Helper()
	limit := time.After(deadline)
	for {
		b.mu.Lock()
		found := bytes.Contains(b.text.Bytes(), []byte(text))
		b.mu.Unlock()
		if found {
			return
		}
		select {
		case <-b.grew:
		case <-limit:
			t.Fatalf("no %q in the log", text)
		}
	}
}
