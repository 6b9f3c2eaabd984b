package stage_test

import (
	"testing"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		stage           stage.Stage
		mqtt, jetstream stage.Action // with a lease
	}{
		{stage.MQTT, stage.Process, stage.Drop},
		{stage.Shadow, stage.Process, stage.StandBy},
		{stage.Live, stage.StandBy, stage.Process},
		{stage.JetStream, stage.Drop, stage.Process},
	} {
		for path, want := range map[pipeline.Path]stage.Action{pipeline.PathMQTT: c.mqtt, pipeline.PathJetStream: c.jetstream} {
			if got := stage.Decide(c.stage, path, true, false); got != want {
				t.Errorf("%s, %s copy: %s, want %s", c.stage, path, got, want)
			}
			if want == stage.Drop {
				want = stage.StandBy
			}
			if got := stage.Decide(c.stage, path, false, false); got != want {
				t.Errorf("%s, %s copy, without a lease: %s, want %s", c.stage, path, got, want)
			}
			for _, lease := range []bool{true, false} {
				if got := stage.Decide(c.stage, path, lease, true); got != stage.Done {
					t.Errorf("%s, %s copy of what the ledger has: %s", c.stage, path, got)
				}
			}
		}
	}
	for _, path := range []pipeline.Path{0, pipeline.PathMQTT, pipeline.PathJetStream} {
		if got := stage.Decide("nonsense", path, true, false); got == stage.Drop || got == stage.Done {
			t.Errorf("in a stage that does not exist the copy by %s is acknowledged unseen", path)
		}
	}
}

func TestToward(t *testing.T) {
	for wish, want := range map[stage.Stage]stage.Stage{
		stage.MQTT: stage.Shadow, stage.Shadow: stage.Shadow, stage.Live: stage.Live, stage.JetStream: stage.Live,
	} {
		if got := stage.Toward(wish); got != want || got.Outer() {
			t.Errorf("toward %s: %s, want %s", wish, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for _, s := range stage.All() {
		if got, err := stage.Parse(string(s)); got != s || err != nil {
			t.Errorf("Parse(%s) = %s, %v", s, got, err)
		}
	}
	if _, err := stage.Parse("Live"); err == nil {
		t.Error("stage names are case-sensitive")
	}
}
