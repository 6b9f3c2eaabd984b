package flags_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func password(t *testing.T, connection string) string {
	t.Helper()
	u, err := url.Parse(connection)
	must(t, err)
	p, ok := u.User.Password()
	if !ok || p == "" {
		t.Fatal("the URL has no password to look for")
	}
	return p
}

func TestSetTargetsReturnsWhatWasThere(t *testing.T) {
	store := flags.OpenStore(openPool(t, migrated(t)))
	got, err := store.SetTargets(t.Context(), []string{"b", "a", "b"}, flags.Shadow, "ann", "trial")
	must(t, err)
	if want := []flags.Previous{{Tenant: "a"}, {Tenant: "b"}}; !slices.Equal(got, want) {
		t.Errorf("first: %v, want %v", got, want)
	}
	got, err = store.SetTargets(t.Context(), []string{"b", "c"}, flags.Live, "bob", "")
	must(t, err)
	if want := []flags.Previous{{Tenant: "b", Variant: flags.Shadow}, {Tenant: "c"}}; !slices.Equal(got, want) {
		t.Errorf("second: %v, want %v", got, want)
	}
	got, err = store.ClearTargets(t.Context(), []string{"c", "a", "nobody"})
	must(t, err)
	if want := []flags.Previous{{Tenant: "a", Variant: flags.Shadow}, {Tenant: "c", Variant: flags.Live}}; !slices.Equal(got, want) {
		t.Errorf("cleared: %v, want %v", got, want)
	}
	w, err := store.List(t.Context())
	must(t, err)
	if len(w.Targets) != 1 || w.Targets[0].Tenant != "b" || w.Targets[0].UpdatedBy != "bob" || w.Targets[0].UpdatedAt.IsZero() {
		t.Errorf("left: %+v", w.Targets)
	}
	if w.Rule == nil || w.Rule.Default != flags.MQTT || w.Rule.Percent != 0 {
		t.Errorf("rule: %+v", w.Rule)
	}
}

// What an operator sees in status is what an instance is told.
func TestListAgreesWithTheProvider(t *testing.T) {
	url := migrated(t)
	store := flags.OpenStore(openPool(t, url))
	must(t, store.SetPercent(t.Context(), 33.33, flags.JetStream, "test"))
	must(t, store.SetDefault(t.Context(), flags.Shadow, "test"))
	_, err := store.SetTargets(t.Context(), []string{"Ä", "t7", "T7", "t-7", "t 7"}, flags.Live, "test", "")
	must(t, err)
	client := storeClient(t, storeOptions(t, url))
	w, err := store.List(t.Context())
	must(t, err)
	if w.Rule.Percent != 33.33 || w.Rule.PercentVariant != flags.JetStream || w.Rule.Default != flags.Shadow {
		t.Errorf("rule: %+v", w.Rule)
	}
	seen := map[flags.Reason]int{}
	tenants := []string{"Ä", "T7", "t-7", "t 7"}
	for i := range 300 {
		tenants = append(tenants, fmt.Sprintf("t%d", i))
	}
	for _, tenant := range tenants {
		got, err := client.Evaluate(t.Context(), tenant)
		must(t, err)
		v, reason, ok := w.For(tenant)
		if !ok || got != (flags.Answer{Variant: v, Reason: reason}) {
			t.Errorf("tenant %q: the provider says %+v, status %s %s", tenant, got, v, reason)
		}
		seen[reason]++
	}
	if seen[flags.ReasonTarget] != 5 || seen[flags.ReasonPercent] == 0 || seen[flags.ReasonDefault] == 0 {
		t.Errorf("reasons: %v", seen)
	}
}

func TestManyTenantsAreOneNotification(t *testing.T) {
	url := migrated(t)
	store := flags.OpenStore(openPool(t, url))
	conn, err := pgx.Connect(t.Context(), url)
	must(t, err)
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), "LISTEN crossfade_flags")
	must(t, err)
	tenants := make([]string, 5_000)
	for i := range tenants {
		tenants[i] = fmt.Sprintf("t%d", i)
	}
	got, err := store.SetTargets(t.Context(), tenants, flags.JetStream, "test", "")
	must(t, err)
	if len(got) != len(tenants) {
		t.Fatalf("%d of %d tenants were set", len(got), len(tenants))
	}
	_, err = conn.Exec(t.Context(), "SELECT pg_notify('crossfade_flags', 'end')")
	must(t, err)
	for n := 0; ; n++ {
		note, err := conn.WaitForNotification(t.Context())
		must(t, err)
		if note.Payload == "end" {
			if n != 1 {
				t.Fatalf("%d notifications for one call", n)
			}
			return
		}
	}
}

// Concurrent calls over the same tenants, named in different orders, neither
// deadlock nor report a previous wish that they did not replace: for each tenant
// every wish is replaced exactly once, except the last.
func TestConcurrentFlips(t *testing.T) {
	store := flags.OpenStore(openPool(t, migrated(t)))
	var tenants []string
	for i := range 50 {
		tenants = append(tenants, fmt.Sprintf("t%d", i))
	}
	type wish struct {
		tenant  string
		variant flags.Variant
	}
	balance := map[wish]int{} // set minus replaced
	_, err := store.SetTargets(t.Context(), tenants, flags.MQTT, "test", "")
	must(t, err)
	for _, tenant := range tenants {
		balance[wish{tenant, flags.MQTT}]++
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 25 {
				mine := slices.Clone(tenants)
				r.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
				variant := flags.Variants()[r.IntN(4)]
				previous, err := store.SetTargets(t.Context(), mine[:30], variant, "test", "")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, p := range previous {
					balance[wish{p.Tenant, variant}]++
					balance[wish{p.Tenant, p.Variant}]--
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	w, err := store.List(t.Context())
	must(t, err)
	for _, target := range w.Targets {
		balance[wish{target.Tenant, target.Variant}]--
	}
	for k, n := range balance {
		if n != 0 {
			t.Errorf("tenant %s, %s: set and replaced differ by %d", k.tenant, k.variant, n)
		}
	}
}

func TestStoreRefusesBadInput(t *testing.T) {
	store := flags.OpenStore(openPool(t, migrated(t)))
	long := strings.Repeat("x", 600)
	set := func(tenants []string, v flags.Variant, by, reason string) func() error {
		return func() error { _, err := store.SetTargets(t.Context(), tenants, v, by, reason); return err }
	}
	percent := func(p float64) func() error {
		return func() error { return store.SetPercent(t.Context(), p, flags.Live, "test") }
	}
	for want, call := range map[string]func() error{
		"at least one":       set(nil, flags.Live, "", ""),
		"tenant is empty":    set([]string{"a", ""}, flags.Live, "", ""),
		"at most 256":        set([]string{long}, flags.Live, "", ""),
		"without NUL":        set([]string{"a\x00"}, flags.Live, "", ""),
		"mqtt, shadow, live": set([]string{"a"}, "fast", "", ""),
		"at most 128":        set([]string{"a"}, flags.Live, long, ""),
		"at most 512":        set([]string{"a"}, flags.Live, "", long),
		"percent is -1":      percent(-1),
		"percent is 100.01":  percent(100.01),
		"percent is NaN":     percent(math.NaN()),
		"two decimals":       percent(1.005),
		"at most 100000":     set(make([]string, flags.MaxTenantsPerCall+1), flags.Live, "", ""),
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	w, err := store.List(t.Context())
	must(t, err)
	if len(w.Targets) != 0 || w.Rule.Percent != 0 {
		t.Errorf("something was written: %+v", w)
	}
	// The longest names that are allowed fit the tables.
	must(t, set([]string{strings.Repeat("ü", 256)}, flags.Live, strings.Repeat("ü", 128), strings.Repeat("ü", 512))())
	// A name is a value, never SQL.
	must(t, set([]string{`'; DROP TABLE crossfade_flag_targets; --`}, flags.Live, "", "")())
}

func TestStoreWithoutTablesSaysMigrate(t *testing.T) {
	store := flags.OpenStore(openPool(t, devstack.TestDatabase(t)))
	if _, err := store.List(t.Context()); err == nil || !strings.Contains(err.Error(), "crossfade migrate") {
		t.Errorf("error %v", err)
	}
}

// The tables refuse by themselves what the code refuses.
func TestTablesRefuseBadRows(t *testing.T) {
	pool := openPool(t, migrated(t))
	for _, sql := range []string{
		`INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant) VALUES ('f', 't', 'fast')`,
		`INSERT INTO crossfade_flag_targets (flag_key, tenant_id, variant) VALUES ('f', '', 'mqtt')`,
		`INSERT INTO crossfade_flag_rules (flag_key, percent) VALUES ('f', 1)`,
		`INSERT INTO crossfade_flag_rules (flag_key, percent, percent_variant) VALUES ('f', 100.01, 'live')`,
		`INSERT INTO crossfade_flag_rules (flag_key, percent, percent_variant) VALUES ('f', 'NaN', 'live')`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err == nil {
			t.Errorf("accepted: %s", sql)
		}
	}
}
