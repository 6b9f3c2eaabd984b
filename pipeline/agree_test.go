package pipeline_test

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/pipelinetest"
)

// agree fails unless both copies are one message with one outcome.
func agree(t *rapid.T, a, b *pipeline.Message) {
	t.Helper()
	if a.ID != b.ID || a.Anonymous != b.Anonymous || a.Explicit != b.Explicit || a.Digest != b.Digest {
		t.Fatalf("identities differ: %+v explicit=%v, %+v explicit=%v", a.Identity, a.Explicit, b.Identity, b.Explicit)
	}
	settings := check.DefaultSettings()
	ra := check.Content(check.Input{Message: a, Settings: &settings}).Reason
	rb := check.Content(check.Input{Message: b, Settings: &settings}).Reason
	if ra != rb || a.Failed != b.Failed {
		t.Fatalf("outcomes differ: %q (%s), %q (%s)", ra, a.Detail, rb, b.Detail)
	}
	if a.Topic != b.Topic || a.RawTopic != b.RawTopic || a.Size != b.Size {
		t.Fatalf("topics or sizes differ: %+v %d, %+v %d", a.Topic, a.Size, b.Topic, b.Size)
	}
	if n := len(a.AppendPayload(nil)); a.Failed == pipeline.Accepted && a.Size != n {
		t.Fatalf("the size is said to be %d, and is %d", a.Size, n)
	}
	na, nullA, okA := a.Seq()
	nb, nullB, okB := b.Seq()
	if na != nb || nullA != nullB || okA != okB {
		t.Fatalf("seq differs: %d %v %v, %d %v %v", na, nullA, okA, nb, nullB, okB)
	}
	ma, okA := a.Metrics()
	mb, okB := b.Metrics()
	if !bytes.Equal(ma, mb) || okA != okB {
		t.Fatalf("metrics differ: %s %v, %s %v", ma, okA, mb, okB)
	}
	if s, ok := a.Fields.TS.Text(); ok {
		if _, ok := pipeline.ParseTimestamp(s); ok && !a.Time.Equal(b.Time) {
			t.Fatalf("times differ: %v, %v", a.Time, b.Time)
		}
	}
	for i, va := range []interface{ Text() (string, bool) }{a.Fields.SiteID, a.Fields.Token, a.Fields.CommandID} {
		vb := []interface{ Text() (string, bool) }{b.Fields.SiteID, b.Fields.Token, b.Fields.CommandID}[i]
		sa, _ := va.Text()
		if sb, _ := vb.Text(); sa != sb {
			t.Fatalf("field %d differs: %q, %q", i, sa, sb)
		}
	}
}

// TestBothPathsAgree (promise P3): a device's message sent as it is by MQTT, and
// the same as producers pass it on, are one message with one outcome.
func TestBothPathsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := drawTime(t)
		passed := pipelinetest.Passed(t, pipelinetest.Payloads.Draw(t, "payload"), at)
		agreeOn(t, passed, at)
	})
}

// TestBothPathsAgreeOnRubbish: what is no JSON object travels as text, with what
// is no UTF-8 replaced.
func TestBothPathsAgreeOnRubbish(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		agreeOn(t, pipelinetest.Mirrored(t, pipelinetest.Rubbish.Draw(t, "payload")), drawTime(t))
	})
}

func drawTime(t *rapid.T) time.Time {
	return timeOf(noonMS + rapid.Int64Range(0, 1e9).Draw(t, "ts"))
}

func agreeOn(t *rapid.T, c pipelinetest.Copies, at time.Time) {
	topic := pipelinetest.Topics("d1").Draw(t, "topic")
	over := atTime(overMQTT(topic, string(c.Raw)), at)
	stream := overJetStream("telemetry.t1", string(pipelinetest.Envelope(topic, "", c.Payload, at)))
	dec := pipeline.NewDecoder(pipeline.DefaultMessageIDMember)
	var a, b pipeline.Message
	dec.Decode(&a, &over)
	dec.Decode(&b, &stream)
	agree(t, &a, &b)
}

// TestHostileCopiesAgree: so do the hostile cases, as an honest mirror passes them on.
func TestHostileCopiesAgree(t *testing.T) {
	names := map[string]bool{}
	for _, c := range pipelinetest.HostileCases() {
		if names[c.Name] {
			t.Errorf("two cases are called %s", c.Name)
		}
		names[c.Name] = true
		if c.OnlyMQTT {
			continue
		}
		topic := c.TopicOf("d1")
		over := overMQTT(topic, c.Payload)
		stream := overJetStream("telemetry."+pipeline.TopicTenant(topic), string(pipelinetest.Mirror(topic, []byte(c.Payload), noon)))
		if a, b := decode(t, over), decode(t, stream); a.ID != b.ID || a.Size != b.Size || a.Failed != b.Failed {
			t.Errorf("%s: %s %d %q, %s %d %q", c.Name, a.ID, a.Size, a.Failed, b.ID, b.Size, b.Failed)
		}
	}
}
