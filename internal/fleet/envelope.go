package fleet

import (
	"encoding/json"
	"strconv"
	"time"
)

// producer is how the mirror that a device's messages pass through writes them
// down. Installations run several, so the copies of one message differ by path.
type producer uint8

const (
	producerVerbatim  producer = iota // the device's bytes as they are
	producerRewriting                 // decoded and written anew, with a ts added where there is none
	producerQuoting                   // the device's bytes as a JSON string
)

func producerOf(d Device) producer {
	return [...]producer{producerVerbatim, producerRewriting, producerRewriting, producerQuoting}[mix(d.Seed, -saltLayout)%4]
}

// AppendEnvelope appends the JetStream body (CONTRACT.md, "Envelope") of the
// same message: AppendPayload's content as the device's producer passes it on,
// received by it at ts. It is pure, about 350 bytes long, and always JSON: a
// payload that is not JSON travels as a string. Payload members other than an
// added ts mean the same as AppendPayload's.
func AppendEnvelope(dst []byte, d Device, seq int64, ts time.Time, kind Kind) []byte {
	how := producerOf(d)
	w := writer{b: dst}
	w.open()
	w.text("topic", Topic(d, kind))
	w.text("tenant_id", d.Tenant)
	w.text("device_id", d.ID)
	w.text("msg_type", kind.MsgType())
	if how == producerVerbatim {
		w.text("username", d.Tenant+"/"+d.ID)
	} else {
		w.text("username", "")
	}
	w.name("payload")
	flaw := flawOf(d, seq, kind)
	switch {
	case how == producerQuoting || flaw == flawNotJSON:
		w.b = appendQuoted(w.b, AppendPayload(nil, d, seq, ts, kind))
	case how == producerRewriting && kind == KindShadow:
		w.b = appendShadow(w.b, d, seq, layout{})
	case how == producerRewriting:
		l := layoutOf(d)
		l.order, l.spaced, l.numbers = sortedOrder, false, numberShort
		w.b = appendMessage(w.b, message{d: d, seq: seq, ts: ts, kind: kind, flaw: flaw, injected: true}, l)
	default:
		w.b = AppendPayload(w.b, d, seq, ts, kind)
	}
	w.name("ts")
	w.b = strconv.AppendInt(w.b, ts.UnixMilli(), 10)
	w.shut()
	return w.b
}

func appendQuoted(dst, body []byte) []byte {
	quoted, err := json.Marshal(string(body))
	if err != nil {
		// A string always marshals; json.Marshal replaces invalid UTF-8.
		panic("fleet: quote a payload: " + err.Error())
	}
	return append(dst, quoted...)
}
