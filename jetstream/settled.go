package jetstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// Mark is a message's place in its stream. Marks outlive the source or mirror that they
// come from. They may be compared.
type Mark struct {
	Consumer string // the durable consumer that reads the stream
	Sequence uint64 // in the stream
	created  int64  // of the consumer, Unix nanoseconds; 0: not known yet
	// What tells the message from another one under its sequence: when it was stored,
	// or, for whoever published it and never saw that, a text in it.
	stored int64 // Unix nanoseconds; 0 where text tells
	text   string
}

// is reports whether a message of the stream is the one that was marked.
func (m Mark) is(msg *natsjs.RawStreamMsg) bool {
	if m.stored != 0 {
		return msg.Time.UnixNano() == m.stored
	}
	return bytes.Contains(msg.Data, []byte(m.text))
}

// Progress is what is known of a mark.
type Progress uint8

// What may be known of a mark.
const (
	// MarkWaits: the message, or something before it, is not acknowledged yet.
	MarkWaits Progress = iota
	// MarkSettled: the message and everything before it in the stream have been
	// acknowledged, by whichever instance.
	MarkSettled
	// MarkGone: the stream or the consumer is not what it was any more, so nothing
	// can be said of the mark, now or later.
	MarkGone
)

// Mark returns the message's place in its stream; false where the server did not
// tell it, the stream was replaced since, or the server has given the message up, after
// which acknowledgements of the consumer say nothing of it.
func (r *receipt) Mark() (Mark, bool) {
	m, ok := parseReply(r.reply)
	if !ok || r.givenUp != nil {
		return Mark{}, false
	}
	return r.from.mark(m, r.generation)
}

func (p *puller) mark(m replyMetadata, generation uint64) (Mark, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if generation != p.generation || p.created.IsZero() {
		return Mark{}, false
	}
	return Mark{
		Consumer: p.spec.consumer, Sequence: m.sequence,
		stored: m.stored.UnixNano(), created: p.created.UnixNano(),
	}, true
}

// Settled asks the server how far the acknowledgements of one consumer have come,
// and returns what that means for each of the marks, which must be of this consumer.
// A consumer that was created after a mark, or a stream that holds another message in
// its place, makes it MarkGone; to see that, it notes in marks that come from a
// publisher which consumer it has asked.
//
// A consumer with a limit on deliveries counts what it has given up as acknowledged.
// What is heard of that is delivered as the only copy (pipeline.Delivery.Sole), which no
// stage drops.
func (c *Conn) Settled(ctx context.Context, consumer string, marks []Mark) ([]Progress, error) {
	s, ok := specOfConsumer(consumer)
	if !ok {
		return nil, fmt.Errorf("progress of consumer %q: it is unknown; use %v", consumer, Consumers())
	}
	fail := func(err error) ([]Progress, error) {
		return nil, fmt.Errorf("progress of %s: %w", consumerObject(s), err)
	}
	if !c.connected() {
		return fail(c.Health())
	}
	epoch := c.epoch.Load()
	ctx, cancel := c.onThisConnection(ctx, epoch)
	defer cancel()
	ctx, cancelTimeout := context.WithTimeout(ctx, apiTimeout)
	defer cancelTimeout()
	stream, err := c.js.Stream(ctx, s.name)
	if err != nil {
		return fail(err)
	}
	info, err := consumerInfo(ctx, stream, s.consumer)
	if err != nil {
		return fail(err)
	}
	known, last := make([]Progress, len(marks)), Mark{}
	created := info.Created.UnixNano()
	for i := range marks {
		m := &marks[i]
		if m.created == 0 {
			m.created = created
		}
		switch {
		case m.created != created:
			known[i] = MarkGone
		case info.AckFloor.Stream >= m.Sequence:
			known[i] = MarkSettled
			if m.Sequence > last.Sequence {
				last = *m
			}
		}
	}
	if last.Sequence == 0 {
		return known, nil
	}
	// The acknowledgements may be of other messages than the marks: a server that was
	// killed can lose the newest ones and give their numbers again.
	same, err := holds(ctx, stream, last.Sequence, last.is)
	if err != nil {
		return fail(err)
	}
	for i := range known {
		if known[i] == MarkSettled && !same {
			known[i] = MarkGone
		}
	}
	return known, nil
}

// holds reports whether the stream has, under this sequence, the message that is asked
// for, or had it and let it expire. If it has, all lower sequences are what they were,
// too.
func holds(ctx context.Context, stream natsjs.Stream, sequence uint64, is func(*natsjs.RawStreamMsg) bool) (bool, error) {
	msg, err := stream.GetMsg(ctx, sequence)
	switch {
	case err == nil:
		return is(msg), nil
	case !errors.Is(err, natsjs.ErrMsgNotFound):
		return false, fmt.Errorf("read back message %d: %w", sequence, err)
	}
	// It has expired, unless the stream never got that far.
	info, err := stream.Info(ctx)
	if err != nil {
		return false, fmt.Errorf("look up the stream: %w", err)
	}
	return info.State.LastSeq >= sequence, nil
}
