package legacy_mqtt

import (
	"fmt"
	"math"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// Some brokers hang up on a message that they do not like, and do not say which. It
// must not keep others from being sent, nor may others be taken for it: which of them
// were confirmed tells little, since confirmations are lost with a connection, too.
// So what was under way is sent again in smaller groups, until one alone was under way
// when a connection was lost. If that happens to it again, it is a suspect: it goes
// when all else is confirmed, by itself, on a connection that has proved to work. If
// that one is lost as well, the message is given up with ErrHangsUp.
//
// A broker that is restarted ends connections too, and at worst makes a suspect of a
// message that comes late.
const (
	// narrow is by how much a group is smaller than the one before: three steps from
	// the largest window to a single message.
	narrow = 32
	// mostBlamed is how many connections may be lost with a message alone under way
	// before it is a suspect.
	mostBlamed = 2
	// proof is how long a connection has to last to have proved that it works, if
	// nothing is confirmed on it.
	proof = time.Second
)

// maxExpiry is the longest that a broker can be told.
const maxExpiry = math.MaxUint32 * time.Second

// suspicion is what an outbox knows of messages upon which the broker may hang up.
// outbox.mu protects it.
type suspicion struct {
	room     int // messages that may be flying while some are doubtful; 0: any number
	doubtful int // confirmations to come of what was flying when a connection was lost
	suspects []*outgoing
	trial    *outgoing // the suspect that is flying

	since     time.Time // when the connection was made
	proven    bool      // something was confirmed on it
	abandoned bool      // it was we who ended it
	armed     bool      // try will be called by a timer

	forgive func() // called, locked, when the cause of losses is known; may be nil
}

// allowance is how many messages may be flying.
func (x *outbox) allowance() int {
	switch {
	case x.trial != nil && !x.trial.done:
		return 0
	case x.room > 0:
		return min(x.room, x.limits.flying)
	}
	return x.limits.flying
}

// try sends a suspect if it is its turn. The caller holds mu.
func (x *outbox) try() {
	for x.conn != nil && len(x.suspects) > 0 && len(x.queue)+len(x.flying) == 0 {
		if x.suspects[0].done {
			x.suspects = x.suspects[1:]
			continue
		}
		if left := min(proof, x.options.Patience/4) - time.Since(x.since); left > 0 && !x.proven {
			if !x.armed {
				x.armed = true
				time.AfterFunc(left, x.tryAgain)
			}
			return
		}
		o := x.suspects[0]
		x.suspects = x.suspects[1:]
		x.trial = o
		x.launch(o)
		if o.done { // it was not even sent
			x.trial = nil
		}
	}
}

func (x *outbox) tryAgain() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.armed = false
	x.try()
}

// confirmed takes note that the broker has answered to a message. The caller holds mu.
func (x *outbox) confirmed(o *outgoing) {
	x.proven = true
	if o == x.trial {
		x.trial = nil
	}
	x.trust()
}

// trust counts one doubtful message less.
func (x *outbox) trust() {
	if x.doubtful > 0 {
		x.doubtful--
	}
	if x.doubtful == 0 {
		x.room = 0
	}
}

// blame decides who may be at fault that a connection was lost. lost is what was flying,
// in the order of sending. The caller holds mu.
func (x *outbox) blame(lost []*outgoing, d *packets.Disconnect) {
	switch {
	case len(lost) == 0:
	case len(lost) > 1:
		x.room, x.doubtful = max(1, len(lost)/narrow), len(lost)
	case lost[0] == x.trial:
		o, why := lost[0], ""
		if d != nil {
			why = ": " + reason(d.ReasonCode)
		}
		if !o.done && x.forgive != nil {
			x.forgive()
		}
		o.finish(fmt.Errorf("%w: %w on %s%s", ErrUnconfirmed, ErrHangsUp, o.packet.Topic, why))
	default:
		o := lost[0]
		if o.blamed++; o.blamed >= mostBlamed {
			o.suspect = true
			x.trust()
		}
	}
}

// excused reports whether the broker gives a reason for the end of a connection that
// has nothing to do with what was sent last.
func excused(d *packets.Disconnect) bool {
	if d == nil {
		return false
	}
	switch d.ReasonCode {
	case 0x00, 0x04, // normal
		0x88, 0x89, 0x8B, // unavailable, busy, shutting down
		0x8D, codeTakenOver, 0x98, // keep-alive, administrator
		0x93, 0x96, 0x97, // too much at once
		0x9C, 0x9D, 0x9F, 0xA0: // another server, too many connections, too long
		return true
	}
	return false
}
