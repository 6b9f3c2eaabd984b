package jetstream

import (
	"context"
	"fmt"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// keep extends the deadlines of what is in hand until closed is. Once the loop
// has ended it also looks after the connection, because messages may still be
// settled.
func (p *puller) keep(closed <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	for backoff.Sleep(ctx, p.beat()) {
		if p.ended.Load() && p.conn.connected() && !p.isVerified() {
			p.reverify(ctx)
		}
		p.extend()
	}
}

// beat is a quarter of the time after which a deadline is extended.
func (p *puller) beat() time.Duration {
	return min(max(time.Duration(p.ackWait.Load())/12, 10*time.Millisecond), time.Second)
}

// extend tells the server of every message that was last extended longer than
// a third of ack_wait ago that it is being worked on.
func (p *puller) extend() {
	const chunk = 512
	var buf []string
	for {
		p.mu.RLock()
		good := p.verified && p.epoch == p.conn.epoch.Load() && p.conn.connected()
		generation := p.generation
		p.mu.RUnlock()
		if !good {
			return
		}
		now := monotonic()
		buf = p.hand.due(buf[:0], now-p.ackWait.Load()/3, now, generation, chunk)
		for _, reply := range buf {
			if p.conn.nc.Publish(reply, answerProgress) == nil {
				p.extensions.Add(1)
			}
		}
		if len(buf) < chunk {
			return
		}
	}
}

func (p *puller) isVerified() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.verified && p.epoch == p.conn.epoch.Load()
}

// unverify holds back answers: something happened after which the stream may
// be another one.
func (p *puller) unverify() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.verified = false
}

// reverify looks the consumer up after a reconnection, creating nothing.
func (p *puller) reverify(ctx context.Context) {
	epoch := p.conn.epoch.Load()
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	stream, err := p.conn.js.Stream(ctx, p.spec.name)
	if err == nil {
		var info *natsjs.ConsumerInfo
		if info, err = consumerInfo(ctx, stream, p.spec.consumer); err == nil {
			err = p.verify(ctx, ensured{stream, info}, epoch)
		}
	}
	if err != nil && ctx.Err() == nil {
		p.log.Warn("cannot acknowledge the messages in hand yet", "error", err)
	}
}

// verify finds out whether what is in hand belongs to the stream and consumer
// as they are now; if so it sends the answers that were put off, and if not it
// begins a new generation. Epoch is the connection's, from before anything was
// asked.
func (p *puller) verify(ctx context.Context, e ensured, epoch uint64) error {
	p.mu.RLock()
	created, generation := p.created, p.generation
	p.mu.RUnlock()
	same := created.IsZero() || created.Equal(e.consumer.Created)
	if same && !created.IsZero() {
		var err error
		if same, err = p.stillThere(ctx, e.stream, generation); err != nil {
			return err
		}
	}
	p.mu.Lock()
	deferred := p.deferred
	p.deferred = nil
	if !same {
		p.generation++
		p.log.Warn("the stream or consumer was replaced; messages in hand will not be acknowledged and come again where they still exist",
			"in_hand", len(p.hand.replies(generation)), "unsent", len(deferred))
		deferred = nil
	}
	p.created, p.verified, p.epoch = e.consumer.Created, true, epoch
	p.mu.Unlock()
	p.ackWait.Store(int64(effectiveAckWait(e.consumer.Config)))
	p.hand.overdue()
	for _, a := range deferred {
		if p.conn.nc.Publish(a.reply, a.body) != nil {
			break
		}
	}
	p.extend()
	return nil
}

// stillThere reports whether the stream holds, under the highest sequence in
// hand, the message that we were given under it. If it does, all lower
// sequences are what they were, too.
func (p *puller) stillThere(ctx context.Context, stream natsjs.Stream, generation uint64) (bool, error) {
	replies := p.hand.replies(generation)
	p.mu.RLock()
	for _, a := range p.deferred {
		replies = append(replies, a.reply)
	}
	p.mu.RUnlock()
	var highest replyMetadata
	for _, reply := range replies {
		if m, ok := parseReply(reply); ok && m.sequence > highest.sequence {
			highest = m
		}
	}
	if highest.sequence == 0 {
		return true, nil
	}
	same, err := holds(ctx, stream, highest.sequence, func(m *natsjs.RawStreamMsg) bool { return m.Time.Equal(highest.stored) })
	if err != nil {
		return false, fmt.Errorf("stream %s: %w", p.spec.name, err)
	}
	return same, nil
}
