package bridge

import (
	"time"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/pipeline"
)

// match acknowledges a copy whose message is durable. That the content differs
// changes nothing for the copy: the first counts. But it is counted, and a sample kept.
func (s *standby) match(h *heldCopy, k pipeline.Known) {
	now, tenant, end := time.Now(), h.Tenant(), endMatched
	skew := k.Age - now.Sub(h.at)
	if k.Differs {
		end = endMismatched
		if s.tally.Mismatched(tenant, now, skew) {
			s.sample(h, tenant, k.Digest, now)
		}
	} else {
		s.tally.Matched(tenant, now, skew)
	}
	s.finish(h, end)
}

// sample reads the copy again: few are sampled, so no other is kept decoded.
func (s *standby) sample(h *heldCopy, tenant string, other int64, now time.Time) {
	var m pipeline.Message
	s.decoder.Decode(&m, &h.Delivery)
	s.tally.Sample(parity.NewSample(&m, tenant, other, now))
}

// handTally gives what was counted to whoever writes it.
func (s *standby) handTally() {
	if now := time.Now(); now.Sub(s.handed) >= s.handOver {
		s.handed = now
		s.tally.Hand()
	}
}

const (
	// silenceStall is for how long nothing may arrive by MQTT before it counts as a
	// stall, and silenceMin how many unacknowledged copies that takes: no broker's
	// window is known to be smaller by default.
	silenceStall = 500 * time.Millisecond
	silenceMin   = 16
)

// silence finds out that the broker sends nothing more since its own window is full.
// A broker may have a smaller one than the Receive Maximum that it was told (several
// are delivered with 20 or 32), and does not say so. It looks just like the end of
// a burst; then a rescue is a little early, which harms nobody.
type silence struct {
	arrivals uint64
	since    time.Time
}

// endSilence rescues the older half of what MQTT holds, where that may be what the
// broker waits for.
func (s *standby) endSilence() {
	const p = pipeline.PathMQTT
	if s.lines[p].live == 0 {
		return
	}
	now, arrivals := time.Now(), s.arrived(p)
	if arrivals != s.silence.arrivals {
		s.silence = silence{arrivals, now}
		return
	}
	if now.Sub(s.silence.since) < silenceStall {
		return
	}
	for h := range s.lines[p].each() {
		if arrivals-h.seq+1 >= silenceMin {
			s.silence.since = now
			s.rescueHalf(p)
		}
		break
	}
}
