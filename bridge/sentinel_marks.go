package bridge

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// How often the server is asked how far a consumer has come, while anything waits for
// it: soon at first, then no more than every marksBeat.
const (
	marksFirst = 20 * time.Millisecond
	marksBeat  = 200 * time.Millisecond
)

// marksAge is how long a sentinel is waited for. By then another one was sent.
const marksAge = 15 * time.Minute

// marked is a sentinel in a stream, for which the acknowledgements before it are
// awaited.
type marked struct {
	mark     jetstream.Mark
	sentinel pipeline.Sentinel
	mirrored bool // by our own mirror, which has put all before it into the stream too
	since    time.Time
	place    place
}

// streamKinds are the kinds of sightings by the consumer of the stream.
var streamKinds = map[string]string{
	jetstream.ConsumerTelemetry: control.KindTelemetry,
	jetstream.ConsumerShadow:    control.KindShadow,
	jetstream.ConsumerCommands:  control.KindCommands,
}

// mark notes where in its stream a sentinel was received.
func (s *sentinels) mark(d *pipeline.Delivery, what pipeline.Sentinel) {
	r, ok := d.Receipt.(interface{ Mark() (jetstream.Mark, bool) })
	if !ok {
		s.count(d.Path, sentinelLost)
		return
	}
	m, ok := r.Mark()
	if !ok {
		s.count(d.Path, sentinelLost)
		return
	}
	s.await(marked{mark: m, sentinel: what})
}

// mirrored notes where in its stream our mirror has put a sentinel.
func (s *sentinels) mirrored(what pipeline.Sentinel, m jetstream.Mark) {
	if !s.genuine(what.Tenant, what.Nonce) {
		return // it is counted where it comes out
	}
	s.brought(what.Nonce)
	s.await(marked{mark: m, sentinel: what, mirrored: true})
}

// await watches a sentinel, unless it is in another stream than its messages belong to:
// what a stream has settled says nothing of those that went elsewhere.
func (s *sentinels) await(m marked) {
	if kind := streamKinds[m.mark.Consumer]; kind != kindOf(m.sentinel.Type) {
		s.count(pipeline.PathJetStream, sentinelAstray)
		if !s.astray.Swap(true) {
			s.log.Warn("a sentinel came out of a stream for messages of another type; does the mirror choose subjects as it should?",
				"type", m.sentinel.Type, "consumer", m.mark.Consumer, "tenant", m.sentinel.Tenant)
		}
		return
	}
	m.place = place{pipeline.PathJetStream, m.sentinel.Tenant, m.sentinel.Nonce, "in " + m.mark.Consumer}
	if m.mirrored {
		m.place.what = "mirrored " + m.place.what
	}
	switch s.quota.take(m.place) {
	case roomRefused:
		s.count(pipeline.PathJetStream, sentinelExcess)
	case roomGiven:
		m.since = time.Now()
		s.marks.Put(m)
	}
}

// watch asks the server for as long as there are marks, until ctx ends.
func (s *sentinels) watch(ctx context.Context) {
	w := watcher{sentinels: s, waiting: make(map[string][]marked), mirrors: make(map[string]*mirrorProof)}
	beat := time.NewTimer(0)
	defer beat.Stop()
	pause := marksBeat
	for {
		var due <-chan time.Time // nil while nothing waits
		if len(w.waiting) > 0 {
			due = beat.C
		}
		select {
		case <-ctx.Done():
			return
		case <-s.marks.Wake():
			if len(w.waiting) == 0 {
				pause = marksFirst
				beat.Reset(pause)
			}
			w.add(s.marks.Poll(nil, math.MaxInt))
		case <-due:
			w.ask(ctx)
			pause = min(2*pause, marksBeat)
			beat.Reset(pause)
		}
	}
}

// watcher is the state of watch.
type watcher struct {
	*sentinels
	waiting map[string][]marked // by consumer; none of them empty
	mirrors map[string]*mirrorProof
	failing bool
}

// mirrorProof is what our mirror has brought of one nonce.
type mirrorProof struct {
	consumers []string // where everything before the sentinel is settled
	since     time.Time
}

func (w *watcher) add(marks []marked) {
	for _, m := range marks {
		w.waiting[m.mark.Consumer] = append(w.waiting[m.mark.Consumer], m)
	}
}

// ask finds out about every mark that waits.
func (w *watcher) ask(ctx context.Context) {
	for consumer := range w.waiting {
		waiting := w.held(consumer)
		if len(waiting) == 0 {
			continue
		}
		marks := make([]jetstream.Mark, len(waiting))
		for i := range waiting {
			marks[i] = waiting[i].mark
		}
		known, err := w.settled(ctx, consumer, marks)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !w.failing {
			w.log.Warn("how far JetStream consumers have come cannot be asked; sentinels wait", "error", err)
		}
		w.failing = err != nil
		left := waiting[:0]
		for i, m := range waiting {
			m.mark = marks[i]
			switch {
			case err == nil && known[i] == jetstream.MarkSettled:
				w.arrived(m)
			case err == nil && known[i] == jetstream.MarkGone, time.Since(m.since) > marksAge:
				w.quota.giveBack(m.place)
				w.count(pipeline.PathJetStream, sentinelLost)
			default:
				left = append(left, m)
			}
		}
		clear(waiting[len(left):])
		if w.waiting[consumer] = left; len(left) == 0 {
			delete(w.waiting, consumer)
		}
	}
	for nonce, p := range w.mirrors {
		if time.Since(p.since) > marksAge {
			delete(w.mirrors, nonce)
		}
	}
}

// held are those that wait for a consumer, without those that gave way to newer ones.
func (w *watcher) held(consumer string) []marked {
	waiting := slices.DeleteFunc(w.waiting[consumer], func(m marked) bool {
		gone := !w.quota.has(m.place)
		if gone {
			w.count(pipeline.PathJetStream, sentinelExcess)
		}
		return gone
	})
	if w.waiting[consumer] = waiting; len(waiting) == 0 {
		delete(w.waiting, consumer)
	}
	return waiting
}

// arrived takes note of a sentinel before which everything in its stream is settled.
func (w *watcher) arrived(m marked) {
	w.quota.giveBack(m.place)
	if !m.mirrored {
		w.see(pipeline.PathJetStream, kindOf(m.sentinel.Type), m.sentinel)
		return
	}
	p := w.mirrors[m.sentinel.Nonce]
	if p == nil {
		p = &mirrorProof{since: time.Now()}
		w.mirrors[m.sentinel.Nonce] = p
	}
	if !slices.Contains(p.consumers, m.mark.Consumer) {
		p.consumers = append(p.consumers, m.mark.Consumer)
	}
	if len(p.consumers) == len(pipeline.SentinelTypes()) {
		delete(w.mirrors, m.sentinel.Nonce)
		w.see(pipeline.PathJetStream, control.KindMirror, m.sentinel)
	}
}
