package jetstream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
)

// maxPublishing is how many messages Publish has under way.
const maxPublishing = 4000

// publishPatience is how long none of them may be confirmed.
const publishPatience = 30 * time.Second

// filler is what the calls of Publish on one connection share. It stays until the
// connection is closed: nats.go leaves a goroutine behind for good when a
// publisher is taken down right after its first message.
type filler struct {
	turn chan struct{} // capacity 1: holds a token while somebody publishes
	js   natsjs.JetStream

	mu     sync.Mutex
	failed error // the newest refusal in this turn
}

func newFiller(nc *nats.Conn) (*filler, error) {
	f := &filler{turn: make(chan struct{}, 1)}
	var err error
	f.js, err = natsjs.New(nc, natsjs.WithPublishAsyncMaxPending(maxPublishing),
		natsjs.WithPublishAsyncErrHandler(func(_ natsjs.JetStream, _ *nats.Msg, err error) { f.note(err) }))
	return f, err
}

func (f *filler) note(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = err
}

func (f *filler) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// Publish stores ready-made messages, given as subject and body, in their order,
// and returns once the server has confirmed every one. Bodies must not be reused.
// It is for filling a stream: it does not retry, and after an error any number of
// the messages may be stored. Calls on one connection take turns.
func Publish(ctx context.Context, conn *Conn, messages iter.Seq2[string, []byte]) error {
	f := conn.filler
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return fmt.Errorf("publish to JetStream: %w", ctx.Err())
	}
	f.note(nil)
	for subject, body := range messages {
		if ctx.Err() != nil {
			break
		}
		// Without a patience of our own nats.go gives up after 200 ms.
		if _, err := f.js.PublishAsync(subject, body, natsjs.WithStallWait(publishPatience)); err != nil {
			return fmt.Errorf("publish on %s: %w", subject, err)
		}
	}
	select {
	case <-f.js.PublishAsyncComplete():
	case <-ctx.Done():
	}
	if err := errors.Join(f.failure(), ctx.Err()); err != nil {
		return fmt.Errorf("publish to JetStream: %w", err)
	}
	return nil
}
