package stage_test

import (
	"testing"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		stage           stage.Stage
		mqtt, jetstream stage.Action
		toward          stage.Stage
	}{
		{stage.MQTT, stage.Process, stage.StandBy, stage.Shadow},
		{stage.Shadow, stage.Process, stage.StandBy, stage.Shadow},
		{stage.Live, stage.StandBy, stage.Process, stage.Live},
		{stage.JetStream, stage.StandBy, stage.Process, stage.Live},
	} {
		if got := stage.Decide(c.stage, pipeline.PathMQTT); got != c.mqtt {
			t.Errorf("%s: the MQTT copy is %v, want %v", c.stage, got, c.mqtt)
		}
		if got := stage.Decide(c.stage, pipeline.PathJetStream); got != c.jetstream {
			t.Errorf("%s: the JetStream copy is %v, want %v", c.stage, got, c.jetstream)
		}
		if got := stage.Toward(c.stage); got != c.toward {
			t.Errorf("toward %s: %s, want %s", c.stage, got, c.toward)
		}
		if got, err := stage.Parse(string(c.stage)); got != c.stage || err != nil {
			t.Errorf("Parse(%s) = %s, %v", c.stage, got, err)
		}
	}
	if _, err := stage.Parse("Live"); err == nil {
		t.Error("stage names are case-sensitive")
	}
}
