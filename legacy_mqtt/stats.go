package legacy_mqtt

import "sync/atomic"

// Stats counts what a source has done since it was made.
type Stats struct {
	Received    uint64 // copies delivered, repeats included
	Acked       uint64 // copies acknowledged
	AckErrors   uint64 // acknowledgements that failed because the connection was gone
	Released    uint64 // copies given back
	InHand      int64  // copies delivered and not yet settled
	HeldBytes   int64  // of messages that were read and are not settled, topics included
	Connections uint64 // connections made; all but the first are reconnects
}

type counters struct {
	received, acked, ackErrors, released, connections atomic.Uint64
	inHand, inHandBytes                               atomic.Int64
}

// Stats returns the counters. They are read one after the other, so they may
// be a few messages apart.
func (s *Source) Stats() Stats {
	return Stats{
		Received:    s.counters.received.Load(),
		Acked:       s.counters.acked.Load(),
		AckErrors:   s.counters.ackErrors.Load(),
		Released:    s.counters.released.Load(),
		InHand:      s.counters.inHand.Load(),
		HeldBytes:   s.heldBytes(),
		Connections: s.counters.connections.Load(),
	}
}
