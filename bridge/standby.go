package bridge

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/batchqueue"
	"github.com/crossfade-io/crossfade/pipeline"
)

// standbyTick is how often waits are looked at, and so how exact they are.
const standbyTick = 20 * time.Millisecond

// standby holds copies of the path that is not authoritative, unacknowledged,
// until their message is durable. It is sure only of what the ledger says, or of
// what this instance has committed itself. What the other path does not bring in
// time is rescued: processed here, which the ledger makes safe at any moment.
//
// A held MQTT copy keeps back the PUBACKs of everything behind it, of every
// tenant. So besides its age the distance counts: an MQTT copy is rescued once
// `distance` others have arrived behind it, whether those stand by or not, long
// before the session's window is full. JetStream acknowledges in any order, so
// there only their number counts, and whether the server has stopped delivering
// for want of acknowledgements (relieve).
//
// All state belongs to the goroutine of run.
type standby struct {
	wait     time.Duration
	buffer   int   // held at most, per path
	distance int64 // arrivals behind a held MQTT copy at most; -1: none may be held
	decoder  *pipeline.Decoder
	recent   func(*pipeline.Identity) pipeline.Known
	known    func(context.Context, []pipeline.Identity) ([]pipeline.Known, error)
	process  func(pipeline.Delivery)
	decide   func(*pipeline.Delivery) stage.Action
	arrived  func(pipeline.Path) uint64 // arrivals so far, those included that do not stand by
	tally    *parity.Tally
	handOver time.Duration // how often the tally is written
	log      *slog.Logger

	intake    *batchqueue.Queue[waiting]
	committed *batchqueue.Queue[[]pipeline.Identity]
	restaged  chan struct{}      // a tenant's authority has moved
	stalled   chan pipeline.Path // nothing more comes until something is settled
	inquiry   inquiry
	silence   silence
	handed    time.Time // the tally, last

	held  map[pipeline.ID]*heldCopy // by key; copies of equal key are chained
	lines [3]line                   // by path
	last  [3]uint64                 // by path: the newest arrival's number
	now   [3]atomic.Int64           // by path: held, for those who ask from outside
	stats [3]map[string]prometheus.Counter
	gauge *prometheus.GaugeVec
	skew  *prometheus.HistogramVec
}

// waiting is a copy on its way to standby; seq is its number among all arrivals
// of its path.
type waiting struct {
	pipeline.Delivery
	at  time.Time
	seq uint64
}

type heldCopy struct {
	waiting
	identity   pipeline.Identity
	done       bool
	askAt      time.Time // when the ledger is to be asked about it next
	prev, next *heldCopy // of the same key
}

// The ways in which standing by ends; label values of crossfade_standby_total.
const (
	endMatched     = "matched"      // the message is durable: acknowledged
	endMismatched  = "mismatched"   // the same, with other content under the device's own ID
	endRescuedWait = "rescued_wait" // the wait was over
	endRescuedFull = "rescued_full" // too much behind it, too many held, or the path stalled
	endPromoted    = "promoted"     // its path became authoritative meanwhile
	endIgnored     = "ignored"      // downlink, sentinels
)

// newStandby makes a standby for a session whose broker sends no more than window
// unacknowledged MQTT messages; 0 where there is no such session.
func newStandby(wait time.Duration, buffer, window int, idMember string, reg prometheus.Registerer, log *slog.Logger) *standby {
	distance := buffer
	if window > 0 {
		distance = min(buffer, window/2, window-2) // the one behind is there before it is counted
	}
	s := &standby{
		wait: wait, buffer: buffer, distance: int64(distance), decoder: pipeline.NewDecoder(idMember), log: log,
		intake:    batchqueue.New[waiting](),
		committed: batchqueue.New[[]pipeline.Identity](),
		restaged:  make(chan struct{}, 1),
		stalled:   make(chan pipeline.Path, 1),
		inquiry:   inquiry{answers: make(chan answer, 1)},
		held:      make(map[pipeline.ID]*heldCopy),
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "crossfade_standby_held",
			Help: "Copies that stand by, unacknowledged, by path."}, []string{"path"}),
		skew: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "crossfade_standby_seconds",
			Help:    "How long a copy stood by until its message was seen durable, by path.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}, []string{"path"}),
	}
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_standby_total",
		Help: "Copies that stood by, by path and how it ended: matched, mismatched, rescued_wait, rescued_full, promoted, ignored."}, []string{"path", "end"})
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		s.stats[p] = make(map[string]prometheus.Counter)
		for _, end := range []string{endMatched, endMismatched, endRescuedWait, endRescuedFull, endPromoted, endIgnored} {
			s.stats[p][end] = total.WithLabelValues(p.String(), end)
		}
	}
	reg.MustRegister(total, s.gauge, s.skew)
	return s
}

// hold takes a copy. It never blocks.
func (s *standby) hold(d pipeline.Delivery, seq uint64) {
	s.intake.Put(waiting{d, time.Now(), seq})
}

// durable is told what this instance has committed.
func (s *standby) durable(ids []pipeline.Identity) {
	s.committed.Put(slices.Clone(ids))
}

// restage makes standby look again at what each held copy is to do.
func (s *standby) restage() {
	select {
	case s.restaged <- struct{}{}:
	default:
	}
}

// relieve makes standby rescue the older half of what a path holds: its server
// delivers nothing more before something is settled. It does not block.
func (s *standby) relieve(p pipeline.Path) {
	select {
	case s.stalled <- p:
	default:
	}
}

// holds is how many copies of a path stand by.
func (s *standby) holds(p pipeline.Path) int { return int(s.now[p].Load()) }

// run works until ctx ends, and then gives back what is still held.
func (s *standby) run(ctx context.Context) {
	tick := time.NewTicker(standbyTick)
	defer tick.Stop()
	var arrivals []waiting
	var durable [][]pipeline.Identity
	for {
		select {
		case <-ctx.Done():
			s.end()
			return
		case <-s.intake.Wake():
			arrivals = s.intake.Poll(arrivals[:0], math.MaxInt)
			s.arrive(arrivals)
			clear(arrivals)
		case <-s.committed.Wake():
			durable = s.committed.Poll(durable[:0], math.MaxInt)
			for _, ids := range durable {
				s.confirm(ids)
			}
			clear(durable)
		case a := <-s.inquiry.answers:
			s.answered(a)
		case <-s.restaged:
			s.reconsider()
		case p := <-s.stalled:
			s.rescueHalf(p)
		case <-tick.C:
			s.expire()
			s.makeRoom()
			s.endSilence()
			s.ask(ctx)
			s.handTally()
		}
		s.show()
	}
}

// show tells the outside how many are held.
func (s *standby) show() {
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		if n := int64(s.lines[p].live); s.now[p].Swap(n) != n {
			s.gauge.WithLabelValues(p.String()).Set(float64(n))
		}
	}
}

func (s *standby) end() {
	for _, w := range s.intake.Poll(nil, math.MaxInt) {
		s.giveBack(&w.Delivery)
	}
	for p := range s.lines {
		for h := range s.lines[p].each() {
			s.drop(h)
			s.giveBack(&h.Delivery)
		}
	}
	s.show()
	s.tally.Close()
	if s.inquiry.asking {
		<-s.inquiry.answers
	}
}

func (s *standby) giveBack(d *pipeline.Delivery) {
	if err := d.Receipt.Release(); err != nil {
		s.log.Debug("a copy that stood by could not be given back; it comes again all the same", "path", d.Path.String(), "error", err)
	}
}

func (s *standby) arrive(arrivals []waiting) {
	var m pipeline.Message
	for i := range arrivals {
		w := &arrivals[i]
		s.last[w.Path] = max(s.last[w.Path], w.seq)
		if s.decide(&w.Delivery) == stage.Process {
			s.finish(&heldCopy{waiting: *w}, endPromoted)
			continue
		}
		s.decoder.Decode(&m, &w.Delivery)
		h := &heldCopy{waiting: *w, identity: m.Identity}
		if m.Kind.Ignored() {
			s.finish(h, endIgnored)
		} else if k := s.recent(&h.identity); k.Durable && !k.Differs {
			s.match(h, k)
		} else {
			s.keep(h) // the ledger knows what exactly differs
		}
	}
	s.makeRoom()
}
