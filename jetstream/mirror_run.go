package jetstream

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
)

// mirrorRun is the state of one Run; only its goroutine touches it.
type mirrorRun struct {
	m        *Mirror
	incoming []*item // taken from the queue, not published yet
	inFlight []*item // in the order of publishing, which confirmations mostly keep
	retry    []*item // failed, each with a due time
	warned   time.Time
	origin   awaitedOrigin
}

// publishDue publishes what is due, as far as the bound and the connection let it.
func (w *mirrorRun) publishDue() {
	if !w.m.conn.connected() {
		return
	}
	now := time.Now()
	later := w.retry[:0]
	for _, it := range w.retry {
		if it.due.After(now) || len(w.inFlight) >= w.m.cfg.MaxInFlight {
			later = append(later, it)
			continue
		}
		w.publish(it, &later)
	}
	clear(w.retry[len(later):])
	w.retry = later
	for len(w.inFlight) < w.m.cfg.MaxInFlight && w.take() {
		it := w.incoming[0]
		w.incoming[0] = nil
		w.incoming = w.incoming[1:]
		w.publish(it, &w.retry)
	}
	w.m.inFlight.Store(int64(len(w.inFlight)))
}

// take moves the queue into the run once the run has nothing left, and reports
// whether it has anything now.
func (w *mirrorRun) take() bool {
	if len(w.incoming) > 0 {
		return true
	}
	w.m.mu.Lock()
	queue := w.m.queue
	w.m.queue = nil
	w.m.mu.Unlock()
	w.incoming = make([]*item, len(queue))
	for i := range queue {
		w.incoming[i] = &queue[i]
	}
	return len(queue) > 0
}

// publish sends one envelope; what fails at once is appended to retry.
func (w *mirrorRun) publish(it *item, retry *[]*item) {
	m := w.m
	if it.msg == nil && !w.prepare(it) {
		m.waiting.Add(-1)
		return
	}
	if m.cfg.Awaited != nil {
		it.msg.Header = w.origin.header(it.proof, m.cfg.Awaited)
	}
	future, err := m.js.PublishMsgAsync(it.msg)
	if err != nil {
		if refusedForSize(err) {
			m.waiting.Add(-1)
			w.tooLarge(it)
			return
		}
		w.postpone(it, err)
		*retry = append(*retry, it)
		return
	}
	m.waiting.Add(-1)
	it.future = future
	w.inFlight = append(w.inFlight, it)
}

// prepare builds the envelope. It is false for messages that are not to be
// published; those are acknowledged and counted.
func (w *mirrorRun) prepare(it *item) bool {
	m, d := w.m, it.delivery
	o := parseTopic(d.Topic)
	if o.downlink() {
		m.done(d, &m.downlink)
		return false
	}
	subject, ok := o.subject()
	if !ok {
		m.warnTenant(o.tenant, "cannot mirror messages of this tenant: its name cannot be part of a NATS subject; its messages go by MQTT only", "topic", abridged(d.Topic))
		m.done(d, &m.unmirrorable)
		return false
	}
	size := len(d.Body) + 2*len(d.Topic) + len(d.Username) + 128
	envelope := appendEnvelope(make([]byte, 0, size), d.Topic, o, d.Username, d.Body, d.Receipt.Occurred().UnixMilli())
	it.msg = &nats.Msg{Subject: subject, Data: envelope}
	return true
}

// confirmed settles a message that the server has stored.
func (w *mirrorRun) confirmed(it *item, ack *natsjs.PubAck) {
	w.m.done(it.delivery, &w.m.published)
	if p, ok := it.delivery.Receipt.(passed); ok && w.m.cfg.Sentinel != nil {
		if s, ok := specOfStream(ack.Stream); ok {
			w.m.cfg.Sentinel(p.sentinel, Mark{Consumer: s.consumer, Sequence: ack.Sequence, text: p.sentinel.Nonce})
		}
	}
}

// failed has a message published again, unless that is hopeless.
func (w *mirrorRun) failed(it *item, err error) {
	if refusedForSize(err) {
		w.tooLarge(it)
		return
	}
	w.m.waiting.Add(1)
	w.postpone(it, err)
	w.retry = append(w.retry, it)
}

func (w *mirrorRun) tooLarge(it *item) {
	m := w.m
	m.warnTenant(parseTopic(it.delivery.Topic).tenant, "cannot mirror a message: its envelope is larger than the server or the stream permits; raise max_payload or max_msg_size",
		"topic", abridged(it.delivery.Topic), "bytes", len(it.msg.Data), "max_payload", m.conn.nc.MaxPayload())
	m.done(it.delivery, &m.tooLarge)
}

// postpone sets the time of the next attempt. One warning in ten seconds speaks
// for all.
func (w *mirrorRun) postpone(it *item, err error) {
	w.m.retries.Add(1)
	it.future = nil
	it.attempt++
	now := time.Now()
	it.due = now.Add(backoff.Delay(it.attempt, w.m.cfg.RetryBase, backoffLimit))
	if now.Sub(w.warned) > 10*time.Second {
		w.warned = now
		w.m.log.Warn("mirror could not publish to JetStream; retrying", "subject", it.msg.Subject, "attempt", it.attempt, "error", err)
	}
}

// sweep settles what is complete: from the head on, or all of it, so that one
// confirmation that does not come holds up no other.
func (w *mirrorRun) sweep(all bool) {
	kept := 0
	for i, it := range w.inFlight {
		select {
		case ack := <-it.future.Ok():
			w.confirmed(it, ack)
			continue
		case err := <-it.future.Err():
			w.failed(it, err)
			continue
		default:
		}
		if !all {
			w.inFlight = w.inFlight[i:]
			return
		}
		w.inFlight[kept] = it
		kept++
	}
	if !all {
		kept = 0
	}
	clear(w.inFlight[kept:])
	w.inFlight = w.inFlight[:kept]
}

// finish waits a moment for confirmations and gives back everything else.
func (w *mirrorRun) finish(ctx context.Context) {
	m := w.m
	m.mu.Lock()
	m.ended = true
	left := m.queue
	m.queue = nil
	m.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, finishGrace)
	defer cancel()
	for len(w.inFlight) > 0 && ctx.Err() == nil {
		head := w.inFlight[0]
		select {
		case ack := <-head.future.Ok():
			w.confirmed(head, ack)
			w.inFlight = w.inFlight[1:]
		case err := <-head.future.Err():
			w.failed(head, err)
			w.inFlight = w.inFlight[1:]
		case <-ctx.Done():
			w.sweep(true)
		}
	}
	give := func(d pipeline.Delivery) { m.release(d) }
	for _, items := range [][]*item{w.inFlight, w.retry, w.incoming} {
		for _, it := range items {
			give(it.delivery)
		}
	}
	for _, it := range left {
		give(it.delivery)
	}
	w.inFlight, w.retry, w.incoming = nil, nil, nil
	m.inFlight.Store(0)
	m.waiting.Store(0)
}
