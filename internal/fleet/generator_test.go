package fleet_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/internal/fleet"
)

var goodKinds = []fleet.Kind{fleet.KindTelemetry, fleet.KindTimeless, fleet.KindHeartbeat, fleet.KindShadow}

type drawn struct {
	d    fleet.Device
	seq  int64
	ts   time.Time
	kind fleet.Kind
}

func draw(t *rapid.T, kinds []fleet.Kind) drawn {
	cfg := fleet.DefaultConfig()
	cfg.Seed = rapid.Uint64().Draw(t, "seed")
	return drawn{
		d:    rapid.SampledFrom(fleet.Devices(cfg)).Draw(t, "device"),
		seq:  rapid.Int64Range(1, 1<<40).Draw(t, "seq"),
		ts:   time.UnixMilli(rapid.Int64Range(1e12, 4e12).Draw(t, "ts")),
		kind: rapid.SampledFrom(kinds).Draw(t, "kind"),
	}
}

func object(t rapid.TB, b []byte) map[string]any {
	t.Helper()
	var m map[string]any
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&m); err != nil {
		t.Fatalf("not a JSON object: %v: %s", err, b)
	}
	if dec.More() {
		t.Fatalf("more than one JSON value: %s", b)
	}
	return m
}

// timeLayouts are the forms of CONTRACT.md.
var timeLayouts = []string{time.RFC3339, "2006-01-02 15:04:05Z", "20060102T150405Z"}

func parseTS(t rapid.TB, v any) time.Time {
	t.Helper()
	s, _ := v.(string)
	for _, l := range timeLayouts {
		if ts, err := time.Parse(l, s); err == nil {
			return ts
		}
	}
	t.Fatalf("ts %v is in none of the contract's forms", v)
	return time.Time{}
}

func TestPayloadIsWhatDevicesSend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := draw(t, goodKinds)
		body := fleet.AppendPayload(nil, m.d, m.seq, m.ts, m.kind)
		if again := fleet.AppendPayload(nil, m.d, m.seq, m.ts, m.kind); !bytes.Equal(body, again) {
			t.Fatalf("the same message twice differs:\n%s\n%s", body, again)
		}
		if got := fleet.AppendPayload([]byte("before"), m.d, m.seq, m.ts, m.kind); string(got) != "before"+string(body) {
			t.Fatalf("appending to a buffer gives %s", got)
		}
		p := object(t, body)
		if m.kind == fleet.KindShadow {
			if _, ok := p["reported"].(map[string]any); !ok || p["version"] != float64(m.seq) {
				t.Fatalf("shadow report %s, want version %d", body, m.seq)
			}
			return
		}
		if p["seq"] != float64(m.seq) || p["site_id"] != m.d.Site || p["provision_token"] != m.d.Token {
			t.Fatalf("seq, site or token of %+v is wrong: %s", m.d, body)
		}
		if tenant, ok := p["tenant_id"]; ok && tenant != m.d.Tenant {
			t.Fatalf("tenant_id of %v: %s", m.d, body)
		}
		if _, ok := p["message_id"]; ok {
			t.Fatalf("devices send no message ID: %s", body)
		}
		_, metrics := p["metrics"].(map[string]any)
		if want := m.kind != fleet.KindHeartbeat; metrics != want {
			t.Fatalf("metrics present: %v, want %v: %s", metrics, want, body)
		}
		if _, ok := p["ts"]; ok == (m.kind == fleet.KindTimeless) {
			t.Fatalf("a %v message has ts: %v: %s", m.kind, ok, body)
		}
		if m.kind != fleet.KindTimeless {
			if off := m.ts.Sub(parseTS(t, p["ts"])); off < 0 || off >= time.Second {
				t.Fatalf("ts is off by %v: %s", off, body)
			}
		}
	})
}

func TestEnvelopeCarriesThePayload(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := draw(t, append([]fleet.Kind{fleet.KindBad}, goodKinds...))
		body := fleet.AppendPayload(nil, m.d, m.seq, m.ts, m.kind)
		raw := fleet.AppendEnvelope(nil, m.d, m.seq, m.ts, m.kind)
		e := object(t, raw)
		if e["topic"] != fleet.Topic(m.d, m.kind) || e["tenant_id"] != m.d.Tenant ||
			e["device_id"] != m.d.ID || e["msg_type"] != m.kind.MsgType() || e["ts"] != float64(m.ts.UnixMilli()) {
			t.Fatalf("envelope %s", raw)
		}
		if !json.Valid(body) {
			if e["payload"] != string(body) {
				t.Fatalf("a body that is not JSON must pass as it is: %s", raw)
			}
			return
		}
		var got map[string]any
		switch p := e["payload"].(type) {
		case string:
			got = object(t, []byte(p))
		case map[string]any:
			got = p
		}
		want := object(t, body)
		if ts, ok := got["ts"].(float64); ok && m.kind == fleet.KindTimeless {
			if math.Abs(ts*1000-float64(m.ts.UnixMilli())) > 10 {
				t.Fatalf("the added ts is not the envelope's: %s", raw)
			}
			delete(got, "ts")
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("payload\n%v\nby envelope\n%v", want, got)
		}
	})
}

// The pipeline must see every way in which producers write a message down.
func TestEnvelopesVary(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range fleet.Devices(fleet.DefaultConfig()) {
		e := object(t, fleet.AppendEnvelope(nil, d, 1, time.Now(), fleet.KindTimeless))
		switch p := e["payload"].(type) {
		case string:
			seen["quoted"] = true
		case map[string]any:
			if _, ok := p["ts"]; ok {
				seen["ts added"] = true
			} else {
				seen["verbatim"] = true
			}
		}
	}
	if len(seen) != 3 {
		t.Errorf("only %v occur in the default fleet", seen)
	}
}

func TestEnvelopesAreOfTheMeasuredSize(t *testing.T) {
	devices, total := fleet.Devices(fleet.DefaultConfig()), 0
	for i, d := range devices {
		total += len(fleet.AppendEnvelope(nil, d, 1000+int64(i), time.Now(), fleet.KindTelemetry))
	}
	if mean := total / len(devices); mean < 320 || mean > 400 {
		t.Errorf("envelopes have %d bytes on average, want about 350", mean)
	}
}

func TestKindsFollowTheirShares(t *testing.T) {
	d := fleet.Devices(fleet.DefaultConfig())[0]
	shares := fleet.Shares{Timeless: 0.2, Heartbeat: 0.1, Bad: 0.05, Shadow: 0.02}
	const n = 50_000
	got := map[fleet.Kind]float64{}
	for seq := int64(1); seq <= n; seq++ {
		got[shares.KindOf(d, seq)] += 1.0 / n
		if shares.ReportsShadow(d, seq) {
			got[fleet.KindShadow] += 1.0 / n
		}
	}
	for kind, want := range map[fleet.Kind]float64{
		fleet.KindTelemetry: 0.65, fleet.KindTimeless: 0.2, fleet.KindHeartbeat: 0.1, fleet.KindBad: 0.05, fleet.KindShadow: 0.02,
	} {
		if math.Abs(got[kind]-want) > 0.01 {
			t.Errorf("%v: %.3f of the messages, want %.3f", kind, got[kind], want)
		}
	}
}

// Each bad message has exactly the flaw that its reason names.
func TestBadMessagesFailOneCheck(t *testing.T) {
	flawed := map[string]func(d fleet.Device, p map[string]any) bool{
		"UNSUPPORTED_ENVELOPE_VERSION": func(_ fleet.Device, p map[string]any) bool { return p["version"] != nil && p["version"] != "1" },
		"METRICS_INVALID":              func(_ fleet.Device, p map[string]any) bool { _, ok := p["metrics"].(map[string]any); return !ok },
		"TENANT_MISMATCH_TOPIC_VS_PAYLOAD": func(d fleet.Device, p map[string]any) bool {
			return p["tenant_id"] != nil && p["tenant_id"] != d.Tenant
		},
		"MISSING_SITE_ID":                   func(_ fleet.Device, p map[string]any) bool { return p["site_id"] == nil },
		"SITE_MISMATCH_REGISTRY_VS_PAYLOAD": func(d fleet.Device, p map[string]any) bool { return p["site_id"] != nil && p["site_id"] != d.Site },
		"TOKEN_MISSING":                     func(_ fleet.Device, p map[string]any) bool { return p["provision_token"] == nil },
		"TOKEN_INVALID": func(d fleet.Device, p map[string]any) bool {
			return p["provision_token"] != nil && p["provision_token"] != d.Token
		},
	}
	seen := map[string]bool{}
	for _, d := range fleet.Devices(fleet.DefaultConfig()) {
		for seq := int64(1); seq <= 50; seq++ {
			reason := fleet.ExpectedReason(d, seq)
			seen[reason] = true
			body := fleet.AppendPayload(nil, d, seq, time.Now(), fleet.KindBad)
			if reason == "INVALID_JSON" {
				if json.Valid(body) {
					t.Errorf("%s %d is JSON: %s", d, seq, body)
				}
				continue
			}
			p := object(t, body)
			for other, has := range flawed {
				if has(d, p) != (other == reason) {
					t.Errorf("%s %d is to fail with %s; flaw %s: %v: %s", d, seq, reason, other, has(d, p), body)
				}
			}
		}
	}
	if len(seen) != len(flawed)+1 {
		t.Errorf("reasons %v, want all %d", seen, len(flawed)+1)
	}
}

func TestDevices(t *testing.T) {
	cfg := fleet.DefaultConfig()
	cfg.Tenants, cfg.Devices = 4, 10
	devices := fleet.Devices(cfg)
	perTenant, ids, tokens := map[string]int{}, map[string]bool{}, map[string]bool{}
	for _, d := range devices {
		perTenant[d.Tenant]++
		ids[d.String()], tokens[d.Token] = true, true
		sum := sha256.Sum256([]byte(d.Token))
		if d.TokenHash() != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: token hash %s", d, d.TokenHash())
		}
		if !strings.HasPrefix(d.Token, "tok-") || d.Site == "" {
			t.Errorf("token or site of %+v", d)
		}
	}
	if want := map[string]int{"acme": 3, "globex": 3, "initech": 2, "tenant-04": 2}; !reflect.DeepEqual(perTenant, want) {
		t.Errorf("devices per tenant %v, want %v", perTenant, want)
	}
	if len(ids) != 10 || len(tokens) != 10 {
		t.Errorf("%d names and %d tokens for 10 devices", len(ids), len(tokens))
	}
	if !reflect.DeepEqual(devices, fleet.Devices(cfg)) {
		t.Error("the same configuration gives other devices")
	}
	cfg.Seed++
	if reflect.DeepEqual(devices[0], fleet.Devices(cfg)[0]) {
		t.Error("another seed gives the same device")
	}
}

func TestTopics(t *testing.T) {
	d := fleet.Device{Tenant: "t1", ID: "d1"}
	for kind, want := range map[fleet.Kind][2]string{
		fleet.KindTelemetry: {"tenant/t1/device/d1/telemetry", "telemetry.t1"},
		fleet.KindTimeless:  {"tenant/t1/device/d1/telemetry", "telemetry.t1"},
		fleet.KindBad:       {"tenant/t1/device/d1/telemetry", "telemetry.t1"},
		fleet.KindHeartbeat: {"tenant/t1/device/d1/heartbeat", "telemetry.t1"},
		fleet.KindShadow:    {"tenant/t1/device/d1/shadow/reported", "shadow.t1"},
	} {
		if got := [2]string{fleet.Topic(d, kind), fleet.SubjectFor(d, kind)}; got != want {
			t.Errorf("%v goes to %v, want %v", kind, got, want)
		}
	}
}

func TestValidateNamesTheField(t *testing.T) {
	good := fleet.DefaultConfig()
	good.BrokerURL = "mqtt://127.0.0.1"
	if err := good.Validate(); err != nil {
		t.Fatalf("the default with a broker: %v", err)
	}
	for field, spoil := range map[string]func(*fleet.Config){
		"BrokerURL":    func(c *fleet.Config) { c.BrokerURL = "http://user:hunter2@host" },
		"Tenants":      func(c *fleet.Config) { c.Tenants = 61 },
		"Devices":      func(c *fleet.Config) { c.Devices = 0 },
		"Rate":         func(c *fleet.Config) { c.Rate = math.NaN() },
		"PerDevice":    func(c *fleet.Config) { c.PerDevice = -1 },
		"Connections":  func(c *fleet.Config) { c.Connections = -1 },
		"MaxInflight":  func(c *fleet.Config) { c.MaxInflight = 65536 },
		"DrainTimeout": func(c *fleet.Config) { c.DrainTimeout = 0 },
		"Shares.Bad":   func(c *fleet.Config) { c.Shares.Bad = 1.5 },
		"Shares.Time":  func(c *fleet.Config) { c.Shares = fleet.Shares{Timeless: 0.6, Heartbeat: 0.6} },
	} {
		cfg := good
		spoil(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), field) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s spoiled: %v", field, err)
		}
	}
}

func BenchmarkAppendEnvelope(b *testing.B) {
	devices := fleet.Devices(fleet.DefaultConfig())
	var buf []byte
	now := time.Now()
	for i := 0; b.Loop(); i++ {
		buf = fleet.AppendEnvelope(buf[:0], devices[i%len(devices)], int64(i), now, fleet.KindTelemetry)
	}
}

func ExampleAppendPayload() {
	d := fleet.Device{Tenant: "acme", ID: "dev-0001", Site: "s1", Token: "tok-1", Seed: 4}
	ts := time.Date(2026, 2, 9, 9, 15, 23, 45e6, time.UTC)
	fmt.Printf("%s\n", fleet.AppendPayload(nil, d, 123, ts, fleet.KindTelemetry))
	// Output: {"ts":"2026-02-09T09:15:23.045Z","site_id":"s1","seq":123,"provision_token":"tok-1","metrics":{"temp_c":22.75,"battery":83,"door_open":false,"mode":"off"}}
}
