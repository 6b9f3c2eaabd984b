package bridge_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/api"
)

// TestHTTPAPI: a device that speaks HTTP only, of a tenant in stage mqtt, on an
// instance without an MQTT subscription, and a back end without SQL. What either says
// takes effect, and the other sees it.
func TestHTTPAPI(t *testing.T) {
	s := newStack(t)
	c := s.config("a")
	c.MQTT, c.Mirror = nil, nil
	ac := api.DefaultConfig()
	ac.Listen = "127.0.0.1:0"
	c.API = &ac
	i := s.start(c)
	if _, err := s.pool.Exec(t.Context(), `INSERT INTO device_registry (tenant_id, device_id, site_id, provision_token_hash) VALUES ('acme', 'd1', 's1', encode(sha256('tok'), 'hex'))`); err != nil {
		t.Fatal(err)
	}
	secret, _, err := api.CreateToken(t.Context(), s.pool, api.NewToken{Name: "console", Tenant: "acme", Scopes: api.Scopes()})
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	call := func(want int, method, path, body string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+i.APIAddress()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		req.Header.Set("X-Tenant-ID", "acme")
		req.Header.Set("X-Device-ID", "d1")
		req.Header.Set("X-Provision-Token", "tok")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != want {
			t.Fatalf("%s %s: %d, want %d: %v\n%s", method, path, res.StatusCode, want, err, answer)
		}
		return string(answer)
	}
	const base = "/v1/tenants/acme/devices/d1"
	call(200, "PUT", base+"/shadow/desired", `{"desired":{"mode":"eco"}}`)
	if got := call(200, "GET", "/device/v1/shadow", ""); strings.TrimSpace(got) != `{"desired":{"mode":"eco"},"version":1}` {
		t.Errorf("the device is told %s", got)
	}
	call(202, "POST", "/device/v1/shadow/reported", `{"reported":{"mode":"eco"},"version":1}`)
	devstack.Await(t, "the back end sees what the device reports", func() bool {
		var sh api.Shadow
		if err := json.Unmarshal([]byte(call(200, "GET", base+"/shadow", "")), &sh); err != nil {
			t.Fatal(err)
		}
		return string(sh.Reported) == `{"mode":"eco"}` && sh.ReportedVersion == 1
	})
	call(201, "POST", base+"/commands", `{"command_id":"c1","type":"reboot"}`)
	if got := call(200, "GET", "/device/v1/commands/pending", ""); !strings.Contains(got, `"command_id":"c1"`) {
		t.Errorf("pending: %s", got)
	}
	call(202, "POST", "/device/v1/commands/c1/ack", `{"details":{"took":3}}`)
	devstack.Await(t, "the command is delivered", func() bool {
		var c api.Command
		if err := json.Unmarshal([]byte(call(200, "GET", base+"/commands/c1", "")), &c); err != nil {
			t.Fatal(err)
		}
		return c.Status == "delivered" && c.Acked != nil && string(*c.AckDetails) == `{"took":3}`
	})
	if got := call(200, "GET", "/device/v1/commands/pending", ""); strings.TrimSpace(got) != `{"commands":[]}` {
		t.Errorf("pending after the acknowledgement: %s", got)
	}
	call(202, "POST", "/ingest/v1/tenant/acme/device/d1/telemetry", `{"site_id":"s1","ts":"2026-01-01T00:00:00Z","metrics":{"a":1}}`)
	devstack.Await(t, "telemetry is written", func() bool { return s.count(`SELECT count(*) FROM telemetry WHERE device_id = 'd1'`) == 1 })
	if n := s.count(`SELECT count(*) FROM quarantine_events`); n != 0 {
		t.Errorf("%d messages are in quarantine", n)
	}
	if st, ok := i.Ready().Checks["api"]; !ok || !st.OK || st.Required {
		t.Errorf("readiness: %+v", st)
	}
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
	if _, err := http.DefaultClient.Get("http://" + i.APIAddress() + "/openapi.json"); err == nil {
		t.Error("it serves after it has stopped")
	}
}

// TestAPIAddressTaken is an error of Run that names it; without a configuration there
// is no API.
func TestAPIAddressTaken(t *testing.T) {
	s := newStack(t)
	first := s.config("a")
	first.Mirror = nil
	ac := api.DefaultConfig()
	ac.Listen = "127.0.0.1:0"
	first.API = &ac
	i := s.start(first)
	devstack.Await(t, "the API is served", func() bool { return i.APIAddress() != "" })
	second := s.config("b")
	second.Mirror = nil
	taken := ac
	taken.Listen = i.APIAddress()
	second.API = &taken
	b, err := bridge.New(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), taken.Listen) {
		t.Errorf("Run = %v, want an error that names %s", err, taken.Listen)
	}
	if n := s.count(`SELECT count(*) FROM crossfade_instances WHERE instance_id = 'b' AND state = 'running'`); n != 0 {
		t.Error("the second is still signed on")
	}
}
