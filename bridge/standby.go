package bridge

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/internal/batchqueue"
	"github.com/crossfade-io/crossfade/pipeline"
)

const (
	// standbyTick is how often waits are looked at, and so how exact they are.
	standbyTick = 20 * time.Millisecond
	// ledgerBeat is how often the ledger is asked about copies that this instance
	// did not see committed: their siblings went through another one.
	ledgerBeat = 200 * time.Millisecond
	// ledgerBatch is the most copies asked about at once.
	ledgerBatch = 2000
)

// standby holds copies of the path that is not authoritative, unacknowledged,
// until their message is durable. It is sure only of what the ledger says, or of
// what this instance has committed itself. What the other path does not bring in
// time is rescued: processed here, which the ledger makes safe at any moment.
//
// A held MQTT copy keeps back the PUBACKs of everything behind it, of every
// tenant. So besides its age the distance counts: an MQTT copy is rescued once
// `buffer` others have arrived behind it, long before the session's window is
// full. JetStream acknowledges in any order, so there only their number counts.
//
// All state belongs to the goroutine of run.
type standby struct {
	wait    time.Duration
	buffer  int
	decoder *pipeline.Decoder
	recent  func(*pipeline.Identity) bool
	known   func(context.Context, []pipeline.Identity) ([]bool, error)
	process func(pipeline.Delivery)
	decide  func(*pipeline.Delivery) stage.Action
	log     *slog.Logger

	intake    *batchqueue.Queue[waiting]
	committed *batchqueue.Queue[[]pipeline.Identity]
	restaged  chan struct{} // a tenant's authority has moved
	answers   chan answer
	asking    bool
	asked     time.Time

	held  map[pipeline.ID]*heldCopy // by key; copies of equal key are chained
	order [3][]*heldCopy            // by path, in order of arrival
	count [3]int                    // by path: held now
	last  [3]uint64                 // by path: the newest arrival's number
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
	identity pipeline.Identity
	done     bool
	next     *heldCopy // of the same key
}

// answer is what the ledger said of some copies.
type answer struct {
	copies []*heldCopy
	known  []bool
	err    error
}

// The ways in which standing by ends; label values of crossfade_standby_total.
const (
	endMatched     = "matched"      // the message is durable: acknowledged
	endRescuedWait = "rescued_wait" // the wait was over
	endRescuedFull = "rescued_full" // too much behind it, or too many held
	endPromoted    = "promoted"     // its path became authoritative meanwhile
	endIgnored     = "ignored"      // downlink
)

func newStandby(wait time.Duration, buffer int, idMember string, reg prometheus.Registerer, log *slog.Logger) *standby {
	s := &standby{
		wait: wait, buffer: buffer, decoder: pipeline.NewDecoder(idMember), log: log,
		intake:    batchqueue.New[waiting](),
		committed: batchqueue.New[[]pipeline.Identity](),
		restaged:  make(chan struct{}, 1),
		answers:   make(chan answer, 1),
		held:      make(map[pipeline.ID]*heldCopy),
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "crossfade_standby_held",
			Help: "Copies that stand by, unacknowledged, by path."}, []string{"path"}),
		skew: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "crossfade_standby_seconds",
			Help:    "How long a copy stood by until its message was seen durable, by path.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)}, []string{"path"}),
	}
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_standby_total",
		Help: "Copies that stood by, by path and how it ended: matched, rescued_wait, rescued_full, promoted, ignored."}, []string{"path", "end"})
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		s.stats[p] = make(map[string]prometheus.Counter)
		for _, end := range []string{endMatched, endRescuedWait, endRescuedFull, endPromoted, endIgnored} {
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
		case a := <-s.answers:
			s.answered(a)
		case <-s.restaged:
			s.reconsider()
		case <-tick.C:
			s.expire()
			s.ask(ctx)
		}
	}
}

func (s *standby) end() {
	for _, w := range s.intake.Poll(nil, math.MaxInt) {
		s.giveBack(&w.Delivery)
	}
	for _, copies := range s.order {
		for _, h := range copies {
			if !h.done {
				s.giveBack(&h.Delivery)
			}
		}
	}
	if s.asking {
		<-s.answers
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
		switch {
		case m.Kind == pipeline.KindDownlink && m.Failed != pipeline.TenantMismatchEnvelope:
			s.finish(h, endIgnored)
		case s.recent(&h.identity):
			s.finish(h, endMatched)
		default:
			key := heldKey(&h.identity)
			h.next = s.held[key]
			s.held[key] = h
			s.order[w.Path] = append(s.order[w.Path], h)
			s.count[w.Path]++
		}
	}
	for _, p := range []pipeline.Path{pipeline.PathMQTT, pipeline.PathJetStream} {
		s.makeRoom(p)
		s.gauge.WithLabelValues(p.String()).Set(float64(s.count[p]))
	}
}

// heldKey is what all copies of a message have in common, anonymous ones included.
func heldKey(c *pipeline.Identity) pipeline.ID {
	if c.Anonymous {
		return c.ID.Content()
	}
	return c.ID
}

// confirm acknowledges the held copies of messages that are durable.
func (s *standby) confirm(ids []pipeline.Identity) {
	if len(s.held) == 0 {
		return
	}
	for i := range ids {
		for h := s.held[heldKey(&ids[i])]; h != nil; {
			next := h.next
			if !ids[i].Anonymous || pipeline.SameOccurrence(ids[i].Occurred, h.identity.Occurred) {
				s.drop(h)
				s.finish(h, endMatched)
			}
			h = next
		}
	}
}

// expire rescues what has waited long enough.
func (s *standby) expire() {
	now := time.Now()
	for p := range s.order {
		s.trim(p)
		for _, h := range s.order[p] {
			if now.Sub(h.at) < s.wait {
				break
			}
			if !h.done {
				s.drop(h)
				s.finish(h, endRescuedWait)
			}
		}
		s.trim(p)
	}
}

// makeRoom rescues the oldest copies of a path while there are too many, or too
// much has arrived behind them.
func (s *standby) makeRoom(p pipeline.Path) {
	s.trim(int(p))
	for _, h := range s.order[p] {
		full := s.count[p] > s.buffer
		if p == pipeline.PathMQTT {
			full = full || s.last[p]-h.seq > uint64(s.buffer)
		}
		if !full {
			break
		}
		if !h.done {
			s.drop(h)
			s.finish(h, endRescuedFull)
		}
	}
	s.trim(int(p))
}

// trim forgets what is done at the old end.
func (s *standby) trim(p int) {
	n := 0
	for n < len(s.order[p]) && s.order[p][n].done {
		n++
	}
	if n > 0 {
		s.order[p] = slices.Delete(s.order[p], 0, n)
	}
}

// reconsider releases to the pipeline what no longer has to stand by.
func (s *standby) reconsider() {
	for p := range s.order {
		for _, h := range s.order[p] {
			if !h.done && s.decide(&h.Delivery) == stage.Process {
				s.drop(h)
				s.finish(h, endPromoted)
			}
		}
		s.trim(p)
	}
}

// ask starts a look-up in the ledger for the oldest held copies, unless one is
// under way. It runs beside the loop: a slow database must not stop the clock.
func (s *standby) ask(ctx context.Context) {
	if s.asking || time.Since(s.asked) < ledgerBeat {
		return
	}
	var copies []*heldCopy
	var ids []pipeline.Identity
	for p := range s.order {
		for _, h := range s.order[p] {
			if len(copies) == ledgerBatch || time.Since(h.at) < ledgerBeat/2 {
				break
			}
			if !h.done {
				copies, ids = append(copies, h), append(ids, h.identity)
			}
		}
	}
	if len(copies) == 0 {
		return
	}
	s.asking, s.asked = true, time.Now()
	go func() {
		known, err := s.known(ctx, ids)
		s.answers <- answer{copies, known, err}
	}()
}

func (s *standby) answered(a answer) {
	s.asking = false
	if a.err != nil {
		s.log.Debug("the ledger could not be asked about copies that stand by", "copies", len(a.copies), "error", a.err)
		return
	}
	for i, h := range a.copies {
		if a.known[i] && !h.done {
			s.drop(h)
			s.finish(h, endMatched)
		}
	}
}

// drop takes a copy out of held; order forgets it when it is the oldest.
func (s *standby) drop(h *heldCopy) {
	key := heldKey(&h.identity)
	for at := s.held[key]; at != nil; at = at.next {
		if at == h {
			s.held[key] = h.next
			break
		}
		if at.next == h {
			at.next = h.next
			break
		}
	}
	if s.held[key] == nil {
		delete(s.held, key)
	}
	h.done = true
	s.count[h.Path]--
}

// finish settles a copy or hands it on, and counts how its standing by ended.
func (s *standby) finish(h *heldCopy, end string) {
	s.stats[h.Path][end].Inc()
	switch end {
	case endMatched:
		s.skew.WithLabelValues(h.Path.String()).Observe(time.Since(h.at).Seconds())
		fallthrough
	case endIgnored:
		if err := h.Receipt.Ack(); err != nil {
			s.log.Debug("a copy that stood by could not be acknowledged; it comes again and is known", "path", h.Path.String(), "error", err)
		}
	default:
		s.process(h.Delivery)
	}
}
