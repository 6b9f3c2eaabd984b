package legacy_mqtt

import "time"

// InHand calls see for every copy that this source has delivered and not yet seen
// settled, as of one moment. Copies that came by a connection which is gone are not
// among them: the broker has them, and sends them again.
func (s *Source) InHand(see func(topic string, arrived time.Time)) {
	var open []arrival
	if c := s.current.Load(); c != nil {
		c.mu.Lock()
		if !c.closed {
			open = c.acks.open(open)
		}
		c.mu.Unlock()
	}
	s.unconfirmed.mu.Lock()
	open = s.unconfirmed.acks.open(open)
	s.unconfirmed.mu.Unlock()
	for _, a := range open {
		see(a.topic, a.at)
	}
}

// arrival is what is kept of a message until it is settled.
type arrival struct {
	topic string
	at    time.Time
}

// open appends the arrivals that are not acknowledged.
func (a *acks) open(buf []arrival) []arrival {
	for seq := a.head; seq != a.next; seq++ {
		if e := &a.ring[seq&a.mask()]; e.state != ackGiven {
			buf = append(buf, e.arrival)
		}
	}
	return buf
}
