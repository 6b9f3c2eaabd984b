package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"
	"gopkg.in/yaml.v3"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// TestTLS: with a certificate the API speaks HTTPS and nothing else, no old TLS, and
// takes a renewed certificate without a restart.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	authority, err := devstack.NewAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := authority.Issue(devstack.Certificate{Name: "api", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config, _ *Parts) { c.CertFile, c.KeyFile = cert, key })
	pem, err := os.ReadFile(authority.File())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	plain := *r.client
	r.client, r.url = &http.Client{Transport: transport}, "https://"+r.Address()
	a := r.want(200, r.as("PUT", desiredPath, `{"desired":{"a":1}}`))
	if a.ProtoMajor != 2 || a.TLS == nil {
		t.Errorf("%s", a.Proto)
	}
	r.want(401, r.call("GET", shadowPath, ""))
	res, err := plain.Get("http://" + r.Address() + "/openapi.json")
	if err != nil || res.StatusCode != http.StatusBadRequest {
		t.Errorf("plain HTTP: %v %v", res, err)
	}
	if err == nil {
		res.Body.Close()
	}
	if conn, err := tls.Dial("tcp", r.Address(), &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is spoken")
	}
	serial := func(certs *certificates) string {
		c, err := certs.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.SerialNumber.String()
	}
	certs := &certificates{cert: cert, key: key, log: slog.New(slog.DiscardHandler)}
	if err := certs.load(); err != nil {
		t.Fatal(err)
	}
	old := serial(certs)
	later := time.Now().Add(time.Hour)
	if _, _, err := authority.Issue(devstack.Certificate{Name: "api", Hosts: []string{"127.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chtimes(cert, later, later), os.Chtimes(key, later, later)); err != nil {
		t.Fatal(err)
	}
	if got := serial(certs); got != old {
		t.Error("the files are looked at for every connection")
	}
	certs.looked = time.Now().Add(-certificateBeat)
	renewed := serial(certs)
	if renewed == old {
		t.Error("a renewed certificate is not taken")
	}
	if err := errors.Join(os.WriteFile(key, []byte("half a file"), 0o600), os.Chtimes(key, time.Now(), time.Now())); err != nil {
		t.Fatal(err)
	}
	certs.looked = time.Now().Add(-certificateBeat)
	if got := serial(certs); got != renewed {
		t.Error("a certificate that cannot be used took the place of one that can")
	}
}

// TestDocument: the OpenAPI document can be read, names every operation with its
// errors and who may call it, and points to no other host.
func TestDocument(t *testing.T) {
	r := newRig(t, func(_ *Config, p *Parts) {
		p.Mount = append(p.Mount, func(a huma.API, auth *Auth) error {
			if auth == nil {
				return errors.New("no Auth")
			}
			huma.Register(a, huma.Operation{OperationID: "mounted", Method: http.MethodGet, Path: "/mounted"}, func(context.Context, *struct{}) (*struct{}, error) { return nil, nil })
			return nil
		})
	})
	a := r.want(200, r.call("GET", "/openapi.json", ""))
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Schemas         map[string]json.RawMessage
			SecuritySchemes map[string]json.RawMessage
		}
	}
	a.json(t, &doc)
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || a.Header.Get("Content-Type") != "application/openapi+json" {
		t.Errorf("OpenAPI %q, %s", doc.OpenAPI, a.Header.Get("Content-Type"))
	}
	const base = "/v1/tenants/{tenant}/devices/{device}"
	want := map[string]string{
		"put " + base + "/shadow/desired": "bearer", "delete " + base + "/shadow/desired": "bearer", "get " + base + "/shadow": "bearer",
		"post " + base + "/commands": "bearer", "get " + base + "/commands": "bearer", "get " + base + "/commands/{id}": "bearer",
		"get /device/v1/shadow": "provisionToken", "post /device/v1/shadow/reported": "provisionToken",
		"get /device/v1/commands/pending": "provisionToken", "post /device/v1/commands/{id}/ack": "provisionToken", "get /mounted": "",
	}
	for path, methods := range doc.Paths {
		for method, raw := range methods {
			var op struct {
				OperationID string
				Security    []map[string][]string
				Responses   map[string]struct{ Content map[string]json.RawMessage }
				Parameters  []struct{ Name, In string }
				RequestBody *struct {
					Content map[string]struct {
						Schema struct {
							Type, Ref  string
							Properties map[string]json.RawMessage
						}
					}
				}
			}
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Error(err)
			}
			scheme, known := want[method+" "+path]
			delete(want, method+" "+path)
			if !known || op.OperationID == "" || scheme != "" && (len(op.Security) != 1 || op.Security[0][scheme] == nil) {
				t.Errorf("%s %s: %s", method, path, raw)
			}
			if scheme == "" {
				continue
			}
			for _, status := range []string{"401", "403", "429", "503"} {
				if _, ok := op.Responses[status].Content["application/problem+json"]; !ok {
					t.Errorf("%s %s: %s is no problem", method, path, status)
				}
			}
			if body := op.RequestBody; (method == "put" || method == "post") != (body != nil) || body != nil && (body.Content["application/json"].Schema.Type != "object" || len(body.Content["application/json"].Schema.Properties) == 0) {
				t.Errorf("%s %s: body %s", method, path, raw)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("not in the document: %v", want)
	}
	for name := range map[string]bool{"bearer": true, "provisionToken": true} {
		if doc.Components.SecuritySchemes[name] == nil {
			t.Errorf("security scheme %s is missing", name)
		}
	}
	for rest := a.body; ; {
		_, after, found := strings.Cut(rest, `"$ref":"#/components/schemas/`)
		if !found {
			break
		}
		name, tail, _ := strings.Cut(after, `"`)
		if rest = tail; doc.Components.Schemas[name] == nil {
			t.Errorf("schema %s is missing", name)
		}
	}
	var same map[string]any
	y := r.want(200, r.call("GET", "/openapi.yaml", ""))
	if err := yaml.Unmarshal([]byte(y.body), &same); err != nil || len(same["paths"].(map[string]any)) != len(doc.Paths) {
		t.Errorf("YAML: %v", err)
	}
	for _, host := range []string{"unpkg", "<script"} {
		if strings.Contains(a.body+y.body, host) {
			t.Errorf("the document speaks of %s", host)
		}
	}
}

// TestMetrics are by route, never by what stands in a path.
func TestMetrics(t *testing.T) {
	r := newRig(t)
	r.want(200, r.as("GET", shadowPath, ""))
	r.want(404, r.as("GET", "/v1/tenants/t1/devices/secret-name/shadow", ""))
	r.want(404, r.as("GET", "/secret-name", ""))
	r.want(405, r.as("PATCH", shadowPath, ""))
	count := func() map[string]float64 {
		found := map[string]float64{}
		families, err := r.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				text := m.String()
				if strings.Contains(text, "secret-name") || strings.Contains(text, "d1") {
					t.Errorf("a metric by name: %s", text)
				}
				if f.GetName() == "crossfade_api_requests_total" {
					key := ""
					for _, l := range m.GetLabel() {
						key += l.GetValue() + " "
					}
					found[strings.TrimSpace(key)] = m.GetCounter().GetValue()
				}
			}
		}
		return found
	}
	const route = "GET /v1/tenants/{tenant}/devices/{device}/shadow"
	devstack.Await(t, "all four are counted", func() bool {
		c := count()
		return c["200 "+route] == 1 && c["404 "+route] == 1 && c["404 unmatched"] == 1 && c["405 unmatched"] == 1
	})
}

// TestTooMany at once, or too much of a header, is turned away.
func TestTooMany(t *testing.T) {
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	r := newRig(t, func(c *Config, p *Parts) {
		c.MaxRequests = 1
		p.Mount = append(p.Mount, func(a huma.API, _ *Auth) error {
			huma.Register(a, huma.Operation{OperationID: "slow", Method: http.MethodGet, Path: "/slow"}, func(context.Context, *struct{}) (*struct{}, error) {
				entered <- struct{}{}
				<-leave
				return nil, nil
			})
			return nil
		})
	})
	done := make(chan answer, 1)
	go func() {
		a, _ := r.send("GET", "/slow", nil)
		done <- a
	}()
	<-entered
	if a := r.want(503, r.as("GET", shadowPath, "")); a.Header.Get("Retry-After") == "" {
		t.Errorf("headers %v", a.Header)
	}
	close(leave)
	if a := <-done; a.Response == nil || a.StatusCode != http.StatusNoContent {
		t.Errorf("the slow one: %v", a.Response)
	}
	r.want(200, r.as("GET", shadowPath, ""))
	// A header that never ends.
	conn, err := net.Dial("tcp", r.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /openapi.json HTTP/1.1\r\nHost: x\r\nX-Long: ")
	go func() { _, _ = io.Copy(conn, strings.NewReader(strings.Repeat("x", 1<<20))) }()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a long header: %v %v", res, err)
	}
}

// TestChunked: a body whose length is not told is bounded as well.
func TestChunked(t *testing.T) {
	r := newRig(t)
	body := io.MultiReader(strings.NewReader(`{"desired":{"a":"`), strings.NewReader(strings.Repeat("x", MaxBatch)), strings.NewReader(`"}}`))
	a, err := r.send("PUT", desiredPath, body, "Authorization", "Bearer "+r.token)
	if err != nil {
		t.Fatal(err)
	}
	r.want(413, a)
}

// TestPanic in an operation ends that request and no other.
func TestPanic(t *testing.T) {
	r := newRig(t, func(_ *Config, p *Parts) {
		p.Mount = append(p.Mount, func(a huma.API, _ *Auth) error {
			huma.Register(a, huma.Operation{OperationID: "panic", Method: http.MethodGet, Path: "/panic"}, func(context.Context, *struct{}) (*struct{}, error) { panic("hunter2") })
			return nil
		})
	})
	if a := r.want(500, r.call("GET", "/panic", "")); strings.Contains(a.body, "hunter2") {
		t.Error(a.body)
	}
	devstack.Await(t, "it is in the log", func() bool { return strings.Contains(r.log.String(), "panic: hunter2") })
	r.want(200, r.as("GET", shadowPath, ""))
}

// TestStartAndStop in any order, and what cannot be.
func TestStartAndStop(t *testing.T) {
	r := newRig(t)
	parts := func() Parts {
		return Parts{Pool: r.pool, Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)}
	}
	c := DefaultConfig()
	c.Listen = r.Address()
	taken, err := New(c, parts())
	if err != nil {
		t.Fatal(err)
	}
	if err := taken.Start(); err == nil || !strings.Contains(err.Error(), "--api-listen") {
		t.Errorf("an address that is taken: %v", err)
	}
	if err := taken.Health(); err == nil {
		t.Error("a server that does not serve is healthy")
	}
	c.Listen = "127.0.0.1:0"
	early, err := New(c, parts())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(early.Stop(t.Context()), early.Stop(t.Context())); err != nil {
		t.Errorf("stopped before it was started: %v", err)
	}
	if err := early.Start(); err == nil {
		t.Error("started after it was stopped")
	}
	if err := r.Start(); err == nil {
		t.Error("started twice")
	}
	if err := errors.Join(r.Stop(t.Context()), r.Stop(t.Context())); err != nil {
		t.Errorf("stopped twice: %v", err)
	}
	if _, err := r.send("GET", "/openapi.json", nil); err == nil {
		t.Error("it serves after it was stopped")
	}
	failing := parts()
	failing.Mount = append(failing.Mount, func(huma.API, *Auth) error { return errors.New("no") })
	if _, err := New(c, failing); err == nil {
		t.Error("what cannot be mounted is left out without a word")
	}
	if _, err := New(c, Parts{}); err == nil {
		t.Error("without its parts it is made")
	}
}

func TestConfig(t *testing.T) {
	for field, spoil := range map[string]func(*Config){
		"Listen":         func(c *Config) { c.Listen = "8443" },
		"AllowPlaintext": func(c *Config) { c.Listen = "0.0.0.0:0" },
		"KeyFile":        func(c *Config) { c.CertFile = "x" },
		"CertFile":       func(c *Config) { c.CertFile, c.KeyFile = "/nonexistent", "/nonexistent" },
		"MaxConns":       func(c *Config) { c.MaxConns = 1 },
		"DeviceRate":     func(c *Config) { c.DeviceRate = -1 },
		"TokenRate":      func(c *Config) { c.TokenRate = 1e7 },
		"MaxRequests":    func(c *Config) { c.MaxRequests = 0 },
		"MaxConnections": func(c *Config) { c.MaxConnections = 0 },
		"RequestTimeout": func(c *Config) { c.RequestTimeout = 0 },
		"AuthTTL":        func(c *Config) { c.AuthTTL = time.Hour },
	} {
		c := DefaultConfig()
		c.Listen = "127.0.0.1:0"
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		spoil(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	c := DefaultConfig()
	c.Listen, c.AllowPlaintext = "0.0.0.0:0", true
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
