package bridge

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/internal/batchqueue"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// sentinels finds out when a sentinel has come out of a path with everything before it
// settled, and has that written down.
//
//	gate ──► take ──MQTT: once its PUBACK had its turn───────────────────► seen ──► record
//	           └───JetStream: acknowledged at once──► marks ──floor reached──┘
//	mirror ──► mirrored: stored in all streams ───────► marks ──────────────┘
//
// A sentinel holds nothing up: it is acknowledged on arrival, whatever it says, and
// what is watched is how far the acknowledgements before it have come. If this process
// ends meanwhile, only the sentinel is lost, and another one is sent.
type sentinels struct {
	// settled asks how far a consumer has come; nil without NATS.
	settled func(ctx context.Context, consumer string, marks []jetstream.Mark) ([]jetstream.Progress, error)
	// saw writes sightings down, those of nonces that somebody waits for.
	saw func(context.Context, []control.Sighting) error
	// genuine tells a leader's nonces from those that others make up.
	genuine func(tenant, nonce string) bool
	// brought is told of each genuine sentinel that our mirror has put into a stream.
	brought func(nonce string)
	log     *slog.Logger

	astray atomic.Bool // it was logged that some came out of the wrong stream
	quota  quota
	marks  *batchqueue.Queue[marked]
	seen   *batchqueue.Queue[sighting]
	stats  [3]map[string]prometheus.Counter // by path
}

// sighting is one on its way to being recorded.
type sighting struct {
	control.Sighting
	place
}

// The ways in which a sentinel ends; label values of crossfade_sentinels_total.
const (
	sentinelSeen   = "seen"   // it came out, with all before it settled
	sentinelForged = "forged" // no sentinel of ours, though on the reserved device
	sentinelAstray = "astray" // ours, in a stream for messages of another type
	sentinelExcess = "excess" // one that was sent again, much later
	sentinelLost   = "lost"   // the stream or its consumer was replaced, or it took too long
)

func newSentinels(reg prometheus.Registerer, log *slog.Logger) *sentinels {
	s := &sentinels{
		saw:     func(context.Context, []control.Sighting) error { return nil },
		genuine: func(string, string) bool { return false }, brought: func(string) {}, log: log,
		quota: newQuota(),
		marks: batchqueue.New[marked](),
		seen:  batchqueue.New[sighting](),
	}
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_sentinels_total",
		Help: "Messages on the reserved device by path and what became of them: seen, forged, astray, excess, lost."}, []string{"path", "result"})
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		s.stats[p] = make(map[string]prometheus.Counter)
		for _, result := range []string{sentinelSeen, sentinelForged, sentinelAstray, sentinelExcess, sentinelLost} {
			s.stats[p][result] = total.WithLabelValues(p.String(), result)
		}
	}
	reg.MustRegister(total)
	return s
}

func (s *sentinels) count(p pipeline.Path, result string) { s.stats[p][result].Inc() }

// kindOf is the kind of sighting for a sentinel's message type.
func kindOf(msgType string) string {
	switch msgType {
	case pipeline.SentinelShadow:
		return control.KindShadow
	case pipeline.SentinelCommands:
		return control.KindCommands
	}
	return control.KindTelemetry
}

// take settles a copy that came for the reserved device. It does not block.
func (s *sentinels) take(d *pipeline.Delivery, what pipeline.Sentinel) {
	ordered, ok := d.Receipt.(pipeline.OrderedReceipt)
	switch {
	case !s.genuine(what.Tenant, what.Nonce):
		s.count(d.Path, sentinelForged)
	case d.Path == pipeline.PathJetStream:
		s.mark(d, what)
	case ok:
		// An error means that the sentinel comes again, as all before it do; or that it
		// came with QoS 0, ahead of what waits at the broker.
		_ = ordered.AckThen(func() { s.see(pipeline.PathMQTT, kindOf(what.Type), what) })
		return
	default: // a source that cannot tell proves nothing
		s.count(d.Path, sentinelLost)
	}
	_ = d.Receipt.Ack() // where it fails it comes again, which is as well
}

// see takes note of a sentinel that has come out. It does not block.
func (s *sentinels) see(p pipeline.Path, kind string, what pipeline.Sentinel) {
	at := place{p, what.Tenant, what.Nonce, kind}
	switch s.quota.take(at) {
	case roomRefused:
		s.count(p, sentinelExcess)
		return
	case roomGiven:
		s.seen.Put(sighting{control.Sighting{Nonce: what.Nonce, Path: p, Kind: kind, At: time.Now()}, at})
	}
	s.count(p, sentinelSeen)
}

// run works until ctx ends.
func (s *sentinels) run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { s.record(ctx) })
	s.watch(ctx)
	parts.Wait()
}

const (
	recordLinger = 20 * time.Millisecond
	recordBatch  = 5000
	recordRetry  = 500 * time.Millisecond
)

// record writes down what was seen, in batches, and tries again for as long as that
// fails: what was seen stays true.
func (s *sentinels) record(ctx context.Context) {
	var batch []sighting
	for ctx.Err() == nil {
		batch = s.seen.Take(ctx, batch[:0], recordBatch, recordLinger)
		if len(batch) == 0 {
			continue
		}
		list := make([]control.Sighting, len(batch))
		for i := range batch {
			list[i] = batch[i].Sighting
		}
		for failed := false; ; failed = true {
			err := s.saw(ctx, list)
			if err == nil || ctx.Err() != nil {
				break
			}
			if !failed {
				s.log.Warn("sightings of sentinels cannot be written; trying again until they can", "sightings", len(list), "error", err)
			}
			backoff.Sleep(ctx, backoff.Jitter(recordRetry))
		}
		for _, b := range batch {
			s.quota.giveBack(b.place)
		}
	}
}
