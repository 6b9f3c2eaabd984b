package legacy_mqtt

import (
	"errors"
	"sync/atomic"
	"time"
)

// errSettled: Ack or Release was called on a copy that had been settled before.
var errSettled = errors.New("mqtt: the copy is settled already; each copy is settled once")

// receipt settles one copy. It implements pipeline.Receipt.
type receipt struct {
	source   *Source
	conn     *conn
	seq      uint64 // in conn's ledger; unused for QoS 0
	arrived  time.Time
	qos0     bool
	finished atomic.Bool
}

// Ack makes a PUBACK due. It fails with [ErrConnectionGone] when the connection
// by which the copy came has ended. For QoS 0 there is nothing to acknowledge.
func (r *receipt) Ack() error {
	if !r.finished.CompareAndSwap(false, true) {
		return errSettled
	}
	defer r.source.letGo()
	if !r.qos0 {
		if err := r.conn.settle(r.seq, ackGiven); err != nil {
			r.source.counters.ackErrors.Add(1)
			return err
		}
	}
	r.source.counters.acked.Add(1)
	return nil
}

// Release leaves the message to the broker, which sends it again by the next
// connection; the source renews the connection when the released copy has kept
// back others for Config.ReleaseDelay. A QoS 0 message is gone.
func (r *receipt) Release() error {
	if !r.finished.CompareAndSwap(false, true) {
		return errSettled
	}
	defer r.source.letGo()
	r.source.counters.released.Add(1)
	if r.qos0 {
		return nil
	}
	if err := r.conn.settle(r.seq, ackReleased); !errors.Is(err, ErrConnectionGone) {
		return err
	}
	return nil // a connection that is gone has released all its copies
}

// Occurred is the time of arrival: MQTT carries no other.
func (r *receipt) Occurred() time.Time { return r.arrived }
