package jetstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/pipeline"
)

// maxIngesting is how many messages an Ingest has under way.
const maxIngesting = 4000

// RefusedError is a message that can never be published as it is. Its text can be
// shown to the sender.
type RefusedError struct{ Why string }

func (e *RefusedError) Error() string { return "the message cannot be published: " + e.Why }

// Ingest publishes messages that devices have sent by HTTP, as the contract's envelopes.
// It needs no closing; its Conn stays open. It is safe for concurrent use.
type Ingest struct {
	conn    *Conn
	js      natsjs.JetStream
	timeout time.Duration
}

// IngestMessage is what a device has sent: a JSON object, of one of the message types
// that devices send.
type IngestMessage struct {
	Tenant, Device, MsgType string
	Payload                 []byte
}

// NewIngest returns an Ingest whose messages are confirmed within timeout, at least
// 100 ms, or count as not published.
func NewIngest(conn *Conn, timeout time.Duration) (*Ingest, error) {
	if timeout < 100*time.Millisecond {
		return nil, fmt.Errorf("ingest: the time-out of %s is too short; use 100ms or more", timeout)
	}
	js, err := natsjs.New(conn.nc, natsjs.WithPublishAsyncTimeout(timeout), natsjs.WithPublishAsyncMaxPending(maxIngesting))
	if err != nil {
		return nil, fmt.Errorf("ingest: %w", err)
	}
	return &Ingest{conn: conn, js: js, timeout: timeout}, nil
}

// Publish returns nil once the stream has the message. Its error is a [*RefusedError],
// or the message may or may not be there and is best published again: the ledger
// takes the repeat for one. The payload is not kept.
func (i *Ingest) Publish(ctx context.Context, tenant, device, msgType string, payload []byte) error {
	return i.PublishAll(ctx, []IngestMessage{{tenant, device, msgType, payload}})[0]
}

// PublishAll publishes messages in their order, without waiting for one before it
// sends the next. It returns what became of each, as Publish would.
func (i *Ingest) PublishAll(ctx context.Context, messages []IngestMessage) []error {
	epoch := i.conn.epoch.Load()
	ctx, cancel := i.conn.onThisConnection(ctx, epoch)
	defer cancel()
	results := make([]error, len(messages))
	futures := make([]natsjs.PubAckFuture, len(messages))
	now := time.Now().UnixMilli()
	for n := range messages {
		futures[n], results[n] = i.send(ctx, &messages[n], now)
	}
	for n, future := range futures {
		if future == nil {
			continue
		}
		select {
		case <-future.Ok():
		case err := <-future.Err():
			results[n] = i.failed(err)
		case <-ctx.Done():
			results[n] = i.failed(context.Cause(ctx))
		}
	}
	return results
}

// send puts a message on its way.
func (i *Ingest) send(ctx context.Context, m *IngestMessage, now int64) (natsjs.PubAckFuture, error) {
	name := "tenant/" + m.Tenant + "/device/" + m.Device + "/" + m.MsgType
	topic, ok := pipeline.ParseTopic(name)
	if !ok || topic.Tenant != m.Tenant || topic.Device != m.Device || topic.Kind.Ignored() {
		return nil, &RefusedError{"tenant, device and message type make no topic that devices publish on"}
	}
	o := parseTopic(name)
	subject, ok := o.subject()
	if !ok {
		return nil, &RefusedError{"the tenant's name cannot be part of a NATS subject"}
	}
	if !i.conn.connected() {
		return nil, i.failed(i.conn.Health())
	}
	if ctx.Err() != nil {
		return nil, i.failed(context.Cause(ctx))
	}
	msg := &nats.Msg{
		Subject: subject, Header: nats.Header{headerOrigin: {originHTTP}},
		Data: appendEnvelope(make([]byte, 0, len(m.Payload)+2*len(name)+128), name, o, "", m.Payload, now),
	}
	future, err := i.js.PublishMsgAsync(msg, natsjs.WithStallWait(i.timeout))
	if err != nil {
		return nil, i.failed(err)
	}
	return future, nil
}

func (i *Ingest) failed(err error) error {
	if refusedForSize(err) {
		return &RefusedError{"it is larger than NATS takes"}
	}
	if err == nil {
		err = errors.New("the connection has just come and gone")
	}
	return fmt.Errorf("publish to JetStream: %w", err)
}
