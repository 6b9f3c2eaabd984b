package legacy_mqtt

import (
	"errors"
	"sync/atomic"
	"time"
)

// errSettled: Ack or Release was called on a copy that had been settled before.
var errSettled = errors.New("mqtt: the copy is settled already; each copy is settled once")

// errUnordered: AckThen was called on a copy that overtakes others.
var errUnordered = errors.New("mqtt: a QoS 0 copy has no place among the others: it overtakes what waits at the broker")

// receipt settles one copy. It implements pipeline.Receipt.
type receipt struct {
	source   *Source
	conn     *conn
	seq      uint64 // in conn's ledger, or for QoS 0 in the source's
	arrived  time.Time
	size     int64 // of the body, in bytes
	qos0     bool
	finished atomic.Bool
}

// Ack makes a PUBACK due. It fails with [ErrConnectionGone] when the connection
// by which the copy came has ended. For QoS 0 there is nothing to acknowledge.
func (r *receipt) Ack() error {
	if !r.finished.CompareAndSwap(false, true) {
		return errSettled
	}
	defer r.source.letGo(r.size)
	if r.qos0 {
		r.source.unconfirmed.settle(r.seq)
	} else if err := r.conn.settle(r.seq, ackGiven); err != nil {
		r.source.counters.ackErrors.Add(1)
		return err
	}
	r.source.counters.acked.Add(1)
	return nil
}

// AckThen acknowledges the copy as Ack does, and has then called once every copy that
// came before it in this session is settled: their PUBACKs and its own are on their
// way, in that order, and QoS 0 messages among them are done with too.
//
// then may be called before AckThen returns or much later, in a goroutine that has
// other work to do, so it must not block. It is not called at all where the connection
// ends too early, or a copy before this one is given back; the broker then sends both
// again. The error is that of Ack; then is not called after one.
//
// A QoS 0 copy is settled and has an error: it does not queue behind the QoS 1
// messages that wait at the broker for room in the window, so it proves nothing of them.
func (r *receipt) AckThen(then func()) error {
	if !r.finished.CompareAndSwap(false, true) {
		return errSettled
	}
	defer r.source.letGo(r.size)
	if r.qos0 {
		r.source.unconfirmed.settle(r.seq)
		return errUnordered
	}
	settled := func() { r.source.unconfirmed.after(then) }
	if err := r.conn.settleThen(r.seq, settled); err != nil {
		r.source.counters.ackErrors.Add(1)
		return err
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
	defer r.source.letGo(r.size)
	r.source.counters.released.Add(1)
	if r.qos0 {
		r.source.unconfirmed.settle(r.seq)
		return nil
	}
	if err := r.conn.settle(r.seq, ackReleased); !errors.Is(err, ErrConnectionGone) {
		return err
	}
	return nil // a connection that is gone has released all its copies
}

// Occurred is the time of arrival: MQTT carries no other.
func (r *receipt) Occurred() time.Time { return r.arrived }
