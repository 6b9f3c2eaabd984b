package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// rig is a served API on an empty database, with devices t1/d1 (token "tok-1"),
// t1/d2 (no token), t1/gone (revoked, "tok-g") and t2/d1 ("tok-2"), and a back end's
// token of t1 with every scope.
type rig struct {
	*testing.T
	*Server
	url      string
	pool     *pgxpool.Pool
	client   *http.Client
	token    string
	said     *stream
	log      *devstack.Log
	registry *prometheus.Registry
}

func newRig(t *testing.T, adjust ...func(*Config, *Parts)) *rig {
	t.Helper()
	return newRigOn(t, shared.open(t), adjust...)
}

func newRigOn(t *testing.T, database string, adjust ...func(*Config, *Parts)) *rig {
	t.Helper()
	pool, err := store.NewPool(t.Context(), store.DefaultConfig(database), "crossfade api test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	r := &rig{T: t, pool: pool, said: &stream{}, log: &devstack.Log{}, registry: prometheus.NewRegistry()}
	c := DefaultConfig()
	c.Listen, c.DeviceRate, c.TokenRate = "127.0.0.1:0", 0, 0
	p := Parts{Pool: pool, Publisher: r.said, Registry: r.registry, Logger: slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range adjust {
		f(&c, &p)
	}
	if r.Server, err = New(c, p); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	r.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := r.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	r.url = "http://" + r.Address()
	for _, tables := range []string{"device_state", "device_commands, device_registry, crossfade_downlink, crossfade_desired_versions, crossfade_api_tokens"} {
		r.exec(`TRUNCATE ` + tables)
	}
	for _, d := range []struct{ tenant, device, token, status string }{
		{"t1", "d1", "tok-1", "ACTIVE"}, {"t1", "d2", "", "ACTIVE"}, {"t1", "gone", "tok-g", "REVOKED"}, {"t2", "d1", "tok-2", "ACTIVE"},
	} {
		r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id, status, provision_token_hash) VALUES ($1, $2, 's1', $3, nullif($4, ''))`,
			d.tenant, d.device, d.status, hashOf(d.token))
	}
	r.token = r.newToken(NewToken{Name: "backend", Tenant: "t1", Scopes: Scopes()})
	return r
}

func hashOf(token string) string {
	if token == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(token))
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

func (r *rig) newToken(n NewToken) string {
	r.Helper()
	secret, _, err := CreateToken(r.Context(), r.pool, n)
	if err != nil {
		r.Fatal(err)
	}
	return secret
}

func (r *rig) exec(sql string, args ...any) {
	r.Helper()
	if _, err := r.pool.Exec(r.Context(), sql, args...); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
}

func query[T any](r *rig, sql string, args ...any) (v T) {
	r.Helper()
	if err := r.pool.QueryRow(r.Context(), sql, args...).Scan(&v); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
	return v
}

// answer is what the API said.
type answer struct {
	*http.Response
	body string
}

func (a answer) json(t testing.TB, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		t.Errorf("the answer is not JSON: %v\n%s", err, a.body)
	}
}

// call sends a request, with headers as name, value, name, value.
func (r *rig) call(method, path, body string, headers ...string) answer {
	r.Helper()
	a, err := r.send(method, path, strings.NewReader(body), headers...)
	if err != nil {
		r.Fatal(err)
	}
	return a
}

func (r *rig) send(method, path string, body io.Reader, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(r.Context(), method, r.url+path, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := r.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	return answer{res, string(content)}, err
}

// as is call with the back end's token.
func (r *rig) as(method, path, body string, headers ...string) answer {
	r.Helper()
	return r.call(method, path, body, append([]string{"Authorization", "Bearer " + r.token}, headers...)...)
}

// dev is call by the device t1/d1.
func (r *rig) dev(method, path, body string, headers ...string) answer {
	r.Helper()
	return r.call(method, path, body, append([]string{headerTenant, "t1", headerDevice, "d1", headerToken, "tok-1"}, headers...)...)
}

// want fails unless the status is this, and what is not fine is a problem without
// internals.
func (r *rig) want(status int, a answer) answer {
	r.Helper()
	if a.StatusCode != status {
		r.Errorf("%s %s: %d, want %d\n%s", a.Request.Method, a.Request.URL.Path, a.StatusCode, status, a.body)
	}
	if a.StatusCode >= 400 && a.Request.Method != http.MethodHead {
		if ct := a.Header.Get("Content-Type"); ct != "application/problem+json" {
			r.Errorf("%s %s: %d as %q", a.Request.Method, a.Request.URL.Path, a.StatusCode, ct)
		}
		var p struct {
			Status int
			Title  string
		}
		if err := json.Unmarshal([]byte(a.body), &p); err != nil || p.Status != a.StatusCode || p.Title == "" {
			r.Errorf("%s %s: no problem: %v %s", a.Request.Method, a.Request.URL.Path, err, a.body)
		}
		for _, internal := range []string{"SQLSTATE", "pgx", "goroutine", "device_state", "device_commands", "ERROR:", "127.0.0.1"} {
			if strings.Contains(a.body, internal) {
				r.Errorf("%s %s tells %q: %s", a.Request.Method, a.Request.URL.Path, internal, a.body)
			}
		}
	}
	if a.Header.Get("X-Request-ID") == "" || a.Header.Get("Cache-Control") != "no-store" {
		r.Errorf("%s %s lacks headers: %v", a.Request.Method, a.Request.URL.Path, a.Header)
	}
	return a
}

// stream is where the devices' messages go in these tests.
type stream struct {
	mu   sync.Mutex
	list []message
	fail error
}

type message struct{ tenant, device, msgType, payload string }

func (s *stream) Publish(ctx context.Context, tenant, device, msgType string, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if _, ok := ctx.Deadline(); !ok {
		return errors.New("the request has no end")
	}
	s.list = append(s.list, message{tenant, device, msgType, string(payload)})
	clear(payload) // it is ours
	return nil
}

func (s *stream) last() message {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return message{}
	}
	return s.list[len(s.list)-1]
}
