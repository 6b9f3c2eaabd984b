package bridge

import (
	"context"

	"github.com/crossfade-io/crossfade/pipeline"
)

// Source delivers the copies of one path. Implementations: legacy_mqtt.Source
// and jetstream.Source; bridge/sourcetest holds what every one of them promises.
//
// The life of a source is New, Run once, Close once. Close without Run is fine,
// and so is closing twice.
type Source interface {
	// Run connects, delivers until ctx ends and then stops intake, but keeps
	// the connection open so that what was delivered can still be settled. It
	// reconnects by itself for as long as ctx lives and recreates what is its
	// own to recreate; it returns nil once ctx has ended, and an error only for
	// what no retry can mend (a refused configuration).
	//
	// deliver never blocks and may be called from several goroutines at once.
	// The source bounds what it has delivered and not yet seen settled
	// (its window), and does not ask its broker for more than that.
	Run(ctx context.Context, deliver func(pipeline.Delivery)) error
	// Close closes the connection. Copies that were not settled come again at
	// the next start. It returns within ctx.
	Close(ctx context.Context) error
	// Health is nil while the source is connected and receiving, and otherwise
	// says what is missing and what to do. It does no I/O and may be called
	// from any goroutine.
	Health() error
}

// deliverFunc is where a source puts its copies.
type deliverFunc = func(pipeline.Delivery)
