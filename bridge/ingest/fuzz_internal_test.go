package ingest

import (
	"bytes"
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

// FuzzReadBatch never panics, takes no batch for one that is none, and reads of its
// messages what encoding/json reads of them.
func FuzzReadBatch(f *testing.F) {
	f.Add([]byte(`{"messages":[{"tenant_id":"t","device_id":"d","msg_type":"m","provision_token":"x","payload":{"a":1}}]}`))
	f.Add([]byte(`{"messages":[{"tenant_id":7}]}`))
	f.Add([]byte(`{"messages":[null]}`))
	f.Add([]byte(`{"Messages":[{}]}`))
	f.Add([]byte(`{"messages":[{"payload":{},"Payload":{"a":2},"payload":[]}, {"device_id":"\ud800"}]}`))
	f.Add([]byte(`{"messages":[{},{},{},{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		items, err := readBatch(raw, 3)
		if err != nil {
			return
		}
		var body map[string][]json.RawMessage
		if json.Unmarshal(raw, &body) != nil || len(body) != 1 || len(items) == 0 || len(items) > 3 || len(body["messages"]) != len(items) {
			t.Fatalf("%d items of %q", len(items), raw)
		}
		var r itemReader
		for _, one := range items {
			it, err := r.read(one)
			if err != nil {
				continue
			}
			var members map[string]json.RawMessage
			if json.Unmarshal(one, &members) != nil || !bytes.Equal(it.payload, members["payload"]) {
				t.Errorf("%q as the payload of %q", it.payload, one)
			}
			for name, got := range map[string]string{"tenant_id": it.tenant, "device_id": it.device, "msg_type": it.msgType, memberToken: it.token} {
				var want string
				if given, ok := members[name]; ok && json.Unmarshal(given, &want) != nil || got != want {
					t.Errorf("%s of %q is %q", name, one, got)
				}
			}
		}
	})
}
