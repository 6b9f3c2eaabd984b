package stage_test

import (
	"slices"
	"testing"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

func TestWalk(t *testing.T) {
	for _, c := range []struct {
		from, wish stage.Stage
		want       []stage.Stage
	}{
		{stage.MQTT, stage.JetStream, []stage.Stage{stage.Shadow, stage.Live, stage.JetStream}},
		{stage.MQTT, stage.Live, []stage.Stage{stage.Shadow, stage.Live}},
		{stage.Shadow, stage.JetStream, []stage.Stage{stage.Live, stage.JetStream}},
		{stage.JetStream, stage.Live, []stage.Stage{stage.Live}},
		{stage.JetStream, stage.Shadow, []stage.Stage{stage.Shadow}},
		{stage.JetStream, stage.MQTT, []stage.Stage{stage.Shadow, stage.MQTT}},
		{stage.Live, stage.MQTT, []stage.Stage{stage.Shadow, stage.MQTT}},
		{stage.Live, stage.Live, nil},
		{stage.Live, "nonsense", nil},
		{"nonsense", stage.Live, nil},
	} {
		var got []stage.Stage
		for _, step := range stage.Walk(c.from, c.wish) {
			got = append(got, step.To)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("from %s to %s by %v, want %v", c.from, c.wish, got, c.want)
		}
	}
}

// TestSteps holds every walk against what steps may be.
func TestSteps(t *testing.T) {
	for _, from := range stage.All() {
		for _, wish := range stage.All() {
			at := from
			for _, step := range stage.Walk(from, wish) {
				if step.From != at {
					t.Errorf("from %s to %s: %+v begins elsewhere than at %s", from, wish, step, at)
				}
				at = step.To
				if (step.Needs == stage.NeedsProof) != step.To.Outer() {
					t.Errorf("%+v: proof is needed for the outer stages, and only for them", step)
				}
				if step.From.Outer() && step.To.Outer() {
					t.Errorf("%+v: from one outer stage to the other", step)
				}
				back := step.From.Authoritative() > step.To.Authoritative()
				if back && step.Await(stage.Evidence{}) != stage.AwaitNothing {
					t.Errorf("%+v: what gives MQTT its authority back must not wait", step)
				}
			}
			if at != wish {
				t.Errorf("from %s to %s: ends at %s", from, wish, at)
			}
		}
	}
}

// TestAwait: evidence counts in the order in which it must be gathered.
func TestAwait(t *testing.T) {
	var e stage.Evidence
	into := stage.Step{From: stage.Live, To: stage.JetStream, Needs: stage.NeedsProof}
	for _, c := range []struct {
		want   stage.Await
		gather func()
	}{
		{stage.AwaitConfirmation, func() { e.OutOfMQTT, e.OutOfJetStream = true, true }},
		{stage.AwaitConfirmation, func() { e.Confirmed = true }},
		{stage.AwaitDwell, func() { e.Dwelt = true }},
		{stage.AwaitSending, func() { e.Sent, e.OutOfMQTT = true, false }},
		{stage.AwaitMQTT, func() { e.OutOfMQTT, e.OutOfJetStream = true, false }},
		{stage.AwaitJetStream, func() { e.OutOfJetStream = true }},
		{stage.AwaitNothing, func() {}},
	} {
		if got := into.Await(e); got != c.want {
			t.Errorf("with %+v: waits for %s, want %s", e, got, c.want)
		}
		c.gather()
	}
	inside, _ := stage.Next(stage.Shadow, stage.Live)
	if got := inside.Await(stage.Evidence{}); got != stage.AwaitConfirmation {
		t.Errorf("shadow to live waits for %s", got)
	}
	if got := inside.Await(stage.Evidence{Confirmed: true}); got != stage.AwaitNothing {
		t.Errorf("shadow to live, confirmed, waits for %s", got)
	}
}
