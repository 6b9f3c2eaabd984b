package process

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/pipeline"
)

// anonymousAt is the identity of one content that occurs at a time.
func anonymousAt(at time.Time) pipeline.Identity {
	d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/heartbeat", Body: []byte(`{"site_id":"s1"}`), Receipt: occurredAt(at)}
	var m pipeline.Message
	pipeline.NewDecoder("").Decode(&m, &d)
	return m.Identity
}

type occurredAt time.Time

func (occurredAt) Ack() error            { return nil }
func (occurredAt) Release() error        { return nil }
func (o occurredAt) Occurred() time.Time { return time.Time(o) }

// TestRecentIsNoBolderThanTheLedger: what it takes for a copy of an anonymous message
// the ledger would take for one too, and only a millisecond's worth is left to it.
func TestRecentIsNoBolderThanTheLedger(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := time.UnixMicro(rapid.Int64Range(0, 8e15).Draw(t, "first")).UTC()
		apart := time.Duration(rapid.OneOf(
			rapid.Int64Range(-62_000_000, 62_000_000), rapid.Int64Range(29_998_000, 30_002_000), rapid.Int64Range(-30_002_000, -29_998_000),
		).Draw(t, "microseconds apart")) * time.Microsecond
		r := newRecent(10)
		r.add([]pipeline.Identity{anonymousAt(first)})
		c := anonymousAt(first.Add(apart))
		switch same := pipeline.SameOccurrence(first, c.Occurred); {
		case r.holds(&c) && !same:
			t.Errorf("%v apart is one message", apart)
		case !r.holds(&c) && apart.Abs() <= pipeline.AnonymousWindow-2*time.Millisecond:
			t.Errorf("%v apart is not known", apart)
		}
	})
}

func TestRecentTellsContentsApart(t *testing.T) {
	r := newRecent(10)
	counted := pipeline.Identity{ID: pipeline.ID{1}, Explicit: true, Digest: -77 << 40}
	r.add([]pipeline.Identity{counted, {ID: pipeline.ID{2}}})
	other := counted
	other.Digest = 12 << 40
	for _, c := range []struct {
		copy             pipeline.Identity
		durable, differs bool
	}{
		{counted, true, false},
		{other, true, true},
		{pipeline.Identity{ID: pipeline.ID{2}}, true, false},
		{pipeline.Identity{ID: pipeline.ID{3}, Explicit: true}, false, false},
	} {
		if k := r.known(&c.copy); k.Durable != c.durable || k.Differs != c.differs || k.Age > time.Minute {
			t.Errorf("%+v: %+v", c.copy, k)
		}
	}
}

// TestRecentTellsAges over the turn of its clock.
func TestRecentTellsAges(t *testing.T) {
	r := newRecent(10)
	r.began = time.Now().Add(-(1<<32 - 1000) * time.Millisecond) // it turns in a second
	r.add([]pipeline.Identity{{ID: pipeline.ID{1}}})
	r.began = r.began.Add(-3 * time.Second)
	if k := r.known(&pipeline.Identity{ID: pipeline.ID{1}}); k.Age < 3*time.Second || k.Age > time.Minute {
		t.Errorf("an ID of 3 s is %v old", k.Age)
	}
}
