package control

import (
	"cmp"
	"slices"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// This file is pure: what is known of how far paths are behind, and what is not.
//
// JetStream tells how much a consumer has not been given yet, and instances how much
// they have in hand: together that is all there is. What waits in an MQTT broker's
// queue cannot be seen by a subscriber; known are the copies in hand, and how long
// sentinels take.

// A census keeps so many of its tenants: those with the most messages, and those with
// the oldest.
const (
	censusLargest = 200
	censusOldest  = 50
)

// Census counts messages by tenant. Ages are in seconds, at the time of measuring.
type Census struct {
	Messages int64   `json:"messages"`
	Oldest   float64 `json:"oldest_seconds"`
	// Tenants are the largest and the oldest. "" stands for messages that name none.
	Tenants []Count `json:"tenants,omitempty"`
	// Others are the tenants that were left out for their number.
	Others Others `json:"others,omitzero"`
	// Unseen messages were counted and not looked at; none of them is older than
	// UnseenOldest.
	Unseen       int64   `json:"unseen,omitempty"`
	UnseenOldest float64 `json:"unseen_oldest_seconds,omitempty"`
}

// Count is a tenant's part of a census.
type Count struct {
	Tenant   string  `json:"tenant"`
	Messages int64   `json:"messages"`
	Oldest   float64 `json:"oldest_seconds"`
	// Exact: none of the unseen messages is this tenant's.
	Exact bool `json:"exact,omitempty"`
}

// Others sums up tenants that a census leaves out.
type Others struct {
	Tenants  int     `json:"tenants"`
	Messages int64   `json:"messages"`
	Most     int64   `json:"most"` // that any one of them has
	Oldest   float64 `json:"oldest_seconds"`
}

// Tally is a census in the making. The zero value is empty.
type Tally struct {
	counts map[string]*Count
}

// Add counts a message of a tenant's, of this age.
func (t *Tally) Add(tenant string, age time.Duration) {
	if t.counts == nil {
		t.counts = make(map[string]*Count)
	}
	c := t.counts[tenant]
	if c == nil {
		c = &Count{Tenant: tenant}
		t.counts[tenant] = c
	}
	c.Messages++
	c.Oldest = max(c.Oldest, age.Seconds())
}

// Largest names the tenants with the most messages, n at most.
func (t *Tally) Largest(n int) []string {
	list := t.sorted()
	names := make([]string, 0, n)
	for _, c := range list[:min(n, len(list))] {
		names = append(names, c.Tenant)
	}
	return names
}

// Set puts an exact number in the place of what was counted of a tenant so far, and
// returns by how much that is more.
func (t *Tally) Set(tenant string, messages int64) (more int64) {
	if c := t.counts[tenant]; c != nil {
		more = max(messages-c.Messages, 0)
		c.Messages, c.Exact = c.Messages+more, true
	}
	return more
}

func (t *Tally) sorted() []*Count {
	list := make([]*Count, 0, len(t.counts))
	for _, c := range t.counts {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *Count) int {
		return cmp.Or(cmp.Compare(b.Messages, a.Messages), cmp.Compare(a.Tenant, b.Tenant))
	})
	return list
}

// Census returns what was counted.
func (t *Tally) Census() Census {
	var c Census
	list := t.sorted()
	kept := min(censusLargest, len(list))
	left := slices.Clone(list[kept:])
	slices.SortStableFunc(left, func(a, b *Count) int { return cmp.Compare(b.Oldest, a.Oldest) })
	old := min(censusOldest, len(left))
	for _, n := range append(list[:kept:kept], left[:old]...) {
		c.Tenants = append(c.Tenants, *n)
	}
	for _, n := range left[old:] {
		c.Others.Tenants++
		c.Others.Messages += n.Messages
		c.Others.Most, c.Others.Oldest = max(c.Others.Most, n.Messages), max(c.Others.Oldest, n.Oldest)
	}
	for _, n := range list {
		c.Messages, c.Oldest = c.Messages+n.Messages, max(c.Oldest, n.Oldest)
	}
	return c
}

// Hand is what an instance has in hand: received, and not settled.
type Hand struct {
	Instance   string    `json:"instance"`
	MeasuredAt time.Time `json:"measured_at"`
	// MQTT and JetStream are nil where the instance does not read that path.
	MQTT      *Census `json:"mqtt,omitempty"`
	JetStream *Census `json:"jetstream,omitempty"`
	// Retention is that of the instance's ledger, in seconds.
	Retention float64 `json:"ledger_retention_seconds"`
}

// Stream is how far a JetStream consumer is behind, as the server sees it.
type Stream struct {
	Stream     string    `json:"stream"`
	Consumer   string    `json:"consumer"`
	MeasuredAt time.Time `json:"measured_at"`
	MeasuredBy string    `json:"measured_by"`
	// Undelivered messages were given to no instance yet, InHand were and are not
	// acknowledged. Oldest is the age of the oldest of both in seconds; nil: there is
	// none, or it is not known.
	Undelivered int64    `json:"undelivered"`
	InHand      int64    `json:"in_hand"`
	Oldest      *float64 `json:"oldest_seconds"`
	// Tenants are those of the undelivered messages; nil: not known.
	Tenants *Census `json:"tenants,omitempty"`
	// Unknown says what could not be found out and why; empty: all was.
	Unknown string `json:"unknown,omitempty"`
	// Failed: nothing but Unknown holds.
	Failed bool `json:"failed,omitempty"`
}

// Lag is what all sources say, read within a moment.
type Lag struct {
	At      time.Time
	Hands   []Hand
	Streams []Stream
	// Silent are instances that run and have not told lately what they have in hand.
	Silent []string
	// Away are instances that do not run and whose MQTT session may hold messages.
	Away []string
	// Retention is the shortest of the ledger's that instances have; 0: not known.
	Retention time.Duration
	// Stuck are tenants of whose sentinels none has come out of a path for longer than the
	// retention.
	Stuck map[string]pipeline.Path

	unread  bool         // nothing was read yet
	counts  [3][]counted // by path, one for each census
	unknown [3]string    // by path: why there is no upper bound
	lost    Bounds       // messages in JetStream whose tenants nobody knows
}

// counted is a census, ready for questions.
type counted struct {
	*Census
	byTenant map[string]*Count
}

// index makes a lag ready for Of.
func (l *Lag) index() {
	add := func(p pipeline.Path, c *Census) {
		if c == nil {
			return
		}
		by := make(map[string]*Count, len(c.Tenants))
		for i := range c.Tenants {
			by[c.Tenants[i].Tenant] = &c.Tenants[i]
		}
		l.counts[p] = append(l.counts[p], counted{c, by})
	}
	for i := range l.Hands {
		add(pipeline.PathMQTT, l.Hands[i].MQTT)
		add(pipeline.PathJetStream, l.Hands[i].JetStream)
	}
	for i := range l.Streams {
		if !l.Streams[i].Failed {
			add(pipeline.PathJetStream, l.Streams[i].Tenants)
		}
	}
}

// Bounds are what is known of a tenant's messages on a path.
type Bounds struct {
	// Least and Most are how many wait. Least is -1 where nobody tells, and Most where
	// there is no bound.
	Least, Most int64
	// Oldest is the age of the oldest of those counted, in seconds, and OldestMost what
	// the age of one that was not counted may be; -1 as above.
	Oldest, OldestMost float64
	// Unknown says why Least and Most differ.
	Unknown string
}

// of is what a census knows of a tenant.
func (c *counted) of(tenant string) (b Bounds) {
	n, listed := c.byTenant[tenant]
	if listed {
		b.Least, b.Most, b.Oldest, b.OldestMost = n.Messages, n.Messages, n.Oldest, n.Oldest
	} else if c.Others.Tenants > 0 {
		b.Most, b.OldestMost = c.Others.Most, c.Others.Oldest
		b.Unknown = "many tenants have messages waiting, and those with the fewest are not listed"
	}
	if c.Unseen > 0 && (!listed || !n.Exact) {
		b.Most += c.Unseen
		b.OldestMost = max(b.OldestMost, c.UnseenOldest)
		b.Unknown = "too many messages wait to look at each"
	}
	return b
}
