package control

import (
	"fmt"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// Why a number is not known.
const (
	queueUnseen   = "what waits in the broker's queue cannot be seen by a subscriber"
	nobodyAsked   = "no running instance has asked JetStream lately"
	tenantsUnseen = "it is not known whose the undelivered messages are"
)

// lostAfter is how much older than all that is in somebody's hand a stream's oldest
// message has to be before it counts as nobody's: figures are not of one moment.
const lostAfter = 5.0

// prepare makes a lag ready for Of, once all else is set.
func (l *Lag) prepare() {
	l.index()
	l.unknown[pipeline.PathMQTT] = queueUnseen
	if len(l.Away) > 0 {
		l.unknown[pipeline.PathMQTT] += "; this goes for the session of " + some(l.Away) + " as well, not running"
	}
	var why []string
	if len(l.Streams) == 0 {
		why = append(why, nobodyAsked)
	}
	for _, s := range l.Streams {
		if s.Failed || s.Tenants == nil {
			why = append(why, s.Stream+": "+s.whyUnknown())
		}
	}
	if len(l.Silent) > 0 {
		silent := "it is not known what " + some(l.Silent) + " has in hand"
		why = append(why, silent)
		l.unknown[pipeline.PathMQTT] += "; " + silent
	}
	l.unknown[pipeline.PathJetStream] = strings.Join(why, "; ")
	l.findLost()
}

func (s *Stream) whyUnknown() string {
	if s.Unknown == "" {
		return tenantsUnseen
	}
	return s.Unknown
}

// findLost counts messages that were given to an instance which is gone. They come
// again once the consumer's ack_wait is over.
func (l *Lag) findLost() {
	var inHand int64
	oldest, known := 0.0, 0.0
	for _, s := range l.Streams {
		inHand += s.InHand
		if s.Oldest != nil {
			oldest = max(oldest, *s.Oldest)
		}
	}
	for _, h := range l.Hands {
		if h.JetStream != nil {
			inHand -= h.JetStream.Messages
		}
	}
	for _, c := range l.counts[pipeline.PathJetStream] {
		known = max(known, c.Oldest, c.UnseenOldest)
	}
	if inHand > 0 && oldest > known+lostAfter {
		l.lost = Bounds{Most: inHand, OldestMost: oldest,
			Unknown: fmt.Sprintf("%d messages were given to an instance that is gone, and come again", inHand)}
	}
}

// Of tells what is known of a tenant's messages on a path: received by an instance or
// waiting in a stream, and not settled.
func (l *Lag) Of(tenant string, path pipeline.Path) Bounds {
	var b Bounds
	for i := range l.counts[path] {
		b.add(l.counts[path][i].of(tenant))
	}
	if path == pipeline.PathJetStream {
		b.add(l.lost)
	}
	if len(l.counts[path]) == 0 {
		b.Least, b.Oldest = -1, -1
	}
	if why := l.unknown[path]; why != "" {
		b.Most, b.OldestMost, b.Unknown = -1, -1, why
	}
	return b
}

func (b *Bounds) add(o Bounds) {
	b.Least, b.Most = b.Least+o.Least, b.Most+o.Most
	b.Oldest, b.OldestMost = max(b.Oldest, o.Oldest), max(b.OldestMost, o.OldestMost)
	if b.Unknown == "" {
		b.Unknown = o.Unknown
	}
}

// Overdue says which message of a tenant's, undelivered yet, the ledger could not judge
// any more; empty: none is known. What is not known at all keeps nobody from moving,
// but what is known to be too old and nobody's in particular does. The words do not
// change while that lasts.
func (l *Lag) Overdue(tenant string) string {
	if l.unread {
		return "undelivered messages: their age is being looked up"
	}
	limit := l.Retention.Seconds()
	if limit <= 0 {
		return ""
	}
	what := ""
	mqtt, js := l.Of(tenant, pipeline.PathMQTT), l.Of(tenant, pipeline.PathJetStream)
	stuck, isStuck := l.Stuck[tenant]
	switch {
	case mqtt.Oldest > limit:
		what = "the oldest by MQTT is older"
	case js.Oldest > limit:
		what = "the oldest by JetStream is older"
	case isStuck:
		what = fmt.Sprintf("no sentinel has come out of %s for longer", stuck)
	case l.lost.OldestMost > limit:
		what = "one in JetStream that was given to an instance which is gone is older"
	case js.OldestMost > limit:
		what = "one in JetStream, it is not known whose, is older"
	default:
		return ""
	}
	return fmt.Sprintf("undelivered messages: %s than the ledger remembers (%s)", what, brief(l.Retention))
}

// brief is 24h instead of 24h0m0s.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
