package legacy_mqtt

import "sync"

// unconfirmed is the ledger of the QoS 0 messages that a source has delivered. Nobody
// at the broker waits for them, and they hold back no PUBACK, but whoever wants to
// know that everything before a message is settled wants to know it of them too. It
// outlives connections, since a QoS 0 message does not come again.
type unconfirmed struct {
	mu   sync.Mutex
	acks acks
}

func (u *unconfirmed) expect(m arrival) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.acks.expect(0, m)
}

// settle ends a message, whether it was acknowledged or given back.
func (u *unconfirmed) settle(seq uint64) {
	u.mu.Lock()
	due := u.acks.settle(seq, ackGiven, func(uint16) {})
	u.mu.Unlock()
	for _, f := range due {
		f()
	}
}

// after has f called once all that have arrived so far are settled; at once where
// they are.
func (u *unconfirmed) after(f func()) {
	u.mu.Lock()
	waits := u.acks.after(u.acks.next, f)
	u.mu.Unlock()
	if !waits {
		f()
	}
}
