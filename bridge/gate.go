package bridge

import (
	"sync/atomic"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// noLease stands for a lease that is never valid: nobody waits for this instance
// before a stage moves on, so nothing may be dropped.
const noLease = false

// gate sends each copy its way. Its deliver functions are what the sources call,
// so they never block and do no I/O: a tenant's stage is looked up in memory.
type gate struct {
	stageOf func(tenant string) stage.Stage
	process func(pipeline.Delivery)
	hold    func(pipeline.Delivery, uint64)
	arrived [3]atomic.Uint64 // by path
}

func (g *gate) deliver(d pipeline.Delivery) {
	seq := g.arrived[d.Path].Add(1)
	if g.decide(&d) == stage.StandBy {
		g.hold(d, seq)
		return
	}
	g.process(d)
}

// arrivals is how many copies have come by a path.
func (g *gate) arrivals(p pipeline.Path) uint64 { return g.arrived[p].Load() }

// decide looks at nothing but the path and the tenant that the transport names. A
// copy that names no tenant is nobody's to decide about: it is processed on
// either path, and the ledger lets one of them count.
func (g *gate) decide(d *pipeline.Delivery) stage.Action {
	tenant := d.Tenant()
	if tenant == "" {
		return stage.Process
	}
	return stage.Decide(g.stageOf(tenant), d.Path, noLease, false)
}
