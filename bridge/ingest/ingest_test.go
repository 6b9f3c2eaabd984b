package ingest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/bridge/ingest"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m)) }

const patience = 30 * time.Second

// people are who may send: device d1 of t1 by its token, gateways by theirs. Of a batch
// so many messages may come as it says.
type people struct {
	mu     sync.Mutex
	asked  int
	atOnce int // 0: no bound
}

var errTooOften = huma.ErrorWithHeaders(huma.Error429TooManyRequests("come more slowly"), http.Header{"Retry-After": {"7"}})

func (p *people) Device(_ context.Context, tenant, device, token string) error {
	p.mu.Lock()
	p.asked++
	p.mu.Unlock()
	switch {
	case device == "away":
		return errors.New("no database: secret-detail")
	case device == "eager":
		return errTooOften
	case device == "revoked":
		return ingest.ErrForbidden
	case tenant == "t1" && token == "tok-"+device && device != "unknown":
		return nil
	}
	return ingest.ErrUnauthorized
}

func (p *people) Bearer(_ context.Context, token, scope, tenant string) error {
	switch {
	case token != "gateway" || scope != "ingest":
		return ingest.ErrUnauthorized
	case tenant == "t2":
		return ingest.ErrForbidden
	}
	return nil
}

func (p *people) Gateway(ctx context.Context, token, scope string) (string, error) {
	if token == "gateway-t1" {
		return "t1", nil
	}
	return "", p.Bearer(ctx, token, scope, "")
}

func (p *people) MoreOfGateway(_ context.Context, token string, n int) (int, error) {
	if token != "gateway" && token != "gateway-t1" {
		return 0, ingest.ErrUnauthorized
	}
	return p.more(n)
}

func (p *people) MoreOfDevice(tenant, device string, n int) (int, error) {
	if tenant != "t1" || device != "d1" {
		return 0, ingest.ErrUnauthorized
	}
	return p.more(n)
}

func (p *people) more(n int) (int, error) {
	if p.atOnce > 0 && 1+n > p.atOnce { // the first was counted
		return p.atOnce - 1, errTooOften
	}
	return n, nil
}

// rig is the two operations on a NATS server.
type rig struct {
	t      *testing.T
	nats   *devstack.NATS
	people *people
	server *httptest.Server
	api    huma.API
	log    *strings.Builder
}

func newRig(t *testing.T, adjust func(*ingest.Options)) *rig {
	t.Helper()
	r := &rig{t: t, nats: devstack.TestNATS(t), people: &people{}, log: &strings.Builder{}}
	cfg := jetstream.DefaultConfig()
	cfg.URLs = []string{r.nats.URL()}
	conn, err := jetstream.Connect(cfg, slog.New(slog.DiscardHandler))
	r.must(err)
	t.Cleanup(func() { r.must(conn.Close(context.Background())) })
	_, err = jetstream.Ensure(t.Context(), conn, jetstream.DefaultSetupOptions())
	r.must(err)
	o := ingest.DefaultOptions()
	o.Publisher, err = jetstream.NewIngest(conn, 2*time.Second)
	r.must(err)
	o.Authenticator = r.people
	o.Logger = slog.New(slog.NewTextHandler(r.log, nil))
	adjust(&o)
	mux := http.NewServeMux()
	r.api = humago.New(mux, huma.DefaultConfig("test", "1"))
	r.must(ingest.Register(r.api, o))
	r.server = httptest.NewServer(mux)
	t.Cleanup(r.server.Close)
	return r
}

func asIs(*ingest.Options) {}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

type headers map[string]string

// post sends a body and returns the status and the answer.
func (r *rig) post(path string, h headers, body string) (int, http.Header, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.server.URL+path, strings.NewReader(body))
	r.must(err)
	req.Header.Set("Content-Type", "application/json")
	for name, value := range h {
		req.Header.Set(name, value)
	}
	res, err := r.server.Client().Do(req)
	r.must(err)
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	r.must(err)
	if res.StatusCode >= 400 && res.Header.Get("Content-Type") != "application/problem+json" {
		r.t.Errorf("%d as %s", res.StatusCode, res.Header.Get("Content-Type"))
	}
	return res.StatusCode, res.Header, string(answer)
}

// stored is what the stream TELEMETRY holds: subject and envelope, which has no ts.
func (r *rig) stored() (list []string) {
	r.t.Helper()
	nc, err := nats.Connect(r.nats.URL())
	r.must(err)
	defer nc.Close()
	js, err := natsjs.New(nc)
	r.must(err)
	stream, err := js.Stream(r.t.Context(), "TELEMETRY")
	r.must(err)
	for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
		m, err := stream.GetMsg(r.t.Context(), seq)
		r.must(err)
		if m.Header.Get("Crossfade-Origin") != "http" {
			r.t.Errorf("message %d says its origin is %q", seq, m.Header.Get("Crossfade-Origin"))
		}
		var envelope map[string]json.RawMessage
		r.must(json.Unmarshal(m.Data, &envelope))
		list = append(list, fmt.Sprintf("%s %s %s", m.Subject, envelope["topic"], envelope["payload"]))
	}
	return list
}

func (r *rig) wantStored(want ...string) {
	r.t.Helper()
	if got := r.stored(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		r.t.Errorf("stored:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

const d1 = "/ingest/v1/tenant/t1/device/d1/telemetry"

// TestSingle: 202 means that the stream has the envelope, with the device's token.
func TestSingle(t *testing.T) {
	r := newRig(t, asIs)
	tok := headers{"X-Provision-Token": "tok-d1"}
	for _, c := range []struct {
		path string
		h    headers
		body string
		want string
	}{
		{d1, tok, `{"seq":1, "x":1.50}`, `telemetry.t1 "tenant/t1/device/d1/telemetry" {"provision_token":"tok-d1","seq":1, "x":1.50}`},
		{d1, tok, ` {} `, `telemetry.t1 "tenant/t1/device/d1/telemetry" {"provision_token":"tok-d1"}`},
		{d1, tok, `{"provision_token":"other"}`, `telemetry.t1 "tenant/t1/device/d1/telemetry" {"provision_token":"other"}`},
		{d1, tok, `{"provision_token":null}`, `telemetry.t1 "tenant/t1/device/d1/telemetry" {"provision_token":null}`},
		{"/ingest/v1/tenant/t1/device/d1/heartbeat", headers{"X-Provision-Token": "tok-d1", "Content-Type": ""}, `{"a":1}`, `telemetry.t1 "tenant/t1/device/d1/heartbeat" {"provision_token":"tok-d1","a":1}`},
		{"/ingest/v1/tenant/t3/device/x%20%C3%A9/telemetry", headers{"Authorization": "Bearer gateway"}, `{"a":1}`, `telemetry.t3 "tenant/t3/device/x é/telemetry" {"a":1}`},
		{d1, headers{"Authorization": "bearer gateway", "X-Provision-Token": `tok-"d9`}, `{"a":1}`, `telemetry.t1 "tenant/t1/device/d1/telemetry" {"provision_token":"tok-\"d9","a":1}`},
	} {
		before := len(r.stored())
		status, _, answer := r.post(c.path, c.h, c.body)
		if status != http.StatusAccepted || !strings.Contains(answer, `"accepted"`) {
			t.Errorf("%s %s: %d %s", c.path, c.body, status, answer)
		}
		if got := r.stored(); len(got) != before+1 || got[before] != c.want {
			t.Errorf("%s %s: stored %q, want %q", c.path, c.body, got[before:], c.want)
		}
	}
}

// TestSingleRefused: whoever may not, and whatever cannot be a message, stores nothing.
func TestSingleRefused(t *testing.T) {
	r := newRig(t, func(o *ingest.Options) { o.MaxBody = 100 })
	tok := headers{"X-Provision-Token": "tok-d1"}
	gateway := headers{"Authorization": "Bearer gateway"}
	device := func(d string) string { return "/ingest/v1/tenant/t1/device/" + d + "/telemetry" }
	for _, c := range []struct {
		path   string
		h      headers
		body   string
		status int
		want   string
	}{
		{d1, nil, `{}`, 401, "X-Provision-Token"},
		{d1, headers{"X-Provision-Token": "wrong"}, `{}`, 401, "X-Provision-Token"},
		{d1, headers{"Authorization": "Bearer wrong", "X-Provision-Token": "tok-d1"}, `{}`, 401, "ingest"},
		{d1, headers{"Authorization": "Basic gateway"}, `{}`, 401, ""},
		{device("d2"), tok, `{}`, 401, ""},
		{device("unknown"), headers{"X-Provision-Token": "tok-unknown"}, `{}`, 401, ""},
		{"/ingest/v1/tenant/t2/device/d1/telemetry", gateway, `{}`, 403, "not for this"},
		{device("revoked"), tok, `{}`, 403, ""},
		{device("eager"), tok, `{}`, 429, "more slowly"},
		{device("away"), tok, `{}`, 503, "send it again"},
		{d1, tok, ``, 400, ""},
		{d1, tok, `{"a":`, 422, "payload"},
		{d1, tok, `[1]`, 422, "not a JSON object"},
		{d1, tok, "{\"a\":\"\xff\"}", 422, "payload"},
		{d1, tok, `{"a":"` + strings.Repeat("x", 100) + `"}`, 413, ""},
		{d1, headers{"X-Provision-Token": "tok-d1", "Content-Type": "text/plain"}, `{}`, 415, "application/json"},
		{d1, headers{"X-Provision-Token": "tok-d1", "Content-Encoding": "gzip"}, `{}`, 415, "not compressed"},
		{"/ingest/v1/tenant/t1/device/d1/commands", tok, `{}`, 422, "not for devices"},
		{"/ingest/v1/tenant/t1/device/d1/shadow%2Freported", tok, `{}`, 422, "one level"},
		{"/ingest/v1/tenant/t1/device/a%2Fb/telemetry", gateway, `{}`, 422, "one level"},
		{"/ingest/v1/tenant/t1/device/a+b/telemetry", gateway, `{}`, 422, "no MQTT topic"},
		{"/ingest/v1/tenant/t1/device/crossfade-sentinel/telemetry", gateway, `{}`, 422, ""},
		{"/ingest/v1/tenant/a%20b/device/d/telemetry", gateway, `{}`, 422, "NATS subject"},
		{"/ingest/v1/tenant/a%2Fb/device/d/telemetry", gateway, `{}`, 422, "one level"},
	} {
		status, h, answer := r.post(c.path, c.h, c.body)
		if status != c.status || !strings.Contains(answer, c.want) || strings.Contains(answer, "secret-detail") {
			t.Errorf("%s %v %.30s: %d %s, want %d %q", c.path, c.h, c.body, status, answer, c.status, c.want)
		}
		if (status == 503 || status == 429) != (h.Get("Retry-After") != "") || (status == 401) != (h.Get("WWW-Authenticate") != "") {
			t.Errorf("%s: %d with headers %v", c.path, status, h)
		}
	}
	r.wantStored()
	if !strings.Contains(r.log.String(), "secret-detail") {
		t.Error("the reason of a 503 is not in the log")
	}
}

// TestUnregistered: with AUTO_PROVISION an unknown device is let in, a known one not
// without its token.
func TestUnregistered(t *testing.T) {
	r := newRig(t, func(o *ingest.Options) {
		o.Unregistered = func(_ context.Context, _, device string) (bool, error) {
			if device == "broken" {
				return false, errors.New("no database")
			}
			return device == "unknown", nil
		}
	})
	for device, want := range map[string]int{"unknown": 202, "d1": 401, "revoked": 403, "broken": 503} {
		if status, _, answer := r.post("/ingest/v1/tenant/t1/device/"+device+"/telemetry", nil, `{}`); status != want {
			t.Errorf("%s: %d %s, want %d", device, status, answer, want)
		}
	}
	r.wantStored(`telemetry.t1 "tenant/t1/device/unknown/telemetry" {}`)
}

// TestWithoutNATS: 503 and Retry-After, for each message of a batch too, and 202 again
// when it is back.
func TestWithoutNATS(t *testing.T) {
	r := newRig(t, asIs)
	tok := device1
	batch := `{"messages":[{"tenant_id":"t1","device_id":"d1","msg_type":"telemetry","payload":{"a":1}},{"tenant_id":"t1","device_id":"d1","msg_type":"telemetry","payload":{"a":2}}]}`
	r.must(r.nats.Stop(t.Context()))
	for path, body := range map[string]string{d1: `{}`, batchPath: batch} {
		status, h, answer := r.post(path, tok, body)
		if want := map[string]int{d1: 503, batchPath: 207}[path]; status != want || path == batchPath && strings.Count(answer, `"status":503`) != 2 || h.Get("Retry-After") == "" || strings.Contains(answer, "NATS") {
			t.Errorf("%s without NATS: %d %s", path, status, answer)
		}
	}
	r.must(r.nats.Start(t.Context()))
	for end := time.Now().Add(patience); ; {
		if status, _, _ := r.post(d1, tok, `{"seq":1}`); status == 202 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing is taken after NATS has come back")
		}
	}
	if status, _, answer := r.post(batchPath, tok, batch); status != 202 {
		t.Errorf("batch: %d %s", status, answer)
	}
}

// TestOptions: what is missing or out of range is named.
func TestOptions(t *testing.T) {
	for field, spoil := range map[string]func(*ingest.Options){
		"Publisher":     func(o *ingest.Options) { o.Publisher = nil },
		"Authenticator": func(o *ingest.Options) { o.Authenticator = nil },
		"Logger":        func(o *ingest.Options) { o.Logger = nil },
		"MaxBody":       func(o *ingest.Options) { o.MaxBody = 0 },
		"MaxBatchBody":  func(o *ingest.Options) { o.MaxBatchBody = 1 << 30 },
		"MaxBatch":      func(o *ingest.Options) { o.MaxBatch = 0 },
	} {
		o := ingest.DefaultOptions()
		o.Publisher, o.Authenticator = &jetstream.Ingest{}, &people{}
		if err := o.Validate(); err != nil {
			t.Fatal(err)
		}
		spoil(&o)
		if err := ingest.Register(nil, o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
