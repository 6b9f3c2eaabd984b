package jetstream

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// ErrStale is returned by receipts whose message the stream no longer holds
// under their sequence: the stream or consumer was deleted and created again,
// or the server lost its newest messages. Where the message still exists, it
// comes again.
var ErrStale = errors.New("the stream or consumer was replaced since this message was delivered; the acknowledgement was not sent")

// ErrSettled is returned by a receipt that was settled before, or whose source
// was closed.
var ErrSettled = errors.New("message already settled, or its source closed")

// The answers that a consumer understands.
var (
	answerAck      = []byte("+ACK")
	answerNak      = []byte("-NAK")
	answerLater    = []byte(`-NAK {"delay":1000000000}`) // nanoseconds
	answerProgress = []byte("+WPI")
)

// receipt is the source's hold on one message.
type receipt struct {
	from       *puller
	reply      string // $JS.ACK.…: where answers go, and the message's metadata
	subject    string
	size       int64 // of the message, in bytes
	generation uint64
	givenUp    *waitingFor // not nil: the server will not deliver it again

	// Guarded by from.hand.mu.
	prev, next *receipt
	extended   int64
	settled    bool
}

// Ack tells the server that the message is dealt with for good.
func (r *receipt) Ack() error { return r.from.settle(r, answerAck) }

// Release has the server deliver the message again at once; one that the server has
// given up comes again from here, after a while.
func (r *receipt) Release() error { return r.from.settle(r, answerNak) }

// Occurred is the time at which the stream stored the message.
func (r *receipt) Occurred() time.Time {
	m, ok := parseReply(r.reply)
	if !ok {
		return time.Time{}
	}
	return m.stored
}

// replyMetadata is the part of an acknowledgement subject that we need.
type replyMetadata struct {
	sequence uint64 // in the stream
	stored   time.Time
}

// parseReply reads both forms of the subject, as in NATS ADR-15:
//
//	$JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<time>.<pending>
//	$JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<time>.<pending>[.<token>…]
func parseReply(reply string) (replyMetadata, bool) {
	rest, ok := strings.CutPrefix(reply, "$JS.ACK.")
	if !ok {
		return replyMetadata{}, false
	}
	// Before the sequence stand three tokens in the short form, five in the long.
	skip := 3
	if strings.Count(rest, ".") > 6 {
		skip = 5
	}
	for range skip {
		if _, rest, ok = strings.Cut(rest, "."); !ok {
			return replyMetadata{}, false
		}
	}
	sequence, rest, ok1 := strings.Cut(rest, ".")
	_, rest, ok2 := strings.Cut(rest, ".")
	nanos, _, ok3 := strings.Cut(rest, ".")
	if !ok1 || !ok2 || !ok3 {
		return replyMetadata{}, false
	}
	seq, err1 := strconv.ParseUint(sequence, 10, 64)
	ns, err2 := strconv.ParseInt(nanos, 10, 64)
	if err1 != nil || err2 != nil {
		return replyMetadata{}, false
	}
	return replyMetadata{sequence: seq, stored: time.Unix(0, ns)}, true
}
