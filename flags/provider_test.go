package flags_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	of "github.com/open-feature/go-sdk/openfeature"

	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestAnswersComeFromTargetPercentAndDefault(t *testing.T) {
	url := migrated(t)
	store := flags.OpenStore(openPool(t, url))
	client := storeClient(t, storeOptions(t, url))
	check := func(tenant string, want flags.Answer) {
		t.Helper()
		await(t, client, tenant, is(want.Variant))
		if got, err := client.Evaluate(t.Context(), tenant); err != nil || got != want {
			t.Errorf("tenant %s: got %+v, error %v; want %+v", tenant, got, err, want)
		}
	}
	check("t1", flags.Answer{Variant: flags.MQTT, Reason: flags.ReasonDefault})
	must(t, store.SetDefault(t.Context(), flags.Shadow, "test"))
	check("t1", flags.Answer{Variant: flags.Shadow, Reason: flags.ReasonDefault})
	must(t, store.SetPercent(t.Context(), 100, flags.Live, "test"))
	check("t1", flags.Answer{Variant: flags.Live, Reason: flags.ReasonPercent})
	_, err := store.SetTargets(t.Context(), []string{"t1"}, flags.JetStream, "test", "")
	must(t, err)
	check("t1", flags.Answer{Variant: flags.JetStream, Reason: flags.ReasonTarget})
	check("t2", flags.Answer{Variant: flags.Live, Reason: flags.ReasonPercent})
	_, err = store.ClearTargets(t.Context(), []string{"t1"})
	must(t, err)
	check("t1", flags.Answer{Variant: flags.Live, Reason: flags.ReasonPercent})
	if err := client.Health(); err != nil {
		t.Error(err)
	}
}

// The beat never comes in this test: only notifications can bring the changes.
func TestChangeArrivesByNotification(t *testing.T) {
	url := migrated(t)
	pool := openPool(t, url)
	a, b := storeClient(t, storeOptions(t, url)), storeClient(t, storeOptions(t, url))
	for range 5 {
		for _, v := range flags.Variants() {
			setTarget(t, pool, "t1", v)
			await(t, a, "t1", is(v))
			await(t, b, "t1", is(v))
		}
	}
	for _, table := range []string{"crossfade_flag_targets", "crossfade_flag_rules"} {
		setTarget(t, pool, "t1", flags.Live)
		await(t, a, "t1", is(flags.Live))
		exec(t, pool, "TRUNCATE "+table)
		if table == "crossfade_flag_targets" {
			await(t, a, "t1", is(flags.MQTT))
		} else {
			await(t, a, "t2", fails(flags.CauseError))
		}
	}
}

// unnoticed changes a target without any notification.
func unnoticed(t *testing.T, pool *pgxpool.Pool, tenant string, v flags.Variant) {
	t.Helper()
	exec(t, pool, `ALTER TABLE crossfade_flag_targets DISABLE TRIGGER USER`)
	setTarget(t, pool, tenant, v)
	exec(t, pool, `ALTER TABLE crossfade_flag_targets ENABLE TRIGGER USER`)
}

func killListeners(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	var killed int
	err := pool.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
		WHERE application_name = 'crossfade-flags' AND datname = current_database()`).Scan(&killed)
	if err != nil || killed == 0 {
		t.Fatalf("terminated %d listening backends: %v", killed, err)
	}
}

func TestBeatFindsAChangeWithoutNotification(t *testing.T) {
	url := migrated(t)
	pool := openPool(t, url)
	o := storeOptions(t, url)
	o.Beat = 50 * time.Millisecond
	client := storeClient(t, o)
	await(t, client, "t1", is(flags.MQTT))
	unnoticed(t, pool, "t1", flags.JetStream)
	await(t, client, "t1", is(flags.JetStream))
	killListeners(t, pool)
	unnoticed(t, pool, "t1", flags.Shadow)
	await(t, client, "t1", is(flags.Shadow))
}

// A notification is lost with the connection, and the beat never comes: the new
// connection must begin with reading, and must listen again.
func TestKilledListenerReadsAndListensAgain(t *testing.T) {
	url := migrated(t)
	pool := openPool(t, url)
	client := storeClient(t, storeOptions(t, url))
	await(t, client, "t1", is(flags.MQTT))
	unnoticed(t, pool, "t1", flags.JetStream)
	killListeners(t, pool)
	await(t, client, "t1", is(flags.JetStream))
	setTarget(t, pool, "t1", flags.Live)
	await(t, client, "t1", is(flags.Live))
}

func privatePostgres(t *testing.T) (*devstack.Postgres, string) {
	t.Helper()
	server := devstack.TestPostgres(t)
	url, err := server.CreateDatabase(t.Context(), "flags")
	must(t, err)
	migrate(t, url)
	return server, url
}

func TestPostgresStopped(t *testing.T) {
	server, url := privatePostgres(t)
	pool := openPool(t, url)
	setTarget(t, pool, "t1", flags.Live)
	pool.Close()
	o := storeOptions(t, url)
	o.Beat, o.MaxStale = 50*time.Millisecond, 500*time.Millisecond
	client := storeClient(t, o)
	await(t, client, "t1", is(flags.Live))

	must(t, server.Stop(t.Context()))
	await(t, client, "t1", fails(flags.CauseStale))
	if err := client.Health(); err == nil || !strings.Contains(err.Error(), "PostgreSQL") {
		t.Errorf("health while PostgreSQL is away: %v", err)
	} else if strings.Contains(err.Error(), password(t, url)) {
		t.Error("the password is in the error")
	}
	if v, err := client.Desired(t.Context(), "never seen"); !fails(flags.CauseStale)(v, err) {
		t.Errorf("variant %q, error %v for a tenant that was never asked for", v, err)
	}

	must(t, server.Start(t.Context()))
	await(t, client, "t1", is(flags.Live))
	again := openPool(t, url)
	setTarget(t, again, "t1", flags.JetStream)
	await(t, client, "t1", is(flags.JetStream))
	if err := client.Health(); err != nil {
		t.Error(err)
	}
}

// Until the snapshot is stale, PostgreSQL may be away without anybody noticing.
func TestAnswersOutliveAShortOutage(t *testing.T) {
	server, url := privatePostgres(t)
	o := storeOptions(t, url)
	log, seen := newLog()
	o.Logger = log
	client := storeClient(t, o)
	await(t, client, "t1", is(flags.MQTT))
	must(t, server.Kill())
	seen.await(t, "flags cannot be read")
	if v, err := client.Desired(t.Context(), "t1"); !is(flags.MQTT)(v, err) {
		t.Errorf("variant %q, error %v", v, err)
	}
	must(t, server.Start(t.Context()))
	seen.await(t, "flags are read again")
}

func TestStartWithoutPostgres(t *testing.T) {
	server, url := privatePostgres(t)
	must(t, server.Stop(t.Context()))
	client := storeClient(t, storeOptions(t, url))
	if v, err := client.Desired(t.Context(), "t1"); !fails(flags.CauseNotReady)(v, err) {
		t.Fatalf("variant %q, error %v", v, err)
	}
	if client.Health() == nil {
		t.Error("healthy without PostgreSQL")
	}
	must(t, server.Start(t.Context()))
	await(t, client, "t1", is(flags.MQTT))
}

// Tables that are gone are no reason to trust the memory for another MaxStale.
func TestMissingTablesHoldAtOnce(t *testing.T) {
	url := migrated(t)
	pool := openPool(t, url)
	o := storeOptions(t, url)
	o.Beat = 20 * time.Millisecond
	client := storeClient(t, o)
	await(t, client, "t1", is(flags.MQTT))
	exec(t, pool, `ALTER TABLE crossfade_flag_rules RENAME TO elsewhere`)
	await(t, client, "t1", fails(flags.CauseNotReady))
	if err := client.Health(); err == nil || !strings.Contains(err.Error(), "crossfade migrate") {
		t.Errorf("health: %v", err)
	}
	exec(t, pool, `ALTER TABLE elsewhere RENAME TO crossfade_flag_rules`)
	await(t, client, "t1", is(flags.MQTT))
}

func TestEmptiedRulesAreNoWish(t *testing.T) {
	url := migrated(t)
	pool := openPool(t, url)
	setTarget(t, pool, "t1", flags.JetStream)
	client := storeClient(t, storeOptions(t, url))
	exec(t, pool, `DELETE FROM crossfade_flag_rules`)
	await(t, client, "t2", fails(flags.CauseError))
	await(t, client, "t1", is(flags.JetStream))
}

func TestOneOddRowHoldsOneTenant(t *testing.T) {
	url := migrated(t)
	pool := openPool(t, url)
	setTarget(t, pool, "t1", flags.Live)
	setTarget(t, pool, "t2", flags.Live)
	client := storeClient(t, storeOptions(t, url))
	exec(t, pool, `ALTER TABLE crossfade_flag_targets DROP CONSTRAINT crossfade_flag_targets_variant_check`)
	exec(t, pool, `UPDATE crossfade_flag_targets SET variant = 'newer than me' WHERE tenant_id = 't1'`)
	await(t, client, "t1", fails(flags.CauseVariant))
	await(t, client, "t2", is(flags.Live))
}

// nextEvent skips repeats of READY, which the provider may tell more than once.
func nextEvent(t *testing.T, p *flags.StoreProvider, want of.EventType) of.Event {
	t.Helper()
	limit := time.After(deadline)
	for {
		select {
		case e := <-p.EventChannel():
			if e.EventType == want {
				return e
			}
			if e.EventType != of.ProviderReady {
				t.Fatalf("event %s (%s), want %s", e.EventType, e.Message, want)
			}
		case <-limit:
			t.Fatalf("no event %s", want)
		}
	}
}

func TestEvents(t *testing.T) {
	server, url := privatePostgres(t)
	o := storeOptions(t, url)
	o.Beat, o.MaxStale = 50*time.Millisecond, 500*time.Millisecond
	p, err := flags.NewStoreProvider(o)
	must(t, err)
	must(t, p.Init(of.EvaluationContext{}))
	defer p.Shutdown()
	nextEvent(t, p, of.ProviderReady)
	pool := openPool(t, url)
	setTarget(t, pool, "t1", flags.Live)
	if e := nextEvent(t, p, of.ProviderConfigChange); len(e.FlagChanges) != 1 || e.FlagChanges[0] != flags.FlagKey {
		t.Errorf("changed flags are %v", e.FlagChanges)
	}
	exec(t, pool, `ALTER TABLE crossfade_flag_rules RENAME TO elsewhere`)
	nextEvent(t, p, of.ProviderError)
	exec(t, pool, `ALTER TABLE elsewhere RENAME TO crossfade_flag_rules`)
	nextEvent(t, p, of.ProviderReady)
	pool.Close()
	must(t, server.Stop(t.Context()))
	nextEvent(t, p, of.ProviderStale)
	must(t, server.Start(t.Context()))
	nextEvent(t, p, of.ProviderReady)
}

func TestProviderLife(t *testing.T) {
	url := migrated(t)
	unused, err := flags.NewStoreProvider(storeOptions(t, url))
	must(t, err)
	unused.Shutdown()
	if unused.Init(of.EvaluationContext{}) == nil {
		t.Error("Init after Shutdown is accepted")
	}
	p, err := flags.NewStoreProvider(storeOptions(t, url))
	must(t, err)
	must(t, p.Init(of.EvaluationContext{}))
	must(t, p.Init(of.EvaluationContext{}))
	for range 2 {
		must(t, p.ShutdownWithContext(t.Context()))
	}
	got := p.StringEvaluation(t.Context(), flags.FlagKey, "stand-in", of.FlattenedContext{of.TargetingKey: "t1"})
	if got.Error() == nil || got.Value != "stand-in" {
		t.Errorf("answer after Shutdown: %+v", got)
	}
	if p.BooleanEvaluation(t.Context(), flags.FlagKey, true, nil).ResolutionDetail().ErrorCode != of.TypeMismatchCode {
		t.Error("a boolean flag is no type mismatch")
	}
}

func TestInitIsBoundedByItsContext(t *testing.T) {
	p, err := flags.NewStoreProvider(storeOptions(t, migrated(t)))
	must(t, err)
	defer p.Shutdown()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// It may just have been read in time; what matters is that it returns.
	if err := p.InitWithContext(ctx, of.EvaluationContext{}); err != nil && !strings.Contains(err.Error(), "context canceled") {
		t.Error(err)
	}
	nextEvent(t, p, of.ProviderReady)
}

func TestStoreOptionsNameTheField(t *testing.T) {
	good := storeOptions(t, "postgres://u:p@127.0.0.1:1/db")
	must(t, good.Validate())
	for field, spoil := range map[string]func(*flags.StoreProviderOptions){
		"Conn":      func(o *flags.StoreProviderOptions) { o.Conn = nil },
		"Beat":      func(o *flags.StoreProviderOptions) { o.Beat = 0 },
		"MaxStale":  func(o *flags.StoreProviderOptions) { o.MaxStale = o.Beat },
		"Debounce":  func(o *flags.StoreProviderOptions) { o.Debounce = -1 },
		"IOTimeout": func(o *flags.StoreProviderOptions) { o.IOTimeout = 0 },
		"RetryMax":  func(o *flags.StoreProviderOptions) { o.RetryMax = 0 },
	} {
		o := good
		spoil(&o)
		if _, err := flags.NewStoreProvider(o); err == nil || !strings.Contains(err.Error(), "."+field+" is") && !strings.Contains(err.Error(), field) {
			t.Errorf("%s spoilt: error %v", field, err)
		}
	}
}
