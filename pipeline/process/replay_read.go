package process

import (
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// occurrence stands for the receipt of a message that was settled long ago: all that
// is left of it is when the copy occurred.
type occurrence time.Time

func (occurrence) Ack() error            { return nil }
func (occurrence) Release() error        { return nil }
func (o occurrence) Occurred() time.Time { return time.Time(o) }

// deliveryOf makes the copy that a row was written for, as far as decoding and
// authenticating it go: the same bytes, topic, tenant and sender. why says why that
// can't be done.
func deliveryOf(row *store.Quarantined) (d pipeline.Delivery, why string) {
	d = pipeline.Delivery{Path: row.Path, Topic: row.Topic, Origin: row.Origin, Body: row.Raw, Receipt: occurrence(occurredOf(row))}
	if row.Raw == nil { // written by the service before this one, which read MQTT
		d.Path, d.Body = pipeline.PathMQTT, row.Payload
		if row.Payload == nil {
			return d, "the row holds no body"
		}
	}
	if d.Path != pipeline.PathJetStream {
		d.Path = pipeline.PathMQTT
		if !row.WholeTopic() {
			return d, "the row does not hold the whole topic"
		}
		if d.Username = unknown; row.WholeUsername() {
			d.Username = *row.Username
		}
		return d, ""
	}
	if !row.WholeTenant() {
		return d, "the row does not hold the tenant's whole name"
	}
	d.Topic, d.Subject = "", streamOf(row.Topic)+"."+row.Tenant
	return d, ""
}

// unknown stands for a user name that a row does not hold. It is no device's, so that
// its message needs a token, even where the topic of a message without a user name is
// trusted: the broker may have named another device.
const unknown = "?"

// occurredOf is the time that the message was first given: for a message without a
// time of its own that is when its copy occurred.
func occurredOf(row *store.Quarantined) time.Time {
	if row.EventTS.IsZero() {
		return row.IngestedAt
	}
	return row.EventTS
}

// streamOf is the first word of the subject that messages of a topic come by.
func streamOf(topic string) string {
	t, _ := pipeline.ParseTopic(topic)
	switch t.Kind {
	case pipeline.KindShadow:
		return "shadow"
	case pipeline.KindCommandAck:
		return "commands"
	}
	return "telemetry"
}
