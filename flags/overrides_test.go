package flags_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/flags"
)

// overriddenClient has a service as provider and a store on top of it.
func overriddenClient(t *testing.T, s *service, url string, change func(*flags.RemoteOptions)) *flags.Client {
	t.Helper()
	return s.client(t, change, func(o *flags.Options) {
		store, err := flags.NewStoreProvider(storeOptions(t, url))
		if err != nil {
			t.Fatal(err)
		}
		o.Overrides = store
	})
}

// awaitOverride waits for OverrideChanges alone: no evaluation is needed to learn of one.
func awaitOverride(t *testing.T, c *flags.Client, tenant string, want flags.Variant, set bool) {
	t.Helper()
	limit := time.After(deadline)
	for {
		v, ok, err := c.Override(tenant)
		if err == nil && ok == set && v == want {
			return
		}
		select {
		case <-c.OverrideChanges():
		case <-limit:
			t.Fatalf("override of %s is %q, %v, %v", tenant, v, ok, err)
		}
	}
}

// TestKillSwitch: with the provider dead in every way, what the operator sets for a
// tenant counts at once, and nobody else moves.
func TestKillSwitch(t *testing.T) {
	ways := map[string]func(s *service){
		"hangs":          func(s *service) { s.do(s.hang) },
		"500":            func(s *service) { s.do(func(w http.ResponseWriter, _ *http.Request, _ string) { reply(w, 500, `{}`) }) },
		"gone":           func(s *service) { s.CloseClientConnections(); s.Listener.Close() },
		"lies":           func(s *service) { s.answer(`"warp"`, "STATIC") },
		"says jetstream": func(s *service) { s.answer(`"jetstream"`, "TARGETING_MATCH") },
	}
	url := migrated(t)
	pool := openPool(t, url)
	for name, breakIt := range ways {
		eachDialect(t, func(t *testing.T, s *service) {
			t.Run(name, func(t *testing.T) {
				tenant := t.Name() // a tenant of its own
				c := overriddenClient(t, s, url, func(o *flags.RemoteOptions) { o.Timeout = time.Hour })
				await(t, c, tenant, is(flags.Live))
				breakIt(s)
				setTarget(t, pool, tenant, flags.MQTT)
				awaitOverride(t, c, tenant, flags.MQTT, true)
				asked := s.asked.Load()
				a, err := c.Evaluate(t.Context(), tenant)
				if err != nil || a != (flags.Answer{Variant: flags.MQTT, Reason: flags.ReasonTarget, Override: true}) {
					t.Errorf("%+v, %v", a, err)
				}
				if s.asked.Load() != asked {
					t.Error("the provider was asked about an overridden tenant")
				}
			})
		})
	}
}

// TestOverridesComeFirstInASweep over many tenants of a provider that hangs.
func TestOverridesComeFirstInASweep(t *testing.T) {
	s := startService(t, dialects["ofrep"])
	url := migrated(t)
	pool := openPool(t, url)
	c := overriddenClient(t, s, url, func(o *flags.RemoteOptions) { o.Timeout = 100 * time.Millisecond })
	await(t, c, "a", is(flags.Live))
	s.do(s.hang)
	var tenants, theirs []string
	for i := range 1000 {
		tenants = append(tenants, fmt.Sprint("t", i))
		if i%10 == 0 {
			theirs = append(theirs, fmt.Sprint("t", i))
		}
	}
	if _, err := flags.OpenStore(pool).SetTargets(t.Context(), theirs, flags.MQTT, "test", ""); err != nil {
		t.Fatal(err)
	}
	awaitOverride(t, c, "t0", flags.MQTT, true)
	answers, n := 0, 0
	c.EvaluateAll(t.Context(), tenants, func(tenant string, a flags.Answer, err error) {
		if err == nil {
			if answers++; n >= len(theirs) || !a.Override {
				t.Errorf("%s has an answer after %d others: %+v", tenant, n, a)
			}
		}
		n++
	})
	if answers != len(theirs) || n != len(tenants) {
		t.Errorf("%d answers of %d", answers, n)
	}
}

// TestOverrideIsTakenBack: the tenant follows the provider again; the store's own
// default and percentage are not looked at.
func TestOverrideIsTakenBack(t *testing.T) {
	s := startService(t, dialects["flagd v2"])
	url := migrated(t)
	pool := openPool(t, url)
	store := flags.OpenStore(pool)
	must(t, store.SetDefault(t.Context(), flags.JetStream, "test"))
	must(t, store.SetPercent(t.Context(), 100, flags.Shadow, "test"))
	c := overriddenClient(t, s, url, nil)
	await(t, c, "a", is(flags.Live))
	setTarget(t, pool, "a", flags.MQTT)
	awaitOverride(t, c, "a", flags.MQTT, true)
	if _, err := store.ClearTargets(t.Context(), []string{"a"}); err != nil {
		t.Fatal(err)
	}
	awaitOverride(t, c, "a", "", false)
	await(t, c, "a", is(flags.Live))
}

// TestOverrideThatIsSetMeanwhile counts, whatever the provider then says.
func TestOverrideThatIsSetMeanwhile(t *testing.T) {
	s := startService(t, dialects["ofrep"])
	url := migrated(t)
	pool := openPool(t, url)
	asked, goOn := make(chan struct{}), make(chan struct{})
	s.do(func(w http.ResponseWriter, _ *http.Request, tenant string) {
		if tenant == "a" {
			asked <- struct{}{}
			<-goOn
		}
		s.value(w, `"jetstream"`, "STATIC")
	})
	c := s.client(t, func(o *flags.RemoteOptions) { o.Timeout = time.Hour }, func(o *flags.Options) {
		store, err := flags.NewStoreProvider(storeOptions(t, url))
		must(t, err)
		o.Overrides, o.Timeout = store, time.Hour
	})
	await(t, c, "b", is(flags.JetStream))
	done := make(chan flags.Answer)
	go func() {
		a, err := c.Evaluate(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		done <- a
	}()
	<-asked
	setTarget(t, pool, "a", flags.MQTT)
	awaitOverride(t, c, "a", flags.MQTT, true)
	close(goOn)
	if a := <-done; a.Variant != flags.MQTT || !a.Override {
		t.Errorf("%+v", a)
	}
}

// TestUnreadableOverrides: nobody knows who is overridden, so nobody moves, however
// clean the provider's answer is.
func TestUnreadableOverrides(t *testing.T) {
	s := startService(t, dialects["ofrep"])
	url := migrated(t)
	pool := openPool(t, url)
	setTarget(t, pool, "a", flags.MQTT)
	c := overriddenClient(t, s, url, nil)
	await(t, c, "a", is(flags.MQTT))
	await(t, c, "b", is(flags.Live))
	exec(t, pool, `ALTER TABLE crossfade_flag_targets RENAME TO away`)
	exec(t, pool, `NOTIFY crossfade_flags`)
	limit := time.After(deadline)
	for {
		v, err := c.Desired(t.Context(), "b")
		if fails(flags.CauseNotReady)(v, err) && strings.Contains(err.Error(), "overrides cannot be read") {
			break
		}
		select {
		case <-c.OverrideChanges():
		case <-limit:
			t.Fatalf("%q, %v", v, err)
		}
	}
	if v, err := c.Desired(t.Context(), "a"); !fails(flags.CauseNotReady)(v, err) {
		t.Errorf("%q, %v", v, err)
	}
	if err := c.Health(); err == nil || !strings.Contains(err.Error(), "overrides") {
		t.Errorf("health: %v", err)
	}
	exec(t, pool, `ALTER TABLE away RENAME TO crossfade_flag_targets`)
	awaitOverride(t, c, "a", flags.MQTT, true)
	await(t, c, "b", is(flags.Live))
}
