package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/crossfade-io/crossfade/jetstream"
)

// What an Authenticator answers with, unless its error carries an HTTP status itself.
// Any other error means that it could not find out.
var (
	ErrUnauthorized = errors.New("the token is missing or wrong")
	ErrForbidden    = errors.New("the token is not for this")
)

// Authenticator tells who may send, and how much. Its methods block for a query at most,
// and may be called concurrently. nil means yes; an error that is a huma.StatusError is
// answered as it is, headers included.
type Authenticator interface {
	// Device is asked whether the token is the device's own and the device is active. It
	// counts one message.
	Device(ctx context.Context, tenant, device, token string) error
	// Bearer is asked whether a token has a scope for a tenant. It counts one message.
	Bearer(ctx context.Context, token, scope, tenant string) error
	// Gateway is Bearer for a batch whose body is not read yet. It returns the tenant that
	// the token is for, "" for all of them.
	Gateway(ctx context.Context, token, scope string) (tenant string, err error)
	// MoreOfDevice and MoreOfGateway count n messages more of somebody who was let in.
	// They return how many may come, and where these are not all, why not.
	MoreOfDevice(tenant, device string, n int) (int, error)
	MoreOfGateway(ctx context.Context, token string, n int) (int, error)
}

// Publisher puts messages on JetStream: a [jetstream.Ingest]. One error for each message,
// in their order: nil once the stream has it, a [*jetstream.RefusedError] if it never
// will, any other if it may or may not have it.
type Publisher interface {
	PublishAll(ctx context.Context, messages []jetstream.IngestMessage) []error
}

// Options are what the operations work with. All without a default must be set.
type Options struct {
	Publisher     Publisher
	Authenticator Authenticator
	// Unregistered, if there is one, tells whether the registry lacks a device. It is for
	// installations with AUTO_PROVISION: what such a device sends is let in without
	// authentication, for the pipeline to register the device or not. Anybody who
	// reaches the listener can then fill the stream.
	Unregistered func(ctx context.Context, tenant, device string) (bool, error)
	// MaxBody bounds the body of a single message in bytes, MaxBatchBody that of a batch,
	// and MaxBatch the messages in it.
	MaxBody, MaxBatchBody, MaxBatch int
	// Logger is told, once in ten seconds, why messages cannot be taken.
	Logger *slog.Logger
}

// DefaultOptions has 64 KiB for a message, and 1 MiB and 500 messages for a batch.
func DefaultOptions() Options {
	return Options{MaxBody: 64 << 10, MaxBatchBody: 1 << 20, MaxBatch: 500, Logger: slog.New(slog.DiscardHandler)}
}

// Validate names the first option that is wrong and its remedy.
func (o *Options) Validate() error {
	switch {
	case o.Publisher == nil:
		return errors.New("ingest: field Publisher: missing; give it a jetstream.Ingest")
	case o.Authenticator == nil:
		return errors.New("ingest: field Authenticator: missing; give it one, or anybody could send")
	case o.Logger == nil:
		return errors.New("ingest: field Logger: missing; use one that discards")
	case o.MaxBody < 1 || o.MaxBody > 16<<20:
		return fmt.Errorf("ingest: field MaxBody: %d is out of range; use 1 to %d bytes", o.MaxBody, 16<<20)
	case o.MaxBatchBody < 1 || o.MaxBatchBody > 64<<20:
		return fmt.Errorf("ingest: field MaxBatchBody: %d is out of range; use 1 to %d bytes", o.MaxBatchBody, 64<<20)
	case o.MaxBatch < 1 || o.MaxBatch > 10_000:
		return fmt.Errorf("ingest: field MaxBatch: %d is out of range; use 1 to 10000 messages", o.MaxBatch)
	}
	return nil
}
