package api

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline"
)

// backendCalls are all operations of back ends, with the scopes that allow them.
var backendCalls = []struct {
	method, path, body string
	status             int
	scopes             []string
}{
	{"PUT", "/shadow/desired", `{"desired":{"a":1}}`, 200, []string{ScopeShadow}},
	{"DELETE", "/shadow/desired", "", 200, []string{ScopeShadow}},
	{"GET", "/shadow", "", 200, []string{ScopeRead, ScopeShadow}},
	{"POST", "/commands", `{"type":"x","command_id":"c1"}`, 201, []string{ScopeCommands}},
	{"GET", "/commands", "", 200, []string{ScopeRead, ScopeCommands}},
	{"GET", "/commands/c1", "", 200, []string{ScopeRead, ScopeCommands}},
}

// TestBearer: every operation asks for a token of the tenant with the scope, and what
// it answers tells nothing of tenants and devices that the token is not for.
func TestBearer(t *testing.T) {
	r := newRig(t)
	expired := r.newToken(NewToken{Name: "expired", Tenant: "t1", Scopes: Scopes(), Expires: time.Hour})
	r.exec(`UPDATE crossfade_api_tokens SET expires_at = now() - interval '1 second' WHERE name = 'expired'`)
	revoked := r.newToken(NewToken{Name: "revoked", Tenant: "t1", Scopes: Scopes()})
	r.exec(`UPDATE crossfade_api_tokens SET revoked_at = now() WHERE name = 'revoked'`)
	other := r.newToken(NewToken{Name: "other", Tenant: "t2", Scopes: Scopes()})
	everybody := r.newToken(NewToken{Name: "everybody", Scopes: Scopes()})
	const base = "/v1/tenants/t1/devices/d1"
	for _, c := range backendCalls {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			r := *r
			r.T = t
			for what, header := range map[string]string{
				"none": "", "empty": "Bearer ", "another scheme": "Basic " + r.token, "no scheme": r.token, "wrong": "Bearer " + r.token + "x", "cut": "Bearer " + r.token[:30],
				"its hash": "Bearer " + hashOf(r.token), "long": "Bearer " + strings.Repeat("x", 8000), "SQL": "Bearer ' OR true --", "expired": "Bearer " + expired, "revoked": "Bearer " + revoked,
				"a device's": "Bearer tok-1",
			} {
				a := r.want(401, r.call(c.method, base+c.path, c.body, "Authorization", header, headerTenant, "t1", headerDevice, "d1", headerToken, "tok-1"))
				if !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer") || a.Header.Get("ETag") != "" {
					t.Errorf("%s: headers %v", what, a.Header)
				}
			}
			// Another tenant's token gets one answer, whatever is or is not there.
			var bodies []string
			for _, path := range []string{base, "/v1/tenants/t1/devices/nobody", "/v1/tenants/nobody/devices/d1", "/v1/tenants/T2/devices/d1", "/v1/tenants/t2%00/devices/d1", "/v1/tenants/%20t2/devices/d1"} {
				a := r.want(403, r.call(c.method, path+c.path, c.body, "Authorization", "Bearer "+other))
				bodies = append(bodies, fmt.Sprint(a.body, len(a.Header)))
			}
			for _, b := range bodies {
				if b != bodies[0] {
					t.Errorf("another tenant's token is told apart: %s, %s", b, bodies[0])
				}
			}
			for _, scope := range Scopes() {
				status := 403
				for _, s := range c.scopes {
					if s == scope {
						status = c.status
					}
				}
				if status == 201 { // made once
					r.exec(`DELETE FROM device_commands`)
				}
				one := r.newToken(NewToken{Name: "only " + scope, Tenant: "t1", Scopes: []string{scope}})
				a := r.want(status, r.call(c.method, base+c.path, c.body, "Authorization", "bearer  "+one))
				if status == 403 && !strings.Contains(a.body, "scope "+c.scopes[0]) {
					t.Errorf("the scope is not named: %s", a.body)
				}
			}
			if c.status == 201 {
				r.exec(`DELETE FROM device_commands`)
			}
			r.want(c.status, r.call(c.method, base+c.path, c.body, "Authorization", "Bearer "+everybody))
			if c.status == 201 {
				r.want(c.status, r.call(c.method, "/v1/tenants/t2/devices/d1"+c.path, c.body, "Authorization", "Bearer "+everybody))
			}
		})
	}
	for _, secret := range []string{r.token, expired, revoked, other, "tok-1"} {
		if strings.Contains(r.log.String(), secret) {
			t.Errorf("the log has a secret")
		}
	}
	if n := query[int](r, `SELECT count(*)::int FROM device_state WHERE tenant_id <> 't1'`); n != 0 {
		t.Errorf("another tenant's device was written to")
	}
	if n := query[int](r, `SELECT count(*)::int FROM crossfade_api_tokens WHERE last_used_at IS NOT NULL AND name IN ('backend', 'expired', 'revoked')`); n != 0 {
		t.Errorf("tokens that were not used are noted as used")
	}
	if n := query[int](r, `SELECT count(*)::int FROM crossfade_api_tokens WHERE last_used_at > now() - interval '1 minute' AND name IN ('other', 'everybody')`); n != 2 {
		t.Errorf("%d of 2 tokens are noted as used", n)
	}
}

// deviceCalls are all operations of devices.
var deviceCalls = []struct {
	method, path, body string
	status             int
}{
	{"GET", "/device/v1/shadow", "", 200},
	{"POST", "/device/v1/shadow/reported", `{"reported":{}}`, 202},
	{"GET", "/device/v1/commands/pending", "", 200},
	{"POST", "/device/v1/commands/c1/ack", `{}`, 202},
}

// TestDevice: every operation asks for the device's own token, and whoever lacks it is
// told the same of every device.
func TestDevice(t *testing.T) {
	r := newRig(t)
	for _, c := range deviceCalls {
		first := ""
		for _, who := range [][3]string{
			{"t1", "d1", ""}, {"t1", "d1", "tok-2"}, {"t1", "d1", "TOK-1"}, {"t1", "d1", "tok-1x"}, {"t1", "d1", hashOf("tok-1")}, {"t1", "d1", strings.Repeat("x", 9000)},
			{"t1", "d2", ""}, {"t1", "d2", "tok-1"}, {"t1", "d2", "-"}, {"t1", "nobody", "tok-1"}, {"nobody", "d1", "tok-1"}, {"t2", "d1", "tok-1"}, {"T1", "d1", "tok-1"},
			{"", "d1", "tok-1"}, {"t1", "", "tok-1"}, {"", "", ""}, {"t1", "gone", "tok-1"}, {"t1", strings.Repeat("x", 600), "tok-1"}, {"t1\xff", "d1", "tok-1"}, {"t1/d1", "", "tok-1"},
		} {
			a := r.want(401, r.call(c.method, c.path, c.body, headerTenant, who[0], headerDevice, who[1], headerToken, who[2], "Authorization", "Bearer "+r.token))
			if first == "" {
				first = a.body
			}
			if a.body != first || !strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "ProvisionToken") {
				t.Errorf("%s %s: %q is told apart: %s", c.method, c.path, who, a.body)
			}
		}
		r.want(403, r.call(c.method, c.path, c.body, headerTenant, "t1", headerDevice, "gone", headerToken, "tok-g"))
		r.want(c.status, r.dev(c.method, c.path, c.body))
		r.want(c.status, r.call(c.method, c.path, c.body, headerTenant, "t2", headerDevice, "d1", headerToken, "tok-2"))
	}
	if n := len(r.said.list); n != 4 {
		t.Errorf("%d messages were published, want 4", n)
	}
	for _, secret := range []string{"tok-1", "tok-2", "tok-g"} {
		if strings.Contains(r.log.String(), secret) {
			t.Error("the log has a secret")
		}
	}
}

// TestRevokedMeanwhile: what is remembered is believed for the TTL and no longer.
func TestRevokedMeanwhile(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	r.auth.now = func() time.Time { return now }
	expiring := r.newToken(NewToken{Name: "expiring", Tenant: "t1", Scopes: Scopes(), Expires: time.Hour})
	ask := func() [3]int {
		return [3]int{
			r.as("GET", shadowPath, "").StatusCode,
			r.dev("GET", "/device/v1/shadow", "").StatusCode,
			r.call("GET", shadowPath, "", "Authorization", "Bearer "+expiring).StatusCode,
		}
	}
	if got := ask(); got != [3]int{200, 200, 200} {
		t.Fatalf("at first: %v", got)
	}
	if _, err := RevokeToken(t.Context(), r.pool, query[int64](r, `SELECT id FROM crossfade_api_tokens WHERE name = 'backend'`)); err != nil {
		t.Fatal(err)
	}
	r.exec(`UPDATE device_registry SET provision_token_hash = encode(sha256('new'), 'hex')`)
	now = now.Add(r.config.AuthTTL - time.Millisecond)
	if got := ask(); got != [3]int{200, 200, 200} {
		t.Errorf("within the TTL: %v", got)
	}
	now = now.Add(2 * time.Millisecond)
	if got := ask(); got != [3]int{401, 401, 200} {
		t.Errorf("after the TTL: %v", got)
	}
	// An expiry is not believed to be away for a moment.
	r.exec(`UPDATE crossfade_api_tokens SET expires_at = $1 WHERE name = 'expiring'`, now.Add(r.config.AuthTTL+time.Second))
	now = now.Add(r.config.AuthTTL)
	if got := ask(); got != [3]int{401, 401, 200} {
		t.Errorf("before it expires: %v", got)
	}
	now = now.Add(time.Second)
	if got := ask(); got != [3]int{401, 401, 401} {
		t.Errorf("after it has expired, though it is remembered: %v", got)
	}
	// A device that is registered anew is known after the TTL too.
	r.want(401, r.call("GET", "/device/v1/shadow", "", headerTenant, "t1", headerDevice, "d9", headerToken, "t"))
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, provision_token_hash) VALUES ('t1', 'd9', encode(sha256('t'), 'hex'))`)
	now = now.Add(r.config.AuthTTL)
	r.want(200, r.call("GET", "/device/v1/shadow", "", headerTenant, "t1", headerDevice, "d9", headerToken, "t"))
}

// TestRate: whoever comes too often is told when to come again; the others go on.
func TestRate(t *testing.T) {
	r := newRig(t, func(c *Config, _ *Parts) { c.DeviceRate, c.TokenRate = 0.5, 2 })
	now := time.Now()
	r.auth.now = func() time.Time { return now }
	second := r.newToken(NewToken{Name: "second", Tenant: "t1", Scopes: Scopes()})
	for range 8 {
		r.want(200, r.as("GET", shadowPath, ""))
	}
	if a := r.want(429, r.as("GET", shadowPath, "")); a.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", a.Header.Get("Retry-After"))
	}
	r.want(200, r.call("GET", shadowPath, "", "Authorization", "Bearer "+second))
	for range 2 {
		r.want(200, r.dev("GET", "/device/v1/shadow", ""))
	}
	if a := r.want(429, r.dev("GET", "/device/v1/shadow", "")); a.Header.Get("Retry-After") != "2" {
		t.Errorf("Retry-After %q", a.Header.Get("Retry-After"))
	}
	for range 5 { // whoever lacks the token cannot use up the device's share
		r.want(401, r.call("GET", "/device/v1/shadow", "", headerTenant, "t2", headerDevice, "d1", headerToken, "wrong"))
	}
	r.want(200, r.call("GET", "/device/v1/shadow", "", headerTenant, "t2", headerDevice, "d1", headerToken, "tok-2"))
	now = now.Add(2 * time.Second)
	r.want(200, r.dev("GET", "/device/v1/shadow", ""))
	r.want(429, r.dev("GET", "/device/v1/shadow", ""))
}

// TestBounds: neither guessing nor many callers make what is remembered grow.
func TestBounds(t *testing.T) {
	now := time.Now()
	c := newCache[int, int](10, time.Second)
	for i := range 1000 {
		c.put(i, i, now)
	}
	if v, ok := c.get(999, now); len(c.entries) != 10 || !ok || v != 999 {
		t.Errorf("%d entries, the last %v %v", len(c.entries), v, ok)
	}
	c.put(5000, 1, now.Add(time.Second)) // the others are too old
	if len(c.entries) != 1 {
		t.Errorf("%d entries, want 1", len(c.entries))
	}
	if _, ok := c.get(5000, now.Add(2*time.Second)); ok {
		t.Error("it is believed for longer than its time")
	}
	large := newCache[int, int](1000, time.Second)
	for i := range 1001 {
		large.put(i, i, now)
	}
	if n := len(large.entries); n != 901 {
		t.Errorf("%d entries, want a tenth of the room free for the next", n)
	}
	many := newRates[int](1)
	many.max = 1000
	for i := range 1001 {
		many.allow(i, now)
	}
	if n := len(many.due); n != 901 {
		t.Errorf("%d callers, want a tenth of the room free for the next", n)
	}
	if taken, wait := newRates[int](2).take(1, 20, now); taken != 8 || wait != 500*time.Millisecond {
		t.Errorf("%d of 20 at once, the next after %s", taken, wait)
	}
	r := newRates[pipeline.DeviceKey](1)
	r.max = 10
	for i := range 1000 {
		if _, ok := r.allow(pipeline.DeviceKey{Device: fmt.Sprint(i)}, now); !ok {
			t.Fatal("the first request is refused")
		}
	}
	if len(r.due) > 10 {
		t.Errorf("%d callers are remembered", len(r.due))
	}
	if _, ok := newRates[int](0).allow(1, now); !ok {
		t.Error("no limit is one")
	}
}

// TestDatabaseBroken is an error and no word on why; readiness says it, until it is
// over.
func TestDatabaseBroken(t *testing.T) {
	database := devstack.TestDatabase(t)
	if _, err := migrations.Apply(t.Context(), database, nil); err != nil {
		t.Fatal(err)
	}
	r := newRigOn(t, database)
	r.exec(`ALTER TABLE device_registry RENAME TO elsewhere`)
	r.exec(`ALTER TABLE crossfade_api_tokens RENAME TO tokens_elsewhere`)
	for _, c := range backendCalls {
		r.want(http.StatusServiceUnavailable, r.as(c.method, "/v1/tenants/t1/devices/d1"+c.path, c.body))
	}
	a := r.want(http.StatusServiceUnavailable, r.dev("GET", "/device/v1/shadow", ""))
	if a.Header.Get("Retry-After") == "" {
		t.Errorf("headers %v", a.Header)
	}
	r.exec(`ALTER TABLE tokens_elsewhere RENAME TO crossfade_api_tokens`)
	r.want(http.StatusInternalServerError, r.as("GET", shadowPath, ""))
	if err := r.Health(); err == nil || !strings.Contains(err.Error(), "device_registry") {
		t.Errorf("health: %v", err)
	}
	id := a.Header.Get("X-Request-ID")
	devstack.Await(t, "the cause is in the log", func() bool {
		for line := range strings.Lines(r.log.String()) {
			if strings.Contains(line, id) && strings.Contains(line, "device_registry") {
				return true
			}
		}
		return false
	})
	r.exec(`ALTER TABLE elsewhere RENAME TO device_registry`)
	r.want(200, r.as("GET", shadowPath, ""))
	devstack.Await(t, "health is good", func() bool { return r.Health() == nil })
	r.pool.Close() // as if nothing answered
	for _, c := range backendCalls {
		r.want(http.StatusServiceUnavailable, r.as(c.method, "/v1/tenants/t1/devices/d1"+c.path, c.body))
	}
	r.want(http.StatusServiceUnavailable, r.dev("GET", "/device/v1/shadow", ""))
}
