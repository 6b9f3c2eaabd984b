package pipeline

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// ID identifies a message within its tenant, whichever way its copies came: the
// message's own time in milliseconds since the epoch in the first 6 bytes (zero
// where it has none), then 10 bytes of SHA-256 over the tenant and what tells the
// message from others. Time comes first because the ledger's index then grows at
// one end; with random IDs its insert rate halves as it grows. It is stored as
// uuid, which PostgreSQL compares byte by byte.
type ID [16]byte

// AnonymousWindow is how far apart two copies may have occurred to count as one
// message when nothing in the content tells a repeat from a copy.
const AnonymousWindow = 30 * time.Second

// Identity is all that the ledger needs to know of a copy.
type Identity struct {
	ID ID
	// Anonymous messages carry nothing that tells a repeat from a copy: the ledger
	// compares when they occurred (AnonymousWindow).
	Anonymous bool
	// Explicit messages carry an ID of the device's own; Digest then tells whether
	// two copies agree on the content.
	Explicit bool
	Digest   int64
	// Occurred is when this copy came into being (see Receipt.Occurred, and the
	// envelope's "ts"). It is set only where it is needed: for anonymous messages
	// and for those without a time of their own.
	Occurred time.Time
}

// Known is what the ledger, or an instance's memory of it, says of a copy's message.
type Known struct {
	// Durable: the message has taken effect, so this copy may be acknowledged.
	Durable bool
	// Differs: the copy that counted carries the same ID of the device's own, and
	// other content.
	Differs bool
	// Digest is that of the copy that counted, where the ledger itself was asked
	// about an explicit message; otherwise 0.
	Digest int64
	// Age is how long ago the message was committed, if it is durable: 0 or more.
	Age time.Duration
}

// SameOccurrence reports whether two anonymous copies of equal content count as
// one message.
func SameOccurrence(a, b time.Time) bool {
	return a.Sub(b).Abs() <= AnonymousWindow
}

// maxIDMillis is the last millisecond that fits an ID.
const maxIDMillis = 1<<48 - 1

// String returns the ID in hexadecimal, as uuid columns take it.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Millis returns the time in the ID, in milliseconds since the epoch.
func (id ID) Millis() int64 {
	return int64(binary.BigEndian.Uint64(id[:8]) >> 16)
}

// Content returns the ID with the time taken out: what it shares with all
// occurrences of an anonymous message.
func (id ID) Content() ID {
	clear(id[:6])
	return id
}

// withMillis returns the ID with another time; one that does not fit becomes zero.
func (id ID) withMillis(ms int64) ID {
	if ms < 0 || ms > maxIDMillis {
		ms = 0
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(ms)<<16)
	copy(id[:6], b[:6])
	return id
}

// Neighbours returns the IDs under which an equal message that occurred within
// AnonymousWindow of this one may stand in the ledger. An anonymous message's ID
// carries the beginning of the window-long slot in which it occurred, so these
// are its own slot and the ones before and after.
func (id ID) Neighbours() [3]ID {
	slot := id.Millis()
	w := AnonymousWindow.Milliseconds()
	return [3]ID{id.withMillis(slot - w), id, id.withMillis(slot + w)}
}

// What the 10 bytes of hash are over. The kinds never meet: each hashes its own
// first byte.
const (
	hashExplicit  = 'x' // tenant, device, message type and the ID that the device sent
	hashContent   = 'c' // tenant, device, message type and canonical payload
	hashAnonymous = 'a' // the same, for messages that occur again
	hashForeign   = 'f' // an envelope that can't be trusted to say whose it is
)

// hasher builds the input of an ID's hash; parts are length-prefixed, so that no
// two different lists of parts give the same input.
type hasher struct{ buf []byte }

func (h *hasher) reset(kind byte) { h.buf = append(h.buf[:0], kind) }

func (h *hasher) part(s string) {
	h.buf = binary.AppendUvarint(h.buf, uint64(len(s)))
	h.buf = append(h.buf, s...)
}

func (h *hasher) id(ms int64) ID {
	sum := sha256.Sum256(h.buf)
	var id ID
	copy(id[6:], sum[:10])
	return id.withMillis(ms)
}

// digest is the first 8 bytes of SHA-256, as the ledger keeps it to tell that two
// messages with one explicit ID differ.
func digest(b []byte) int64 {
	sum := sha256.Sum256(b)
	return int64(binary.BigEndian.Uint64(sum[:8]))
}
