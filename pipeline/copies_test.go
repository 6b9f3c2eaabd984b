package pipeline_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// noon is when these tests play; noonMS is the same as an envelope says it.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const noonMS = 1795435200000

// receipt is the part of a receipt that decoding looks at.
type receipt time.Time

func (receipt) Ack() error            { return nil }
func (receipt) Release() error        { return nil }
func (r receipt) Occurred() time.Time { return time.Time(r) }

// overMQTT is a device's message as the broker delivers it.
func overMQTT(topic, payload string) pipeline.Delivery {
	return pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(payload), Receipt: receipt(noon)}
}

// overJetStream is an envelope as the stream delivers it.
func overJetStream(subject, envelope string) pipeline.Delivery {
	return pipeline.Delivery{Path: pipeline.PathJetStream, Subject: subject, Body: []byte(envelope), Receipt: receipt(noon)}
}

// envelope wraps a payload, given as JSON, as a producer does at ts.
func envelope(topic, payload string, ts int64) string {
	return fmt.Sprintf(`{"topic":%q,"tenant_id":"t1","device_id":"d1","msg_type":"telemetry","username":"","payload":%s,"ts":%d}`, topic, payload, ts)
}

const topic = "tenant/t1/device/d1/telemetry"

func mqtt(payload string) pipeline.Delivery { return overMQTT(topic, payload) }

func jetstream(payload string) pipeline.Delivery {
	return overJetStream("telemetry.t1", envelope(topic, payload, noonMS))
}

func quoted(payload string) pipeline.Delivery { return jetstream(strconv.Quote(payload)) }

// byHTTP is a delivery of what HTTP ingest published.
func byHTTP(d pipeline.Delivery) pipeline.Delivery {
	d.Sole, d.Origin = true, pipeline.OriginHTTP
	return d
}

func sole(d pipeline.Delivery) pipeline.Delivery {
	d.Sole = true
	return d
}

// decode reads into a Message of its own.
func decode(tb testing.TB, d pipeline.Delivery) *pipeline.Message {
	tb.Helper()
	m := new(pipeline.Message)
	pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(m, &d)
	return m
}

// atTime returns the delivery with another time of arrival.
func atTime(d pipeline.Delivery, t time.Time) pipeline.Delivery {
	d.Receipt = receipt(t)
	return d
}

func timeOf(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
