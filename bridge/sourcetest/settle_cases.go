package sourcetest

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// window is what most cases use: small enough to fill, large enough to flow.
const window = 50

// deliversAndSettles: every message arrives, and once settled none comes back.
func deliversAndSettles(t *testing.T, env Env, _ Traits) {
	ids := names("m", 500)
	c := consume(t, env, window)
	env.Publish(t, ids...)
	c.settleUntil(ids)
	c.close()
	nothingComesAgain(t, env, ids)
}

// outOfOrderSettlement: copies may be settled in any order. What was
// acknowledged does not come again, what was not does.
func outOfOrderSettlement(t *testing.T, env Env, traits Traits) {
	ids := names("m", window)
	c := consume(t, env, window)
	env.Publish(t, ids...)
	c.awaitInHand(len(ids))
	copies := c.takeAll()

	half := len(copies) / 2
	first, second := slices.Clone(copies[:half]), slices.Clone(copies[half:])
	shuffle(first)
	c.ack(first)
	var kept []string
	for i, cp := range second {
		if i%2 == 0 {
			kept = append(kept, cp.id)
			continue
		}
		c.ack([]copyOf{cp})
	}
	c.close()

	acked := append(idsOf(first), without(idsOf(second), kept)...)
	if traits.OrderedAcks {
		acked = idsOf(first)
	}
	again := consume(t, env, window)
	again.awaitIDs(kept)
	for _, id := range acked {
		if again.count(id) > 0 {
			t.Errorf("%s came again although it was acknowledged", id)
		}
	}
	again.settle()
	again.close()
	nothingComesAgain(t, env, ids)
}

// saturation: a consumer that is far slower than the server keeps the source
// at its window, loses nothing, and is not given copies twice however long it
// holds them.
func saturation(t *testing.T, env Env, traits Traits) {
	const small = 10
	limit := traits.MaxInHand(small)
	ids := names("m", 5*limit)
	consume(t, env, small).close()
	env.Publish(t, ids...)

	c := consume(t, env, small)
	hold := 3 * traits.AckDeadline
	for len(c.missing(ids)) > 0 || c.left() > 0 {
		c.awaitInHand(1)
		if hold > 0 {
			// The deadline under test is the server's: nothing but time passes it.
			holdFor(c, hold)
			hold = 0
		}
		c.ack(c.take(small / 2))
	}
	if peak := c.peakInHand(); peak > limit {
		t.Errorf("%d copies in hand at once, want at most %d", peak, limit)
	}
	if extra := c.delivered() - len(ids); extra != 0 {
		t.Errorf("%d of %d messages were delivered more than once", extra, len(ids))
	}
	c.close()
	nothingComesAgain(t, env, ids)
}

// left is how many copies are in hand.
func (c *consumer) left() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.inHand)
}

// holdFor keeps everything in hand for d.
func holdFor(c *consumer, d time.Duration) {
	_ = c.try(d, func() bool { return false })
}

// unsettledComesAgain: what was neither acknowledged nor released before Close
// is delivered by the next source.
func unsettledComesAgain(t *testing.T, env Env, _ Traits) {
	ids := names("m", window)
	c := consume(t, env, window)
	env.Publish(t, ids...)
	c.awaitInHand(len(ids))
	c.close()

	again := consume(t, env, window)
	again.settleUntil(ids)
	again.close()
	nothingComesAgain(t, env, ids)
}

// release: a copy that was given back is delivered again by the running
// source, and the flow goes on behind it.
func release(t *testing.T, env Env, _ Traits) {
	ids := names("m", 2*window)
	c := consume(t, env, window)
	env.Publish(t, ids...)
	c.awaitInHand(window)
	released := map[string]int{}
	for i, cp := range c.take(window) {
		if i%5 != 0 {
			c.ack([]copyOf{cp})
			continue
		}
		if err := cp.receipt.Release(); err != nil {
			t.Fatalf("release %s: %v", cp.id, err)
		}
		released[cp.id] = c.count(cp.id)
	}
	c.await("released copies", func() bool {
		c.settle()
		for id, before := range released {
			if c.count(id) <= before {
				return false
			}
		}
		return len(c.missing(ids)) == 0
	})
	c.settle()
	c.close()
}

// ackedBeforeCloseStaysAcked: Ack returns before its acknowledgement is on the
// wire, and Close does not lose it, however closely it follows. Traffic keeps
// coming in while the source is being closed.
func ackedBeforeCloseStaysAcked(t *testing.T, env Env, _ Traits) {
	c := consume(t, env, window)
	for round := range 10 {
		ids := names("r"+string(rune('a'+round)), 4*window)
		env.Publish(t, ids...)
		c.awaitInHand(window / 2)
		copies := c.take(window / 2)
		c.ack(copies)
		c.close()

		c = consume(t, env, window)
		c.settleUntil(without(ids, idsOf(copies)))
		for _, cp := range copies {
			if c.count(cp.id) > 0 {
				t.Fatalf("round %d: %s came again although it was acknowledged before Close", round, cp.id)
			}
		}
	}
}

// nothingComesAgain runs one more source over a state in which everything was
// settled: only a message published afterwards arrives.
func nothingComesAgain(t *testing.T, env Env, settled []string) {
	t.Helper()
	c := consume(t, env, window)
	marker := "marker-" + settled[0] + time.Now().Format("150405.000000000")
	env.Publish(t, marker)
	c.awaitIDs([]string{marker})
	for _, id := range settled {
		if n := c.count(id); n > 0 {
			t.Errorf("%s came again %d times although it was settled", id, n)
		}
	}
	c.settle()
	c.close()
}

func shuffle(copies []copyOf) {
	rand.Shuffle(len(copies), func(i, j int) { copies[i], copies[j] = copies[j], copies[i] })
}

func idsOf(copies []copyOf) []string {
	ids := make([]string, len(copies))
	for i, cp := range copies {
		ids[i] = cp.id
	}
	return ids
}

func without(ids, dropped []string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(dropped, id) })
}
