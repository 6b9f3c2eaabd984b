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
	s.await(marked{mark: m, sentinel: what, mirrored: true})
}

func (s *sentinels) await(m marked) {
	if !s.quota.take(pipeline.PathJetStream, m.sentinel.Tenant) {
		s.count(pipeline.PathJetStream, sentinelExcess)
		return
	}
	m.since = time.Now()
	s.marks.Put(m)
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
	for consumer, waiting := range w.waiting {
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
				w.quota.giveBack(pipeline.PathJetStream, m.sentinel.Tenant)
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

// arrived takes note of a sentinel before which everything in its stream is settled.
func (w *watcher) arrived(m marked) {
	w.quota.giveBack(pipeline.PathJetStream, m.sentinel.Tenant)
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
