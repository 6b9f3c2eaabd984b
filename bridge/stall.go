package bridge

import (
	"context"
	"time"

	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

const (
	// stallBeat is how often it is looked at whether JetStream has stopped delivering.
	stallBeat = 100 * time.Millisecond
	// stallTimeout bounds the question to the server.
	stallTimeout = 2 * time.Second
)

// stallWatch finds out that JetStream delivers nothing more although messages
// wait. A consumer has a limit of unacknowledged messages (max_ack_pending) over
// all its instances, and one tenant whose copies wait in vain for their siblings
// can use it up. No instance sees that by itself, so the server is asked; but only
// while copies stand by and nothing has arrived for two beats.
type stallWatch struct {
	stats    func() []jetstream.ConsumerStats
	lag      func(context.Context) ([]jetstream.ConsumerLag, error)
	holds    func() int
	relieve  func()
	received map[string]uint64 // by consumer
	idle     map[string]bool   // nothing arrived during the beat before
}

func (b *Bridge) watchStalls(ctx context.Context) {
	s := b.jetstream
	w := stallWatch{
		stats: func() []jetstream.ConsumerStats { return s.source().Stats() },
		lag:   func(ctx context.Context) ([]jetstream.ConsumerLag, error) { return s.source().Lag(ctx) },
		holds: func() int {
			if b.processor.Writing() != nil {
				return 0 // nothing can be written, so no rescue would settle anything
			}
			return b.standby.holds(pipeline.PathJetStream)
		},
		relieve:  func() { b.standby.relieve(pipeline.PathJetStream) },
		received: make(map[string]uint64),
		idle:     make(map[string]bool),
	}
	tick := time.NewTicker(stallBeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.look(ctx)
		}
	}
}

func (w *stallWatch) look(ctx context.Context) {
	suspects := make(map[string]bool)
	for _, c := range w.stats() {
		idle := w.received[c.Consumer] == c.Received
		if idle && w.idle[c.Consumer] && c.InHand > 0 {
			suspects[c.Consumer] = true
		}
		w.received[c.Consumer], w.idle[c.Consumer] = c.Received, idle
	}
	if len(suspects) == 0 || w.holds() == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	lag, err := w.lag(ctx)
	if err != nil {
		return // health speaks of a server that does not answer; waits end by themselves
	}
	for _, c := range lag {
		if suspects[c.Consumer] && c.Pending > 0 {
			w.relieve()
			return
		}
	}
}
