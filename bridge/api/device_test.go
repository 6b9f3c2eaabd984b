package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
)

// TestDeviceShadow: the device reads what is wanted of it, and only if it is new.
func TestDeviceShadow(t *testing.T) {
	r := newRig(t)
	const path = "/device/v1/shadow"
	if a := r.want(200, r.dev("GET", path, "")); strings.TrimSpace(a.body) != `{"desired":{},"version":0}` || a.Header.Get("ETag") != `"0"` {
		t.Errorf("nothing is wanted: %s %v", a.body, a.Header)
	}
	r.want(200, r.as("PUT", desiredPath, `{"desired":{"mode":"eco"}}`))
	a := r.want(200, r.dev("GET", path, "", "If-None-Match", `"0"`))
	if strings.TrimSpace(a.body) != `{"desired":{"mode":"eco"},"version":1}` || a.Header.Get("ETag") != `"1"` {
		t.Errorf("%s %v", a.body, a.Header)
	}
	for tag, status := range map[string]int{`"1"`: 304, `W/"1"`: 304, `"7", "1"`: 304, `*`: 304, `"01"`: 200, `1`: 200, `"1`: 200, `"2"`: 200, ``: 200} {
		a := r.want(status, r.dev("GET", path, "", "If-None-Match", tag))
		if a.Header.Get("ETag") != `"1"` || status == 304 && a.body != "" {
			t.Errorf("If-None-Match %s: %q %v", tag, a.body, a.Header)
		}
	}
	r.exec(`UPDATE device_state SET desired_state = 'null', desired_version = 9`)
	if a := r.want(200, r.dev("GET", path, "")); strings.TrimSpace(a.body) != `{"desired":{},"version":9}` {
		t.Errorf("JSON null: %s", a.body)
	}
	if a := r.want(200, r.call("GET", path, "", headerTenant, "t2", headerDevice, "d1", headerToken, "tok-2")); strings.TrimSpace(a.body) != `{"desired":{},"version":0}` {
		t.Errorf("another tenant's device: %s", a.body)
	}
}

func TestPendingCommands(t *testing.T) {
	r := newRig(t)
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, command_params, status, created_at, expires_at, published_at) VALUES
	 ('t1', 'c3', 'd1', 'x', '{"n":3}', 'queued', now() - interval '1 minute', 'infinity', now()),
	 ('t1', 'c1', 'd1', 'x', '{"n":1}', 'queued', now() - interval '3 minutes', NULL, NULL),
	 ('t1', 'c2', 'd1', 'x', '{"n":2}', 'queued', now() - interval '2 minutes', '2999-01-01 00:00:00Z', NULL),
	 ('t1', 'late', 'd1', 'x', '{}', 'queued', now() - interval '4 minutes', now() - interval '1 second', NULL),
	 ('t1', 'done', 'd1', 'x', '{}', 'delivered', now() - interval '4 minutes', NULL, NULL),
	 ('t1', 'other', 'd2', 'x', '{}', 'queued', now(), NULL, NULL), ('t2', 'c1', 'd1', 'x', '{}', 'queued', now(), NULL, NULL)`)
	a := r.want(200, r.dev("GET", "/device/v1/commands/pending", ""))
	const want = `{"commands":[{"command_id":"c1","type":"x","params":{"n":1},"expires_at":null},` +
		`{"command_id":"c2","type":"x","params":{"n":2},"expires_at":"2999-01-01T00:00:00Z"},{"command_id":"c3","type":"x","params":{"n":3},"expires_at":null}]}`
	if got := strings.TrimSpace(a.body); got != want {
		t.Errorf("pending:\n%s\nwant\n%s", got, want)
	}
	if a := r.want(200, r.dev("GET", "/device/v1/commands/pending?limit=1", "")); !strings.Contains(a.body, `"c1"`) || strings.Contains(a.body, `"c2"`) {
		t.Errorf("the first: %s", a.body)
	}
	r.want(422, r.dev("GET", "/device/v1/commands/pending?limit=51", ""))
}

// judged is what the pipeline makes of the last message that was published.
func (r *rig) judged() (*pipeline.Message, check.Verdict) {
	r.Helper()
	m := r.said.last()
	topic := fmt.Sprintf("tenant/%s/device/%s/%s", m.tenant, m.device, m.msgType)
	prefix := map[string]string{"shadow/reported": "shadow.", "commands/ack": "commands."}[m.msgType]
	body := fmt.Sprintf(`{"topic":%q,"tenant_id":%q,"device_id":%q,"msg_type":%q,"username":"","payload":%s,"ts":1760000000000}`, topic, m.tenant, m.device, m.msgType, m.payload)
	msg := &pipeline.Message{}
	pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(msg, &pipeline.Delivery{Path: pipeline.PathJetStream, Subject: prefix + m.tenant, Body: []byte(body), Receipt: receipt{}})
	settings := check.DefaultSettings()
	in := check.Input{Message: msg, Settings: &settings, Now: time.Now()}
	v := check.Content(in)
	if v.Reason == pipeline.Accepted {
		in.Device = &pipeline.Device{Site: "s1", Status: "ACTIVE"}
		v = check.Registry(in)
	}
	return msg, v
}

type receipt struct{}

func (receipt) Ack() error          { return nil }
func (receipt) Release() error      { return nil }
func (receipt) Occurred() time.Time { return time.Now() }

// TestReported: what is answered 202 is a message that the pipeline accepts, without a
// token, as it was sent; what it would refuse for its form is refused here.
func TestReported(t *testing.T) {
	r := newRig(t)
	const path = "/device/v1/shadow/reported"
	for _, body := range []string{
		`{"reported":{"mode":"eco","n":12345678901234567890},"version":3}`, `{"reported":{}}`, ` {"reported":{"é":"\ud83d\ude00"},"version":null,"ts":"2026-01-01T00:00:00Z","seq":4,"x":[1]}`,
		`{"reported":{},"tenant_id":"t1"}`, `{"reported":{},"version":1.0}`,
	} {
		r.want(202, r.dev("POST", path, body))
		m, v := r.judged()
		if v.Reason != pipeline.Accepted || m.Kind != pipeline.KindShadow || m.Tenant != "t1" || m.Device != "d1" || r.said.last().payload != body {
			t.Errorf("%s: %s (%s), %+v", body, v.Reason, v.Detail, m.Topic)
		}
	}
	n := len(r.said.list)
	for body, status := range map[string]int{
		``: 400, `x`: 400, `{`: 400, `[]`: 422, `{}`: 422, `{"reported":null}`: 422, `{"reported":[]}`: 422, `{"reported":"{}"}`: 422, `{"Reported":{}}`: 422,
		`{"reported":{"a":"\u0000"}}`: 422, `{"reported":{},"version":"3"}`: 422, `{"reported":{},"version":1e30}`: 422, `{"reported":{},"tenant_id":"t2"}`: 422, `{"reported":{},"tenant_id":5}`: 422,
		`{"reported":{"a":1},"reported":{"a":2}}`: 422, `{"reported":{"a":"` + strings.Repeat("x", MaxBody) + `"}}`: 413,
	} {
		r.want(status, r.dev("POST", path, body))
	}
	r.want(415, r.dev("POST", path, `{"reported":{}}`, "Content-Type", "text/plain"))
	if len(r.said.list) != n {
		t.Errorf("%d refused messages were published", len(r.said.list)-n)
	}
}

// TestAck: the command is the path's, and the pipeline accepts the message.
func TestAck(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct{ id, body, want string }{
		{"c1", ``, `{"command_id":"c1"}`},
		{"c1", `{}`, `{"command_id":"c1"}`},
		{"c1", `{"command_id":"c1","status":"ok"}`, `{"command_id":"c1","status":"ok"}`},
		{"c1", `{"status":"failed","details":{"n":12345678901234567890},"message_id":"m1"}`, `{"command_id":"c1","details":{"n":12345678901234567890},"message_id":"m1","status":"failed"}`},
		{"a%2Fb%22%20%C3%A9", `{"details":null}`, `{"command_id":"a/b\" é","details":null}`},
	} {
		a := r.want(202, r.dev("POST", "/device/v1/commands/"+c.id+"/ack", c.body))
		m, v := r.judged()
		if v.Reason != pipeline.Accepted || m.Kind != pipeline.KindCommandAck || r.said.last().payload != c.want || a.body != "" {
			t.Errorf("%s %s: %s (%s), sent %s, want %s", c.id, c.body, v.Reason, v.Detail, r.said.last().payload, c.want)
		}
	}
	n := len(r.said.list)
	for body, status := range map[string]int{
		`x`: 400, `[]`: 422, `{"command_id":"c2"}`: 422, `{"command_id":1}`: 422, `{"details":"x"}`: 422, `{"details":[]}`: 422, `{"details":{"a":"\ud800"}}`: 422,
		`{"status":5}`: 422, `{"status":"` + strings.Repeat("x", 200) + `"}`: 422, `{"tenant_id":"t2"}`: 422, `{"command_id":"c1","command_id":"c1"}`: 422,
	} {
		r.want(status, r.dev("POST", "/device/v1/commands/c1/ack", body))
	}
	r.want(404, r.dev("POST", "/device/v1/commands/%00/ack", "{}"))
	if len(r.said.list) != n {
		t.Errorf("%d refused messages were published", len(r.said.list)-n)
	}
}

// TestStreamAway is 503, so that the device sends again; what can never be sent is not.
func TestStreamAway(t *testing.T) {
	r := newRig(t)
	const body = `{"reported":{}}`
	r.said.fail = errors.New("publish to nats://user:hunter2@127.0.0.1: no answer")
	a := r.want(503, r.dev("POST", "/device/v1/shadow/reported", body))
	if strings.Contains(a.body, "hunter2") || strings.Contains(a.body, "nats") || a.Header.Get("Retry-After") == "" {
		t.Errorf("%s %v", a.body, a.Header)
	}
	r.said.fail = fmt.Errorf("publish: %w", &jetstream.RefusedError{Why: "it is larger than NATS takes"})
	r.want(422, r.dev("POST", "/device/v1/shadow/reported", body))
	r.said.fail = nil
	for _, name := range []string{"a+b", "a/b", "#", pipeline.SentinelDevice} {
		r.exec(`INSERT INTO device_registry (tenant_id, device_id, provision_token_hash) VALUES ('t1', $1, encode(sha256('t'), 'hex'))`, name)
		r.want(422, r.call("POST", "/device/v1/shadow/reported", body, headerTenant, "t1", headerDevice, name, headerToken, "t"))
	}
	if n := len(r.said.list); n != 0 {
		t.Errorf("%d messages were published", n)
	}
	without := newRig(t, func(_ *Config, p *Parts) { p.Publisher = nil })
	without.want(http.StatusServiceUnavailable, without.dev("POST", "/device/v1/shadow/reported", body))
	without.want(200, without.dev("GET", "/device/v1/shadow", ""))
}
