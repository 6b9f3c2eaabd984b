package ingest

import (
	"encoding/json"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// FuzzCompose: whatever is sent, what is published is an object of the topic that was
// asked for, that says what was sent, and holds a token where one was given.
func FuzzCompose(f *testing.F) {
	for _, payload := range []string{`{}`, ` {"a":1.50}`, `{"provision_token":null}`, `{"provision_token":"a","b":[{}]}`, `[]`, `"{}"`, "{\"a\":\"\xff\"}", `{"a":1} x`, `{ }`} {
		f.Add("t1", "d1", "telemetry", `tok-"é`, []byte(payload))
	}
	f.Add("t", "crossfade-sentinel", "telemetry", "", []byte(`{}`))
	f.Add("t/", "+", "commands", "", []byte(`{}`))
	f.Fuzz(func(t *testing.T, tenant, device, msgType, token string, payload []byte) {
		m, location, why := compose(new(canonical.Doc), pipeline.DeviceKey{Tenant: tenant, Device: device}, msgType, token, payload)
		if why != "" {
			if m.Payload != nil {
				t.Errorf("refused (%s %s), and made all the same", location, why)
			}
			return
		}
		topic, ok := pipeline.ParseTopic("tenant/" + tenant + "/device/" + device + "/" + msgType)
		if !ok || topic.Kind != pipeline.KindTelemetry || m.Tenant != topic.Tenant || m.Device != topic.Device || m.MsgType != topic.MsgType {
			t.Fatalf("%+v for %q %q %q", m, tenant, device, msgType)
		}
		var before, after canonical.Doc
		if err := before.Parse(payload); err != nil {
			t.Fatalf("%q was taken: %v", payload, err)
		}
		if err := after.Parse(m.Payload); err != nil {
			t.Fatalf("%q became %q: %v", payload, m.Payload, err)
		}
		if token != "" && !has(after.Root(), memberToken) {
			t.Errorf("%q has no token", m.Payload)
		}
		without := ""
		if !has(before.Root(), memberToken) {
			without = memberToken
		}
		if b, a := before.Root().AppendCanonical(nil), after.Root().AppendCanonicalWithout(nil, without); string(a) != string(b) {
			t.Errorf("%q became %q", b, a)
		}
	})
}

// FuzzReadBatch never panics, and takes no batch for one that is none.
func FuzzReadBatch(f *testing.F) {
	f.Add([]byte(`{"messages":[{"tenant_id":"t","device_id":"d","msg_type":"m","provision_token":"x","payload":{"a":1}}]}`))
	f.Add([]byte(`{"messages":[{"tenant_id":7}]}`))
	f.Add([]byte(`{"messages":[null]}`))
	f.Add([]byte(`{"Messages":[{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		items, err := readBatch(raw)
		if err == nil && (len(items) == 0 || !json.Valid(raw)) {
			t.Errorf("%d items of %q", len(items), raw)
		}
	})
}
