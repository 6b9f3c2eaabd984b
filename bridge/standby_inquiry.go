package bridge

import (
	"context"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

const (
	// ledgerBeat is how often the ledger is asked about a copy that this instance
	// did not see committed: its sibling went through another one.
	ledgerBeat = 200 * time.Millisecond
	// ledgerBatch is the most copies asked about at once.
	ledgerBatch = 2000
	// ledgerTimeout bounds one look-up, so that a connection that hangs does not end
	// all further ones.
	ledgerTimeout = 10 * time.Second
)

// inquiry is whom the ledger is to be asked about next. Every copy has its turn,
// however many older ones the ledger does not know.
type inquiry struct {
	queue   []*heldCopy // by the time of their turn
	head    int
	answers chan answer
	asking  bool
	more    bool // the last batch was full
	asked   time.Time
}

// answer is what the ledger said of some copies.
type answer struct {
	copies []*heldCopy
	known  []pipeline.Known
	err    error
}

func (q *inquiry) add(h *heldCopy, at time.Time) {
	h.askAt = at
	q.queue = append(q.queue, h)
}

// due takes up to ledgerBatch copies whose turn has come.
func (q *inquiry) due(now time.Time) (copies []*heldCopy, ids []pipeline.Identity) {
	for ; q.head < len(q.queue) && len(copies) < ledgerBatch; q.head++ {
		h := q.queue[q.head]
		if !h.done {
			if h.askAt.After(now) {
				break
			}
			copies, ids = append(copies, h), append(ids, h.identity)
		}
		q.queue[q.head] = nil
	}
	if q.head > len(q.queue)/2 {
		n := copy(q.queue, q.queue[q.head:])
		clear(q.queue[n:])
		q.queue, q.head = q.queue[:n], 0
	}
	return copies, ids
}

// ask starts a look-up in the ledger, unless one is under way. It runs beside the
// loop: a slow database must not stop the clock.
func (s *standby) ask(ctx context.Context) {
	q := &s.inquiry
	if q.asking || !q.more && time.Since(q.asked) < ledgerBeat {
		return
	}
	copies, ids := q.due(time.Now())
	q.more = len(copies) == ledgerBatch
	if len(copies) == 0 {
		return
	}
	q.asking, q.asked = true, time.Now()
	go func() {
		ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
		defer cancel()
		known, err := s.known(ctx, ids)
		q.answers <- answer{copies, known, err}
	}()
}

func (s *standby) answered(a answer) {
	s.inquiry.asking = false
	if a.err != nil {
		s.inquiry.more = false // no hurry to hear that again
		s.log.Debug("the ledger could not be asked about copies that stand by", "copies", len(a.copies), "error", a.err)
	}
	again := time.Now().Add(ledgerBeat)
	for i, h := range a.copies {
		switch {
		case h.done:
		case a.err == nil && a.known[i].Durable:
			s.drop(h)
			s.match(h, a.known[i])
		default:
			s.inquiry.add(h, again)
		}
	}
	s.tidy()
}
