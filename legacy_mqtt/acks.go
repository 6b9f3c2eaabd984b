package legacy_mqtt

// acks is one connection's ledger of the QoS 1 messages that it received and
// has not acknowledged, in order of arrival. A message is known by its sequence
// number on the connection, so that marking it costs the same however many are
// outstanding. Not safe for concurrent use.
type acks struct {
	ring []ackEntry // its length is a power of two
	head uint64     // sequence number of the oldest entry
	next uint64     // sequence number of the next entry
	// then holds what is to be called once the entry of that sequence number, and
	// all before it, are acknowledged.
	then map[uint64][]func()
}

type ackEntry struct {
	packetID uint16
	state    ackState
	arrival  // until it is acknowledged
}

type ackState uint8

const (
	ackOpen     ackState = iota // in hand
	ackGiven                    // acknowledged; its PUBACK waits for its turn
	ackReleased                 // given back: it and what follows must not be acknowledged
)

// expect enters a message and returns its sequence number.
func (a *acks) expect(packetID uint16, m arrival) uint64 {
	if a.next-a.head == uint64(len(a.ring)) {
		a.grow()
	}
	seq := a.next
	a.ring[seq&a.mask()] = ackEntry{packetID: packetID, arrival: m}
	a.next++
	return seq
}

// settle notes what became of a message and calls puback for every message
// whose turn has come. A sequence number is settled once. It returns what is to be
// called now, outside of whatever lock protects the ledger.
func (a *acks) settle(seq uint64, state ackState, puback func(packetID uint16)) (due []func()) {
	settled := &a.ring[seq&a.mask()]
	settled.state = state
	if state == ackGiven {
		settled.arrival = arrival{} // the ring lasts, the topic need not
	}
	for a.head != a.next {
		e := a.ring[a.head&a.mask()]
		if e.state != ackGiven {
			return due
		}
		puback(e.packetID)
		if len(a.then) > 0 {
			due = append(due, a.then[a.head]...)
			delete(a.then, a.head)
		}
		a.head++
	}
	return due
}

// after has f called once every entry before the sequence number is acknowledged,
// and reports false if that is so already; f is then the caller's to call.
func (a *acks) after(seq uint64, f func()) bool {
	if a.head >= seq {
		return false
	}
	if a.then == nil {
		a.then = make(map[uint64][]func())
	}
	a.then[seq-1] = append(a.then[seq-1], f)
	return true
}

// blocked reports whether a released message keeps back those behind it.
func (a *acks) blocked() bool {
	return a.head != a.next && a.ring[a.head&a.mask()].state == ackReleased
}

func (a *acks) mask() uint64 { return uint64(len(a.ring)) - 1 }

func (a *acks) grow() {
	bigger := make([]ackEntry, max(64, 2*len(a.ring)))
	for seq := a.head; seq != a.next; seq++ {
		bigger[seq&uint64(len(bigger)-1)] = a.ring[seq&a.mask()]
	}
	a.ring = bigger
}
