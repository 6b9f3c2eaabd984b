package store_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// ear listens to a database and hands on what it hears.
type ear struct {
	*testing.T
	changes chan store.Change
	log     *devstack.Log
}

func listen(t *testing.T, url string) *ear {
	t.Helper()
	s, err := store.Open(t.Context(), store.DefaultConfig(url))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	e := &ear{t, make(chan store.Change, 100), new(devstack.Log)}
	o := store.ListenOptions{Beat: 50 * time.Millisecond, Patience: 500 * time.Millisecond, RetryMin: time.Millisecond, RetryMax: 50 * time.Millisecond,
		Logger: slog.New(slog.NewJSONHandler(e.log, nil))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Listen(ctx, o, func(c store.Change) { e.changes <- c }) }()
	t.Cleanup(func() {
		cancel()
		for {
			select {
			case <-e.changes:
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	})
	return e
}

func (e *ear) next() store.Change {
	e.Helper()
	select {
	case c := <-e.changes:
		return c
	case <-time.After(30 * time.Second):
		e.Fatalf("nothing is heard; the log says:\n%s", e.log)
		return store.Change{}
	}
}

func (e *ear) want(changes ...store.Change) {
	e.Helper()
	for _, want := range changes {
		if got := e.next(); got != want {
			e.Fatalf("heard %+v, want %+v", got, want)
		}
	}
}

var (
	begins = store.Change{Kind: store.ChangeListening}
	all    = store.Change{Kind: store.ChangeEverything}
	deaf   = store.Change{Kind: store.ChangeDeaf}
)

func TestListen(tt *testing.T) {
	t := newStoreTest(tt)
	e := listen(tt, t.url)
	e.want(begins, all)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id) VALUES ('t1', 'd1')`)
	e.want(store.Change{Kind: store.ChangeDevice, Tenant: "t1", Device: "d1"})
	t.exec(`INSERT INTO subscriptions (subscription_id, tenant_id) VALUES ('s', 't"1')`)
	e.want(store.Change{Kind: store.ChangeTenant, Tenant: `t"1`})
	t.exec(`INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type) VALUES ('t1', 'n', '#', 'webhook')`)
	e.want(store.Change{Kind: store.ChangeRoutes, Tenant: "t1"})
	t.exec(`INSERT INTO app_settings VALUES ('k', 'v')`)
	e.want(store.Change{Kind: store.ChangeSettings})
	t.exec(`INSERT INTO device_tiers VALUES (1, 1)`)
	e.want(all)
	for _, payload := range []string{``, `rubbish`, `{}`, `null`, `{"d":["t"]}`, `{"d":[1,2]}`, `{"later":1}`, `[1]`} {
		t.exec(`SELECT pg_notify('crossfade_changes', $1)`, payload)
		e.want(all)
	}
	t.exec(`NOTIFY crossfade_stages`) // another channel
	t.exec(`DELETE FROM app_settings`)
	e.want(store.Change{Kind: store.ChangeSettings})
}

// TestWhatIsHeardCanBeRead: whoever reads after having heard of a change sees it.
func TestWhatIsHeardCanBeRead(tt *testing.T) {
	t := newStoreTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('t1', 'd1', '0')`)
	e := listen(tt, t.url)
	e.want(begins, all)
	for n := 1; n <= 200; n++ {
		t.exec(`UPDATE device_registry SET site_id = $1::int::text`, n)
		e.want(store.Change{Kind: store.ChangeDevice, Tenant: "t1", Device: "d1"})
		t.wantCount(n, `SELECT site_id::int FROM device_registry`)
	}
}

// TestListenToSilentTables: a table that was replaced, and triggers that were dropped
// or disabled, are named when listening begins, and what is said to mend them does.
func TestListenToSilentTables(tt *testing.T) {
	t := newStoreTest(tt)
	warned := func() (tables, remedies []string) {
		e := listen(tt, t.url)
		e.want(begins, all)
		for line := range strings.Lines(e.log.String()) {
			var w struct{ Level, Table, Remedy string }
			t.must(json.Unmarshal([]byte(line), &w))
			_, statements, _ := strings.Cut(w.Remedy, "run: ")
			tables, remedies = append(tables, w.Table), append(remedies, statements)
		}
		return tables, remedies
	}
	t.exec(`ALTER TABLE subscriptions ENABLE ALWAYS TRIGGER crossfade_changes_update`)
	if tables, _ := warned(); len(tables) != 0 {
		t.Errorf("%q are said to be silent", tables)
	}
	t.exec(`ALTER TABLE subscriptions ENABLE TRIGGER crossfade_changes_update`)
	const definitions = `SELECT string_agg(pg_get_triggerdef(oid) || tgenabled::text, E'\n' ORDER BY tgrelid::regclass::text, tgname) FROM pg_trigger WHERE tgname LIKE 'crossfade_changes%'`
	var before, after string
	t.must(t.pool.QueryRow(t.Context(), definitions).Scan(&before))
	t.exec(`ALTER TABLE device_registry DISABLE TRIGGER USER;
		DROP TRIGGER crossfade_changes_delete ON device_certificates;
		ALTER TABLE device_modules ENABLE REPLICA TRIGGER crossfade_changes_update;
		ALTER TABLE app_settings DISABLE TRIGGER crossfade_changes;
		DROP TRIGGER crossfade_changes ON device_tiers;
		ALTER TABLE message_routes RENAME TO old_routes; CREATE TABLE message_routes (LIKE old_routes INCLUDING ALL); DROP TABLE old_routes`)
	tables, remedies := warned()
	if want := []string{"device_registry", "device_certificates", "device_modules", "message_routes", "device_tiers", "app_settings"}; !slices.Equal(tables, want) {
		t.Fatalf("%q are said to be silent, want %q", tables, want)
	}
	t.exec(strings.Join(remedies, "; "))
	t.must(t.pool.QueryRow(t.Context(), definitions).Scan(&after))
	if tables, _ := warned(); len(tables) != 0 || after != before {
		t.Errorf("when mended %q are said to be silent, and the triggers are\n%s\nwant\n%s", tables, after, before)
	}
	t.exec(`DO $$ DECLARE s text; BEGIN
		FOR s IN SELECT format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass) FROM pg_trigger WHERE tgname LIKE 'crossfade_changes%' LOOP EXECUTE s; END LOOP; END $$`)
	_, remedies = warned()
	t.exec(strings.Join(remedies, "; "))
	t.must(t.pool.QueryRow(t.Context(), definitions).Scan(&after))
	if len(remedies) != 7 || after != before {
		t.Errorf("%d tables are said to be silent, and made again the triggers are\n%s\nwant\n%s", len(remedies), after, before)
	}
}

// TestListenAgain: a connection that is lost is said to be, made again, and then
// anything may have changed.
func TestListenAgain(tt *testing.T) {
	pg := devstack.TestPostgres(tt)
	database, err := pg.CreateDatabase(tt.Context(), "listen")
	if err != nil {
		tt.Fatal(err)
	}
	migrate(tt, database)
	e := listen(tt, database)
	e.want(begins, all)
	for name, end := range map[string]func() error{
		"stopped": func() error { return pg.Stop(tt.Context()) },
		"killed":  pg.Kill,
	} {
		if err := end(); err != nil {
			tt.Fatal(name, err)
		}
		e.want(deaf)
		if err := pg.Start(tt.Context()); err != nil {
			tt.Fatal(name, err)
		}
		e.want(begins, all)
	}
	conn := schemaConn(tt, database)
	schemaExec(tt, conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE '%UNLISTEN%' AND pid <> pg_backend_pid() OR query = '-- ping'`)
	e.want(deaf, begins, all)
	schemaExec(tt, conn, `INSERT INTO app_settings VALUES ('k', 'v')`)
	e.want(store.Change{Kind: store.ChangeSettings})
	if log := e.log.String(); strings.Count(log, `"level":"WARN"`) != 3 || strings.Count(log, `"level":"INFO"`) != 3 {
		tt.Errorf("not one warning and one relief each:\n%s", log)
	}
}

// TestListenOnADeadConnection: one on which nothing comes back any more, without
// being closed, is noticed and given up.
func TestListenOnADeadConnection(tt *testing.T) {
	t := newStoreTest(tt)
	p := newRelay(tt, t.url)
	e := listen(tt, p.url)
	e.want(begins, all)
	p.silent.Store(true)
	e.want(deaf)
	t.exec(`INSERT INTO app_settings VALUES ('k', 'v')`)
	p.silent.Store(false)
	e.want(begins, all)
}

// TestListenThroughAPooler that shares sessions, as PgBouncer does by transaction:
// LISTEN succeeds, and notifications come with the answer to a statement or not at
// all. That is not taken for listening, and the log says what to do.
func TestListenThroughAPooler(tt *testing.T) {
	t := newStoreTest(tt)
	p := newRelay(tt, t.url)
	p.shares.Store(true)
	e := listen(tt, p.url)
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(e.log.String(), "by session, not by transaction"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say what to do:\n%s", e.log)
		}
	}
	p.shares.Store(false)
	e.want(begins, all)
}

// relay is a way to PostgreSQL that can fall silent, or share sessions: what is
// notified while the client has asked for nothing does not get through.
type relay struct {
	url            string
	silent, shares atomic.Bool
}

// asking notes that the client has sent something.
type asking struct {
	io.Reader
	asked *atomic.Bool
}

func (a asking) Read(p []byte) (int, error) {
	n, err := a.Reader.Read(p)
	a.asked.Store(true)
	return n, err
}

func newRelay(t *testing.T, database string) *relay {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	target := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.Host = l.Addr().String()
	r := &relay{url: u.String()}
	var wg sync.WaitGroup
	ended := make(chan struct{})
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			hangUp := sync.OnceFunc(func() { client.Close(); server.Close() })
			asked := new(atomic.Bool)
			wg.Go(func() { defer hangUp(); io.Copy(server, asking{client, asked}) })
			wg.Go(func() { defer hangUp(); r.pass(client, server, asked) })
			wg.Go(func() { <-ended; hangUp() })
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(ended)
		wg.Wait()
	})
	return r
}

// pass hands on the server's messages: a type, a length that counts itself, the rest.
func (r *relay) pass(client io.Writer, server io.Reader, asked *atomic.Bool) {
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(server, head); err != nil {
			return
		}
		message := append(head, make([]byte, binary.BigEndian.Uint32(head[1:])-4)...)
		if _, err := io.ReadFull(server, message[5:]); err != nil {
			return
		}
		const notification, ready = 'A', 'Z'
		if r.silent.Load() || head[0] == notification && r.shares.Load() && !asked.Load() {
			continue
		}
		if head[0] == ready {
			asked.Store(false)
		}
		if _, err := client.Write(message); err != nil {
			return
		}
	}
}
