package ingest

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// memberToken is the payload's member that the pipeline checks.
const memberToken = "provision_token"

// maxToken is the longest device token that is looked at, in bytes.
const maxToken = 512

// compose makes a message of what was sent, with the device's token in the payload.
// why is for the sender: what is wrong with it, and where.
func compose(doc *canonical.Doc, key pipeline.DeviceKey, msgType, token string, payload []byte) (m jetstream.IngestMessage, location, why string) {
	if location, why := checkNames(key, msgType); why != "" {
		return m, location, why
	}
	payload = bytes.TrimSpace(payload)
	if err := doc.Parse(payload); err != nil {
		return m, "payload", err.Error()
	}
	root := doc.Root()
	switch {
	case root.Kind() != canonical.KindObject:
		return m, "payload", "is not a JSON object"
	case root.DeeperThan(pipeline.MaxDepth):
		return m, "payload", "is nested too deeply"
	}
	m = jetstream.IngestMessage{Tenant: key.Tenant, Device: key.Device, MsgType: msgType, Payload: payload}
	if token != "" && !has(root, memberToken) {
		m.Payload = withToken(payload, root.Len() == 0, token)
	}
	return m, "", ""
}

// checkNames says what of a topic's parts cannot be one.
func checkNames(key pipeline.DeviceKey, msgType string) (location, why string) {
	for _, part := range []struct{ location, name string }{{"tenant_id", key.Tenant}, {"device_id", key.Device}, {"msg_type", msgType}} {
		if part.name == "" || strings.Contains(part.name, "/") {
			return part.location, "must be one level of a topic: not empty and without /"
		}
	}
	topic, ok := pipeline.ParseTopic("tenant/" + key.Tenant + "/device/" + key.Device + "/" + msgType)
	switch {
	case !ok:
		return "", "tenant, device and message type make no MQTT topic: no +, # or NUL, valid UTF-8, 65535 bytes at most"
	case topic.Kind == pipeline.KindSentinel:
		return "device_id", "is reserved"
	case topic.Kind != pipeline.KindTelemetry:
		return "msg_type", "is not for devices to send"
	}
	return "", ""
}

func has(object canonical.Value, member string) (found bool) {
	object.Each(func(name string, _ canonical.Value) { found = found || name == member })
	return found
}

// withToken adds the token to an object's text.
func withToken(payload []byte, empty bool, token string) []byte {
	quoted, err := json.Marshal(token)
	if err != nil { // strings always can
		return payload
	}
	out := make([]byte, 0, len(payload)+len(quoted)+len(memberToken)+4)
	out = append(out, `{"`+memberToken+`":`...)
	out = append(out, quoted...)
	if !empty {
		out = append(out, ',')
	}
	return append(out, payload[1:]...)
}
