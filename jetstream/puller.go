package jetstream

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
)

// puller is the loop over one durable consumer. It lives through sessions: a
// session ends with anything out of the ordinary, and the next one begins by
// making sure that stream and consumer exist and are still the same.
type puller struct {
	conn *Conn
	spec spec
	cfg  SourceConfig
	log  *slog.Logger
	hand *hand

	givenUp *givenUp

	state   atomic.Pointer[error] // what Health says
	ackWait atomic.Int64          // nanoseconds; the consumer's own
	largest atomic.Int64          // bytes that the stream takes in one message; 0: not known yet
	ended   atomic.Bool           // run has returned

	lastFull atomic.Int64 // when messages that were too much were last logged, Unix seconds

	// Receipts are sent only while the current generation is known to be good.
	mu         sync.RWMutex
	generation uint64    // counts replacements of stream or consumer
	created    time.Time // of the consumer that generation belongs to
	verified   bool      // generation was checked…
	epoch      uint64    // …on this connection
	deferred   []answer  // given while unverified
	closed     bool

	received, acked, released, ackErrors, extensions, fetchErrors atomic.Uint64
}

// giveBack has the server deliver a message again that there is no room for.
func (p *puller) giveBack(reply string) {
	if p.conn.nc.Publish(reply, answerLater) == nil {
		p.released.Add(1)
	}
	if now, last := time.Now().Unix(), p.lastFull.Load(); now-last >= 60 && p.lastFull.CompareAndSwap(last, now) {
		held, _ := p.hand.counts()
		p.log.Warn("messages are given back to JetStream for a second: too much in hand; they come again as others are settled",
			"in_hand", held, "bytes", p.hand.heldBytes(), "window_bytes", p.cfg.WindowBytes)
	}
}

// answer is a settled receipt that could not be sent yet.
type answer struct {
	reply string
	body  []byte
}

var errNotStarted = errors.New("not started")
var errStopped = errors.New("stopped")

func newPuller(conn *Conn, s spec, cfg SourceConfig, log *slog.Logger) *puller {
	p := &puller{
		conn: conn, spec: s, cfg: cfg, hand: newHand(), generation: 1,
		log: log.With("stream", s.name, "consumer", s.consumer),
	}
	p.givenUp = newGivenUp(p)
	p.ackWait.Store(int64(ourAckWait))
	p.setHealth(errNotStarted)
	return p
}

func (p *puller) setHealth(err error) { p.state.Store(&err) }
func (p *puller) health() error       { return *p.state.Load() }

// run holds one session after the other until ctx ends.
func (p *puller) run(ctx context.Context, deliver func(pipeline.Delivery)) error {
	defer p.ended.Store(true)
	attempt, began := 0, false
	for p.conn.awaitConnected(ctx) {
		s := newSession(p, deliver)
		err := s.run(ctx)
		if ctx.Err() != nil {
			break
		}
		if !s.began && !began && errors.Is(err, ErrUnusable) {
			p.setHealth(err)
			return err
		}
		p.setHealth(err)
		p.fetchErrors.Add(1)
		began = began || s.began
		if s.progressed.Load() {
			attempt = 0
		}
		attempt++
		delay := backoff.Delay(attempt, reconnectBase, backoffLimit)
		p.log.Warn("pulling from JetStream was interrupted; trying again", "error", err, "delay", delay)
		if p.conn.connected() && !backoff.Sleep(ctx, delay) {
			break
		}
	}
	p.setHealth(errStopped)
	return nil
}

// settle sends the answer to one message and takes it out of the hand.
func (p *puller) settle(r *receipt, body []byte) error {
	if !p.hand.remove(r) {
		return ErrSettled
	}
	if r.givenUp != nil {
		back := &body[0] != &answerAck[0]
		p.givenUp.settled(r, back)
		if back {
			p.released.Add(1)
			return nil
		}
	}
	err := p.answer(r, body)
	switch {
	case err != nil:
		p.ackErrors.Add(1)
	case &body[0] == &answerAck[0]:
		p.acked.Add(1)
	default:
		p.released.Add(1)
	}
	return err
}

func (p *puller) answer(r *receipt, body []byte) error {
	p.mu.RLock()
	good := p.verified && p.epoch == p.conn.epoch.Load()
	stale := r.generation != p.generation
	if good && !stale {
		err := p.conn.nc.Publish(r.reply, body)
		p.mu.RUnlock()
		if err == nil {
			return nil
		}
	} else {
		p.mu.RUnlock()
	}
	if stale {
		return ErrStale
	}
	return p.putOff(r, body)
}

// putOff keeps an answer until the connection is back and the stream is known
// to be the same.
func (p *puller) putOff(r *receipt, body []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrSettled
	}
	if r.generation != p.generation {
		return ErrStale
	}
	// As many as the hand can hold: with more, the oldest have passed their
	// deadlines anyway and come again.
	if len(p.deferred) < p.cfg.Window {
		p.deferred = append(p.deferred, answer{r.reply, body})
	}
	return ErrNotConnected
}

// close gives back what is in hand, where that can be told to the server, and
// reports whether there is anything to flush.
func (p *puller) close() (sent bool) {
	left := p.hand.abandon()
	for _, r := range left {
		if r.givenUp != nil {
			p.givenUp.lose(r.givenUp.sequence, "it was in hand when the source was closed")
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.verified && p.epoch == p.conn.epoch.Load() && p.conn.connected() {
		for _, r := range left {
			if r.givenUp != nil {
				continue
			}
			if r.generation == p.generation && p.conn.nc.Publish(r.reply, answerNak) == nil {
				p.released.Add(1)
			}
		}
		return true
	}
	// Answers that were put off are lost with the process; their receipts said so.
	return false
}

func (p *puller) stats() ConsumerStats {
	held, requested := p.hand.counts()
	return ConsumerStats{
		Stream: p.spec.name, Consumer: p.spec.consumer,
		Received: p.received.Load(), Acked: p.acked.Load(), Released: p.released.Load(),
		AckErrors: p.ackErrors.Load(), Extensions: p.extensions.Load(), FetchErrors: p.fetchErrors.Load(),
		InHand: held, HeldBytes: p.hand.heldBytes(), Requested: requested,
		GivenUpTaken: p.givenUp.taken.Load(), GivenUpLost: p.givenUp.lost.Load(),
	}
}
