package process

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// maxLimited bounds the devices whose buckets are remembered, at some 100 bytes
// each. A device that is forgotten begins with a full bucket.
const maxLimited = 1_000_000

// limiterBacklog is how far back a message's own time is believed: as long as a
// broker may have kept it.
const limiterBacklog = 24 * time.Hour

// limiter is check 7: a token bucket per device, charged for messages that take
// effect. It belongs to one worker, which has all of a device's messages, and may be
// used concurrently by it and by what tries again what the worker has set aside.
//
// Buckets fill as time passes, and as the messages' own times move on, whichever
// is more: what was sent at a fair rate is not over the limit because a broker held
// it back and now delivers it at once. The price: a device that makes up its times
// gets the tokens of limiterBacklog once, and once more with stragglers.
type limiter struct {
	seed     maphash.Seed
	size     int
	mu       sync.Mutex
	new, old map[uint64]bucket // by deviceHash

	settings *check.Settings
	now      int64 // of the batch, in microseconds, as are all times here
}

// bucket remembers how far a device's messages have come. Messages that are older
// than that come in a row of their own: an instance that took over delivers them
// after newer ones.
type bucket struct {
	tokens            float64
	filled            int64 // by the clock
	latest, straggler int64 // by the messages' times
}

func newLimiter(size int, seed maphash.Seed) *limiter {
	return &limiter{seed: seed, size: max(size/2, 1), new: make(map[uint64]bucket), old: make(map[uint64]bucket)}
}

// begin sets what holds for the next batch.
func (l *limiter) begin(now time.Time, s *check.Settings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now, l.settings = now.UnixMicro(), s
}

// charge takes a token from the device's bucket. Where there is none, the message
// is over the limit and costs nothing.
func (l *limiter) charge(e *store.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Rate = store.RateCharged
	if l.settings.RateLimit == 0 {
		return
	}
	key := deviceHash(l.seed, e.Msg.Tenant, e.Msg.Device)
	b := l.find(key)
	l.fill(&b, e.Msg.Time.UnixMicro())
	if b.tokens >= 1 {
		b.tokens--
	} else {
		e.Rate = store.RateLimited
		e.Reason, e.Detail = check.RateLimited(l.settings)
	}
	l.keep(key, b)
}

func (l *limiter) fill(b *bucket, at int64) {
	// Where our clock was ahead and has been set back, the bucket would stay dry until
	// it catches up.
	b.filled, b.latest, b.straggler = min(b.filled, l.now), min(b.latest, l.now), min(b.straggler, l.now)
	at = min(max(at, l.now-limiterBacklog.Microseconds()), l.now)
	passed := l.now - b.filled
	b.filled = l.now
	switch {
	case at > b.latest:
		passed = max(passed, at-b.latest)
		b.latest = at
	case at < b.latest && at > b.straggler:
		if b.straggler > 0 {
			passed = max(passed, at-b.straggler)
		}
		b.straggler = at
	}
	b.tokens = min(b.tokens+l.settings.RateLimit*float64(passed)/1e6, float64(l.settings.RateBurst))
}

// refund gives back what was charged for entries that turned out not to take
// effect: another instance was faster while the batch was tried again.
func (l *limiter) refund(entries []store.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		if e.Fresh || e.Rate != store.RateCharged || l.settings.RateLimit == 0 {
			continue
		}
		key := deviceHash(l.seed, e.Msg.Tenant, e.Msg.Device)
		b := l.find(key)
		b.tokens = min(b.tokens+1, float64(l.settings.RateBurst))
		l.keep(key, b)
	}
}

func (l *limiter) find(key uint64) bucket {
	if b, ok := l.new[key]; ok {
		return b
	}
	return l.old[key] // the zero bucket is long due and fills at once
}

func (l *limiter) keep(key uint64, b bucket) {
	if len(l.new) >= l.size {
		if _, ok := l.new[key]; !ok {
			l.new, l.old = l.old, l.new
			clear(l.new)
		}
	}
	l.new[key] = b
}
