package bridge

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// gate sends each copy its way. Its deliver functions are what the sources call,
// so they never block and do no I/O: a tenant's stage is looked up in memory.
type gate struct {
	// look returns a tenant's stage, and whether copies may be dropped by it.
	look func(tenant string) (s stage.Stage, mayDrop bool)
	// spans reports whether a moment by a stream's clock is within what look goes by.
	spans func(stored time.Time) bool
	// largest is the most bytes that the streams take in one message; 0: not known yet.
	largest  func() int
	process  func(pipeline.Delivery)
	hold     func(pipeline.Delivery, uint64)
	sentinel func(*pipeline.Delivery, pipeline.Sentinel) // takes it over
	arrived  [3]atomic.Uint64                            // by path
	dropped  [3]prometheus.Counter                       // by path
}

// newGate makes a gate whose functions are still to be set.
func newGate(reg prometheus.Registerer) *gate {
	g := &gate{spans: func(time.Time) bool { return true }, largest: func() int { return mostEnvelope }}
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_dropped_total",
		Help: "Copies that were acknowledged unseen, since the other path has their messages, by path."}, []string{"path"})
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		g.dropped[p] = total.WithLabelValues(p.String())
	}
	reg.MustRegister(total)
	return g
}

func (g *gate) deliver(d pipeline.Delivery) {
	seq := g.arrived[d.Path].Add(1)
	// Before anything is decided: a sentinel shows that a path has brought all before it
	// in the outer stages too, where that path's copies are not looked at.
	if s, ok := pipeline.SentinelOf(&d); ok {
		g.sentinel(&d, s)
		return
	}
	switch g.decide(&d) {
	case stage.StandBy:
		g.hold(d, seq)
	case stage.Drop:
		g.drop(&d)
	default:
		g.process(d)
	}
}

func (g *gate) drop(d *pipeline.Delivery) {
	g.dropped[d.Path].Inc()
	_ = d.Receipt.Ack() // where it fails the copy comes again, which the source counts
}

// arrivals is how many copies have come by a path.
func (g *gate) arrivals(p pipeline.Path) uint64 { return g.arrived[p].Load() }

// decide looks at nothing but the path and the tenant that the transport names. A
// copy that names no tenant is nobody's to decide about: it is processed on
// either path, and the ledger lets one of them count. A copy that has no sibling, or may
// have none any more, is processed in every stage, or nobody would; that is always safe.
func (g *gate) decide(d *pipeline.Delivery) stage.Action {
	tenant := d.Tenant()
	if tenant == "" || d.Sole {
		return stage.Process
	}
	s, mayDrop := g.look(tenant)
	// A machine that was stopped with its clocks has nothing else to tell it so. Of MQTT
	// copies none can be new to a session whose proof the leader has waited for.
	mayDrop = mayDrop && !g.bulky(d) && (d.Path == pipeline.PathMQTT || g.spans(d.Receipt.Occurred()))
	return stage.Decide(s, d.Path, mayDrop, false)
}

// mostBody and mostName are the most bytes of a body, and of a topic or user name, that
// are sure to get through the other path. Escaped, and with the topic twice, they fit
// into an envelope of mostEnvelope. Where a server or a stream takes less than that, so
// much less is sure.
const mostBody, mostName, mostEnvelope = 8 << 10, 512, 64 << 10

// bulky reports whether a copy may be the only one of its message: the mirror cannot
// bring an envelope above NATS's limits, and no broker hands a packet above ours over.
// Such copies are never dropped; they stand by for the other one.
func (g *gate) bulky(d *pipeline.Delivery) bool {
	if d.Path == pipeline.PathJetStream {
		return len(d.Body) > mostBody
	}
	body, name := mostBody, mostName
	n := g.largest()
	if n == 0 { // an instance whose NATS is away since it started: any may be too much
		return true
	}
	if n < mostEnvelope {
		n = max(n-512, 0) // for what is in every envelope, and its header
		body, name = n/(mostEnvelope/mostBody), n/(mostEnvelope/mostName)
	}
	return len(d.Body) > body || len(d.Topic) > name || len(d.Username) > name
}
