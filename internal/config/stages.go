package config

import (
	"fmt"
	"time"
)

// Stages is how tenants move between stages (docs/stages.md). Whichever instance leads
// goes by its own settings, so all should have the same.
type Stages struct {
	Dwell     time.Duration `name:"stages-dwell" env:"CROSSFADE_STAGES_DWELL" default:"30s" range:"0s..24h" help:"How long a tenant stays in shadow or live, once all instances have confirmed it, before the sentinel is sent that proves the step to mqtt or jetstream. Longer than producers that write to MQTT and to JetStream themselves may take from the first copy to the second; 0 only where mirrors make all second copies. All instances should agree."`
	LeaseTTL  time.Duration `name:"stages-lease-ttl" env:"CROSSFADE_STAGES_LEASE_TTL" default:"5s" range:"1s..5m" help:"How long other instances wait for one that is not heard of before tenants move on without it, and how long an instance whose PostgreSQL does not answer may go on dropping copies. Renewed every fifth of it, and at least every second."`
	BeatEvery time.Duration `name:"stages-beat-every" env:"CROSSFADE_STAGES_BEAT_EVERY" default:"1m" range:"0s..24h" help:"How often a tenant in shadow or live gets a sentinel by which the lag of both paths is measured. 0: never; lag is then unknown, and a rollout's lag gate never passes."`
	BeatRate  float64       `name:"stages-beat-rate" env:"CROSSFADE_STAGES_BEAT_RATE" default:"20" range:"1..10000" help:"Most of these sentinels a second, for all tenants together. Divided into the number of tenants in shadow or live, it is how often each gets one at best."`
	Missing   time.Duration `name:"stages-missing" env:"CROSSFADE_STAGES_MISSING" default:"30s" range:"1s..1h" help:"After how long a sentinel that has not come out of a path is reported as missing, in status and in metrics."`
}

// validate refuses what the range of one setting cannot tell.
func (s *Stages) validate(p *problems) {
	if s.BeatEvery > 0 && s.BeatEvery < 100*time.Millisecond {
		p.add("stages-beat-every", fmt.Sprintf("%s is so short that sentinels would crowd out messages", s.BeatEvery), "set 100ms or more (1m is the default), or 0 for none")
	}
}

// stageWarnings names a dwell that proves nothing.
func (r *Run) stageWarnings(w *warnings) {
	if r.Stages.Dwell == 0 && !r.Mirror.Enabled {
		w.add("stages-dwell", "is 0, and this instance does not mirror: the second copy of a message that a producer writes to both transports itself may come after the sentinel and be dropped",
			"set it longer than producers take from one copy to the other, unless mirrors elsewhere make all second copies")
	}
}
