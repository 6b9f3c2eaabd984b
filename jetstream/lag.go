package jetstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// Backlog is how far one consumer is behind, as the server sees it.
type Backlog struct {
	Stream, Consumer string
	// At is the server's clock; the times below are by it.
	At time.Time
	// Undelivered messages are stored and were given to nobody; Unacknowledged ones were
	// given to some instance.
	Undelivered    uint64
	Unacknowledged int
	// GivenUp are messages that the consumer has given up after max_deliver deliveries,
	// that are still stored, and that nobody has acknowledged since. There may be more of
	// them, as many as Unacknowledged; with max_deliver 1 the server shows none.
	GivenUp uint64
	// Oldest is when the oldest of both was stored; zero where there is none.
	Oldest time.Time
	// Err is why nothing else is known but the names.
	Err error

	delivered uint64 // the newest that was given to somebody, in the stream
	config    natsjs.ConsumerConfig
	retention natsjs.RetentionPolicy
}

// Backlogs asks the server how far each consumer is behind, all at the same time. It
// takes no longer than ctx, and some seconds.
func (s *Source) Backlogs(ctx context.Context) []Backlog {
	list := make([]Backlog, len(s.pullers))
	var asked sync.WaitGroup
	for i, p := range s.pullers {
		asked.Go(func() {
			b := Backlog{Stream: p.spec.name, Consumer: p.spec.consumer}
			err := s.askBacklog(ctx, &b)
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("JetStream does not answer: %w", err)
			}
			if err != nil {
				b = Backlog{Stream: b.Stream, Consumer: b.Consumer, Err: fmt.Errorf("backlog of %s: %w", consumerObject(p.spec), err)}
			}
			list[i] = b
		})
	}
	asked.Wait()
	return list
}

func (s *Source) askBacklog(ctx context.Context, b *Backlog) error {
	if !s.conn.connected() {
		return s.conn.Health()
	}
	ctx, cancel := s.asking(ctx)
	defer cancel()
	stream, err := s.conn.js.Stream(ctx, b.Stream)
	if err != nil {
		return err
	}
	info, err := consumerInfo(ctx, stream, b.Consumer)
	if err != nil {
		return err
	}
	b.At, b.Undelivered, b.Unacknowledged = info.TimeStamp, info.NumPending, info.NumAckPending
	b.GivenUp = leftBehind(info.NumRedelivered, info.NumAckPending)
	b.delivered, b.config, b.retention = info.Delivered.Stream, info.Config, stream.CachedInfo().Config.Retention
	if b.At.IsZero() { // a server before 2.10
		b.At = time.Now()
	}
	if b.Undelivered+uint64(b.Unacknowledged) == 0 {
		return nil
	}
	after := info.AckFloor.Stream
	if b.Unacknowledged == 0 {
		after = b.delivered
	}
	msg, err := stream.GetMsg(ctx, after+1, natsjs.WithGetMsgSubject(everything(b.config)))
	switch {
	case errors.Is(err, natsjs.ErrMsgNotFound): // settled meanwhile, or expired
		return nil
	case err != nil:
		return fmt.Errorf("look up the oldest message: %w", err)
	}
	b.Oldest = msg.Time
	return nil
}

// asking bounds a question to the server by time and by the connection.
func (s *Source) asking(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, lost := s.conn.onThisConnection(ctx, s.conn.epoch.Load())
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	return ctx, func() { cancel(); lost() }
}

// everything is a subject that matches all that a consumer gets.
func everything(c natsjs.ConsumerConfig) string {
	if c.FilterSubject != "" {
		return c.FilterSubject
	}
	return ">"
}

// Looked is what was found in looking at the undelivered messages of a stream, oldest
// first.
type Looked struct {
	// Seen is how many were looked at, and All whether these are all there were.
	Seen int
	All  bool
	// Newest is when the newest of those seen was stored.
	Newest time.Time
}

// Undelivered looks at the oldest messages that a backlog counts as undelivered, most
// at the most, without their bodies. See is called for each, in the order in which
// they were stored.
//
// It uses a consumer of its own, so it disturbs nobody; but where a stream does not
// keep what was acknowledged (work queue, interest), there can be none.
func (s *Source) Undelivered(ctx context.Context, b *Backlog, most int, see func(subject string, stored time.Time)) (Looked, error) {
	if b.Undelivered == 0 {
		return Looked{All: true}, nil
	}
	fail := func(err error) (Looked, error) {
		return Looked{}, fmt.Errorf("look at the undelivered messages of stream %s: %w", b.Stream, err)
	}
	ctx, cancel := s.asking(ctx)
	defer cancel()
	c, remove, err := s.peek(ctx, b, "")
	if err != nil {
		return fail(err)
	}
	defer remove()
	pending := c.CachedInfo().NumPending
	if pending == 0 { // delivered meanwhile
		return Looked{All: true}, nil
	}
	batch, err := c.Fetch(int(min(pending, uint64(most))), natsjs.FetchContext(ctx))
	if err != nil {
		return fail(err)
	}
	var l Looked
	for msg := range batch.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return fail(err)
		}
		l.Seen, l.Newest = l.Seen+1, meta.Timestamp
		see(msg.Subject(), meta.Timestamp)
	}
	if err := batch.Error(); err != nil {
		return fail(err)
	}
	l.All = uint64(l.Seen) >= pending
	return l, nil
}

// UndeliveredOn counts the undelivered messages of a backlog on one subject.
func (s *Source) UndeliveredOn(ctx context.Context, b *Backlog, subject string) (uint64, error) {
	ctx, cancel := s.asking(ctx)
	defer cancel()
	c, remove, err := s.peek(ctx, b, subject)
	if err != nil {
		return 0, fmt.Errorf("count the undelivered messages on %s: %w", subject, err)
	}
	defer remove()
	return c.CachedInfo().NumPending, nil
}

// peekLife is after how long the server removes a consumer that we could not, within
// peekRemoval.
const (
	peekLife    = 10 * time.Second
	peekRemoval = time.Second
)

// peek makes a short-lived consumer of what is undelivered, on one subject or on all
// that the durable consumer gets.
func (s *Source) peek(ctx context.Context, b *Backlog, subject string) (natsjs.Consumer, func(), error) {
	if b.retention != natsjs.LimitsPolicy {
		return nil, nil, fmt.Errorf("its retention is %s, not %s: another consumer would get in the way", b.retention, natsjs.LimitsPolicy)
	}
	config := natsjs.ConsumerConfig{
		DeliverPolicy: natsjs.DeliverByStartSequencePolicy, OptStartSeq: b.delivered + 1,
		AckPolicy: natsjs.AckNonePolicy, HeadersOnly: true, MemoryStorage: true, Replicas: 1, InactiveThreshold: peekLife,
		FilterSubject: b.config.FilterSubject, FilterSubjects: b.config.FilterSubjects,
	}
	if subject != "" {
		config.FilterSubject, config.FilterSubjects = subject, nil
	}
	c, err := s.conn.js.CreateConsumer(ctx, b.Stream, config)
	if err != nil {
		return nil, nil, err
	}
	return c, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), peekRemoval)
		defer cancel()
		_ = s.conn.js.DeleteConsumer(ctx, b.Stream, c.CachedInfo().Name) // the server does, after peekLife
	}, nil
}

// InHand calls see for every message that this source has delivered and not yet seen
// settled, as of one moment for each stream. stored is zero where the server did not
// tell it.
func (s *Source) InHand(see func(stream, subject string, stored time.Time)) {
	var held []inHand
	for _, p := range s.pullers {
		held = p.hand.all(held[:0])
		for _, h := range held {
			m, _ := parseReply(h.reply)
			see(p.spec.name, h.subject, m.stored)
		}
	}
}

// inHand is what can be told of a receipt without its lock.
type inHand struct{ reply, subject string }

// all appends what is in hand to buf.
func (h *hand) all(buf []inHand) []inHand {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := h.first; r != nil; r = r.next {
		buf = append(buf, inHand{r.reply, r.subject})
	}
	return buf
}
