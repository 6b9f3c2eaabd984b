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

// Publish stores ready-made messages, given as subject and body, in their order,
// and returns once the server has confirmed every one. Bodies must not be reused.
// It is for filling a stream: it does not retry, and after an error any number of
// the messages may be stored.
func Publish(ctx context.Context, conn *Conn, messages iter.Seq2[string, []byte]) error {
	var mu sync.Mutex
	var failed error
	js, err := natsjs.New(conn.nc, natsjs.WithPublishAsyncMaxPending(maxPublishing),
		natsjs.WithPublishAsyncErrHandler(func(_ natsjs.JetStream, _ *nats.Msg, err error) {
			mu.Lock()
			defer mu.Unlock()
			failed = err
		}))
	if err != nil {
		return fmt.Errorf("publish to JetStream: %w", err)
	}
	defer js.CleanupPublisher() // each Publish has a subscription of its own
	for subject, body := range messages {
		if ctx.Err() != nil {
			break
		}
		// Without a patience of our own nats.go gives up after 200 ms.
		if _, err := js.PublishAsync(subject, body, natsjs.WithStallWait(publishPatience)); err != nil {
			return fmt.Errorf("publish on %s: %w", subject, err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	if err := errors.Join(failed, ctx.Err()); err != nil {
		return fmt.Errorf("publish to JetStream: %w", err)
	}
	return nil
}
