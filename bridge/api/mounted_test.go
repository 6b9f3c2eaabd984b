package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crossfade-io/crossfade/bridge/ingest"
	"github.com/crossfade-io/crossfade/jetstream"
)

// taker takes every message.
type taker struct{}

func (taker) PublishAll(_ context.Context, messages []jetstream.IngestMessage) []error {
	return make([]error, len(messages))
}

// withIngest mounts the ingest operations, as an installation with NATS has them.
func withIngest(_ *Config, p *Parts) {
	p.Mount = append(p.Mount, func(a huma.API, auth *Auth) error {
		o := ingest.DefaultOptions()
		o.Publisher, o.Authenticator, o.MaxBody, o.MaxBatchBody = taker{}, auth, MaxBody, MaxBatch
		return ingest.Register(a, o)
	})
}

const batchPath = "/ingest/v1/batch"

func batchOf(tenant string, n int) string {
	item := fmt.Sprintf(`{"tenant_id":%q,"device_id":"d1","msg_type":"telemetry","payload":{}}`, tenant)
	return `{"messages":[` + strings.Repeat(item+",", n-1) + item + `]}`
}

// TestStrangersDoNotCount: as many who never send their body as there may be requests at
// once keep nobody else from anything, if they have no token.
func TestStrangersDoNotCount(t *testing.T) {
	const n = 4
	r := newRig(t, withIngest, func(c *Config, _ *Parts) { c.MaxRequests = n })
	for range n {
		conn, err := net.Dial("tcp", r.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n", batchPath)
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%v %v", res, err)
		}
	}
	r.want(200, r.as("GET", shadowPath, ""))
}

// TestBatchCounts: a message in a batch is a request to the rates, and a stranger's batch
// one look-up, or none where he has no token at all.
func TestBatchCounts(t *testing.T) {
	r := newRig(t, withIngest, func(c *Config, _ *Parts) { c.DeviceRate, c.TokenRate = 1, 2 })
	now := time.Now()
	r.auth.now = func() time.Time { return now }
	device := []string{headerTenant, "t1", headerDevice, "d1", headerToken, "tok-1"}
	for _, c := range []struct {
		n, status, accepted int
		headers             []string
	}{
		{3, 202, 3, device}, {3, 207, 1, device}, {3, 429, 0, device},
		{10, 207, 8, []string{"Authorization", "Bearer " + r.token}}, {1, 429, 0, []string{"Authorization", "Bearer " + r.token}},
	} {
		a := r.call("POST", batchPath, batchOf("t1", c.n), c.headers...)
		if a.StatusCode != c.status || c.accepted > 0 && !strings.Contains(a.body, fmt.Sprintf(`"accepted":%d,"rejected":%d,`, c.accepted, c.n-c.accepted)) || (a.Header.Get("Retry-After") == "1") != (c.accepted < c.n) {
			t.Errorf("%d messages: %d %v %s", c.n, a.StatusCode, a.Header, a.body)
		}
	}
	r.want(429, r.dev("GET", "/device/v1/shadow", ""))
	r.want(429, r.as("GET", shadowPath, ""))
	now = now.Add(time.Hour)
	if a := r.call("POST", batchPath, batchOf("t2", 2), "Authorization", "Bearer "+r.token); a.StatusCode != 207 || strings.Count(a.body, `"status":403`) != 2 {
		t.Errorf("another tenant's: %d %s", a.StatusCode, a.body)
	}
	reader := r.newToken(NewToken{Name: "reader", Tenant: "t1", Scopes: []string{ScopeRead}})
	r.want(403, r.call("POST", batchPath, batchOf("t1", 1), "Authorization", "Bearer "+reader))
	r.pool.Close() // nothing can be looked up any more
	for _, path := range []string{batchPath, "/ingest/v1/tenant/t1/device/d1/telemetry", "/device/v1/shadow/reported"} {
		r.want(401, r.call("POST", path, batchOf("t1", 2), headerTenant, "t1", headerDevice, "new"))
	}
	r.want(503, r.call("POST", batchPath, batchOf("t1", 2), headerTenant, "t1", headerDevice, "new", headerToken, "x"))
}

// TestTruncatedBody is the client's doing: no 5xx, and no trouble.
func TestTruncatedBody(t *testing.T) {
	r := newRig(t, withIngest)
	for path, route := range map[string]string{batchPath: "POST /ingest/v1/batch", "/v1/tenants/t1/devices/d1/commands": "POST /v1/tenants/{tenant}/devices/{device}/commands"} {
		conn, err := net.Dial("tcp", r.Address())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{", path, r.token)
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || res.StatusCode != http.StatusRequestTimeout {
			t.Errorf("%s: %v %v", path, res, err)
		}
		devstack.Await(t, "it is counted", func() bool { return r.counted("499 "+route) == 1 })
		conn.Close()
	}
	if err := r.Health(); err != nil || strings.Contains(r.log.String(), `"level":"ERROR"`) {
		t.Errorf("health %v, log %s", err, r.log)
	}
}

// deaf is a client that takes nothing of the answer.
type deaf struct{ discard }

func (deaf) Write([]byte) (int, error) {
	return 0, &net.OpError{Op: "write", Net: "tcp", Err: os.ErrDeadlineExceeded}
}

// TestDeafClient: an answer that cannot be written is no failure of ours, and counts for
// the route; a panic does and is.
func TestDeafClient(t *testing.T) {
	r := newRig(t, func(_ *Config, p *Parts) {
		p.Mount = append(p.Mount, func(a huma.API, _ *Auth) error {
			huma.Register(a, huma.Operation{OperationID: "panic", Method: http.MethodGet, Path: "/panic"}, func(context.Context, *struct{}) (*struct{}, error) { panic(errors.New("ours")) })
			return nil
		})
	})
	get := func(w http.ResponseWriter, path string) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+r.token)
		r.ServeHTTP(w, req)
	}
	get(deaf{discard{http.Header{}}}, shadowPath)
	if n := r.counted("499 GET /v1/tenants/{tenant}/devices/{device}/shadow"); n != 1 || r.Health() != nil || strings.Contains(r.log.String(), `"level":"ERROR"`) {
		t.Errorf("counted %v, health %v, log %s", n, r.Health(), r.log)
	}
	get(deaf{discard{http.Header{}}}, "/panic")
	if n := r.counted("500 GET /panic"); n != 1 || r.Health() == nil || !strings.Contains(r.log.String(), "panic: ours") {
		t.Errorf("counted %v, health %v, log %s", n, r.Health(), r.log)
	}
}

// TestListBytes: a list ends where it gets too large, and says so; the first is always
// in it.
func TestListBytes(t *testing.T) {
	r := newRig(t)
	fill := func(n, size int) {
		r.exec(`DELETE FROM device_commands`)
		r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, command_params, created_at, status)
SELECT 't1', 'c' || i, 'd1', 'x', jsonb_build_object('a', repeat('x', $2)), now() - i * interval '1 minute', 'queued' FROM generate_series(1, $1) AS i`, n, size)
	}
	for _, c := range []struct {
		n, size, want int
		cut           bool
	}{{50, 100_000, 10, true}, {3, 2_000_000, 1, true}, {1, 2_000_000, 1, false}, {10, 100_000, 10, false}, {0, 0, 0, false}} {
		fill(c.n, c.size)
		for _, a := range []answer{r.as("GET", "/v1/tenants/t1/devices/d1/commands?limit=100", ""), r.dev("GET", "/device/v1/commands/pending?limit=50", "")} {
			var list struct {
				Commands []struct {
					ID string `json:"command_id"`
				}
				Cut bool
			}
			r.want(200, a).json(t, &list)
			if len(list.Commands) != c.want || list.Cut != c.cut {
				t.Errorf("%s of %d with %d bytes: %d, cut %t", a.Request.URL.Path, c.n, c.size, len(list.Commands), list.Cut)
			}
		}
	}
	fill(2, 10)
	if a := r.as("GET", "/v1/tenants/t1/devices/d1/commands?limit=1", ""); strings.Contains(a.body, "cut") || !strings.Contains(a.body, `"c1"`) {
		t.Errorf("the limit cuts nothing: %s", a.body)
	}
}

// TestNumbers that PostgreSQL would write out with thousands of zeros are refused before
// it is asked; what a double can hold is not.
func TestNumbers(t *testing.T) {
	r := newRig(t)
	for number, status := range map[string]int{
		"1e-16383": 422, "0e-16383": 422, "0e+16383": 422, "1E-401": 422, "-1e-00401": 422, "1e-400": 422, "1e400": 422, "1e131071": 422, "0.0e-99999999999999999999": 422, "1e-325": 422,
		"0." + strings.Repeat("0", 400) + "1": 422,
		"1e-300":                              200, "1e308": 200, "5e-324": 200, "0e-400": 200, "0": 200, "-0.0": 200, "0.00": 200, "1e+00000000010": 200, "12345678901234567890.123456789": 200,
	} {
		r.want(status, r.as("PUT", desiredPath, `{"desired":{"a":[{"b":`+number+`}]}}`))
		if status == 200 {
			status = 201
		}
		r.want(status, r.as("POST", "/v1/tenants/t1/devices/d1/commands", `{"type":"x","params":{"a":[`+number+`]}}`))
	}
}

// counted is how often a code and route were counted.
func (r *rig) counted(what string) (n float64) {
	r.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "crossfade_api_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			if strings.Join(labels, " ") == what {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}
