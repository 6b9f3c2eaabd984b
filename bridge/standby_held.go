package bridge

import (
	"iter"
	"slices"
	"time"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// line is what one path holds, in order of arrival. Copies leave it anywhere: one
// that waits long at the old end must not keep the thousands behind it in memory
// that are done since.
type line struct {
	copies []*heldCopy
	head   int // before it all is done
	live   int // not done
}

// lineSlack is how much that is done a line may keep before it is made tight.
const lineSlack = 1024

// each yields what is held, oldest first; the consumer may drop it meanwhile.
func (l *line) each() iter.Seq[*heldCopy] {
	return func(yield func(*heldCopy) bool) {
		for _, h := range l.copies[l.head:] {
			if !h.done && !yield(h) {
				return
			}
		}
	}
}

// tidy forgets what is done, at a cost that is constant per copy.
func (l *line) tidy() {
	for l.head < len(l.copies) && l.copies[l.head].done {
		l.copies[l.head] = nil
		l.head++
	}
	if len(l.copies) <= 2*l.live+lineSlack {
		return
	}
	kept := slices.DeleteFunc(l.copies[l.head:], func(h *heldCopy) bool { return h.done })
	n := copy(l.copies, kept)
	clear(l.copies[n:])
	l.copies, l.head = l.copies[:n], 0
}

// heldKey is what all copies of a message have in common, anonymous ones included.
func heldKey(c *pipeline.Identity) pipeline.ID {
	if c.Anonymous {
		return c.ID.Content()
	}
	return c.ID
}

// keep begins to hold a copy.
func (s *standby) keep(h *heldCopy) {
	key := heldKey(&h.identity)
	if h.next = s.held[key]; h.next != nil {
		h.next.prev = h
	}
	s.held[key] = h
	l := &s.lines[h.Path]
	l.copies = append(l.copies, h)
	l.live++
	s.inquiry.add(h, h.at.Add(ledgerBeat/2))
}

// drop takes a copy out of what is held. Equal content can be sent by the
// thousands, so it looks at none of the others.
func (s *standby) drop(h *heldCopy) {
	if h.next != nil {
		h.next.prev = h.prev
	}
	switch key := heldKey(&h.identity); {
	case h.prev != nil:
		h.prev.next = h.next
	case h.next != nil:
		s.held[key] = h.next
	default:
		delete(s.held, key)
	}
	h.prev, h.next = nil, nil
	h.done = true
	s.lines[h.Path].live--
}

// finish settles a copy or hands it on, and counts how its standing by ended.
func (s *standby) finish(h *heldCopy, end string) {
	s.stats[h.Path][end].Inc()
	switch end {
	case endMatched, endMismatched:
		s.skew.WithLabelValues(h.Path.String()).Observe(time.Since(h.at).Seconds())
		fallthrough
	case endIgnored:
		if err := h.Receipt.Ack(); err != nil {
			s.log.Debug("a copy that stood by could not be acknowledged; it comes again and is known", "path", h.Path.String(), "error", err)
		}
	default:
		if end != endPromoted {
			s.tally.Rescued(h.Tenant(), time.Now(), end == endRescuedFull)
		}
		s.process(h.Delivery)
	}
	h.Delivery = pipeline.Delivery{Path: h.Path} // others may hold h a while longer, but not the body
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
				s.match(h, pipeline.Known{
					Durable: true,
					Differs: ids[i].Explicit && ids[i].Digest != h.identity.Digest,
					Digest:  ids[i].Digest,
				})
			}
			h = next
		}
	}
	s.tidy()
}

func (s *standby) tidy() {
	for p := range s.lines {
		s.lines[p].tidy()
	}
}

// rescue processes what path p holds, oldest first, for as long as due says so.
func (s *standby) rescue(p int, end string, due func(*heldCopy) bool) {
	for h := range s.lines[p].each() {
		if !due(h) {
			break
		}
		s.drop(h)
		s.finish(h, end)
	}
	s.lines[p].tidy()
}

// expire rescues what has waited long enough.
func (s *standby) expire() {
	now := time.Now()
	for p := range s.lines {
		s.rescue(p, endRescuedWait, func(h *heldCopy) bool { return now.Sub(h.at) >= s.wait })
	}
}

// makeRoom rescues the oldest copies of a path while there are too many, or too
// much has arrived behind them.
func (s *standby) makeRoom() {
	for p := range s.lines {
		if s.lines[p].live == 0 {
			continue
		}
		mqtt := pipeline.Path(p) == pipeline.PathMQTT
		s.last[p] = max(s.last[p], s.arrived(pipeline.Path(p)))
		s.rescue(p, endRescuedFull, func(h *heldCopy) bool {
			return s.lines[p].live > s.buffer || mqtt && int64(s.last[p]-h.seq) > s.distance
		})
	}
}

// rescueHalf rescues the older half of what a path holds.
func (s *standby) rescueHalf(p pipeline.Path) {
	keep := s.lines[p].live / 2
	s.rescue(int(p), endRescuedFull, func(*heldCopy) bool { return s.lines[p].live > keep })
}

// reconsider releases to the pipeline what no longer has to stand by.
func (s *standby) reconsider() {
	for p := range s.lines {
		for h := range s.lines[p].each() {
			if s.decide(&h.Delivery) == stage.Process {
				s.drop(h)
				s.finish(h, endPromoted)
			}
		}
	}
	s.tidy()
}
