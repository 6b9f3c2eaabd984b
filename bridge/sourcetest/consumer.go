package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/pipeline"
)

// patience bounds every wait for something that must happen. It is generous,
// because no case passes sooner or later for it: it only ends a hopeless wait.
const patience = 60 * time.Second

// copyOf is one delivered copy that the case has not settled yet.
type copyOf struct {
	id      string
	receipt pipeline.Receipt
}

// consumer runs one source and stands where the pipeline stands: it takes what
// is delivered, without blocking, and settles when the case says so.
type consumer struct {
	t      *testing.T
	env    Env
	source bridge.Source
	stop   context.CancelFunc
	done   chan error

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every delivery
	inHand  []copyOf      // in order of arrival
	peak    int           // the most copies ever in hand
	seen    map[string]int
	total   int
}

// consume makes a source, runs it and waits until it is healthy.
func consume(t *testing.T, env Env, window int) *consumer {
	t.Helper()
	c := start(t, env, window)
	c.awaitHealthy()
	return c
}

// start makes a source and runs it. The source is closed when the test ends.
func start(t *testing.T, env Env, window int) *consumer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &consumer{
		t: t, env: env, source: env.New(t, window), stop: cancel,
		done: make(chan error, 1), changed: make(chan struct{}), seen: map[string]int{},
	}
	go func() { c.done <- c.source.Run(ctx, c.deliver) }()
	t.Cleanup(c.close)
	return c
}

func (c *consumer) deliver(d pipeline.Delivery) {
	id := c.env.ID(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inHand = append(c.inHand, copyOf{id, d.Receipt})
	c.peak = max(c.peak, len(c.inHand))
	c.seen[id]++
	c.total++
	close(c.changed)
	c.changed = make(chan struct{})
}

// take removes up to n copies, the oldest first, from what is in hand.
func (c *consumer) take(n int) []copyOf {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, len(c.inHand))
	taken := slices.Clone(c.inHand[:n])
	c.inHand = slices.Clone(c.inHand[n:])
	return taken
}

func (c *consumer) takeAll() []copyOf { return c.take(int(^uint(0) >> 1)) }

// await waits until ok holds, looking again at every delivery and on a beat.
func (c *consumer) await(what string, ok func() bool) {
	c.t.Helper()
	if err := c.try(patience, ok); err != nil {
		c.t.Fatalf("waited %s for %s; delivered %s; health: %v", patience, what, c.summary(), c.source.Health())
	}
}

// try is await with a deadline of its own and an error instead of a failure.
func (c *consumer) try(within time.Duration, ok func() bool) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	beat := time.NewTicker(10 * time.Millisecond)
	defer beat.Stop()
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		if ok() {
			return nil
		}
		select {
		case <-changed:
		case <-beat.C:
		case <-deadline.C:
			return errors.New("deadline passed")
		}
	}
}

func (c *consumer) awaitHealthy() {
	c.t.Helper()
	c.await("the source to be healthy", func() bool { return c.source.Health() == nil })
}

func (c *consumer) awaitUnhealthy() {
	c.t.Helper()
	c.await("the source to notice", func() bool { return c.source.Health() != nil })
}

// awaitIDs waits until every one of ids has been delivered at least once.
func (c *consumer) awaitIDs(ids []string) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d messages", len(ids)), func() bool { return len(c.missing(ids)) == 0 })
}

// awaitInHand waits until n copies are in hand.
func (c *consumer) awaitInHand(n int) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d copies in hand", n), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.inHand) >= n
	})
}

func (c *consumer) missing(ids []string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var missing []string
	for _, id := range ids {
		if c.seen[id] == 0 {
			missing = append(missing, id)
		}
	}
	return missing
}

// count is how many copies of id were delivered.
func (c *consumer) count(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[id]
}

func (c *consumer) delivered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

func (c *consumer) peakInHand() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peak
}

func (c *consumer) summary() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d copies of %d messages, %d in hand", c.total, len(c.seen), len(c.inHand))
}

// ack acknowledges copies whose connection must still be good.
func (c *consumer) ack(copies []copyOf) {
	c.t.Helper()
	for _, cp := range copies {
		if err := cp.receipt.Ack(); err != nil {
			c.t.Fatalf("acknowledge %s: %v", cp.id, err)
		}
	}
}

// settleUntil acknowledges everything as it comes until all of ids have
// arrived. Copies of a lost connection may refuse: they come again.
func (c *consumer) settleUntil(ids []string) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d messages", len(ids)), func() bool {
		c.settle()
		return len(c.missing(ids)) == 0
	})
	c.settle()
}

// settle acknowledges all that is in hand and tolerates refusals.
func (c *consumer) settle() {
	for _, cp := range c.takeAll() {
		_ = cp.receipt.Ack()
	}
}

// endRun ends intake and waits until Run has returned nil.
func (c *consumer) endRun() {
	c.t.Helper()
	c.stop()
	if c.done == nil {
		return
	}
	select {
	case err := <-c.done:
		c.done = nil
		if err != nil {
			c.t.Errorf("Run = %v, want nil after its context ended", err)
		}
	case <-time.After(patience):
		c.t.Fatal("Run did not return after its context ended")
	}
}

// close ends the source in the order in which the bridge does.
func (c *consumer) close() {
	c.t.Helper()
	c.endRun()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.source.Close(ctx); err != nil {
		c.t.Errorf("Close = %v", err)
	}
}

// names makes n message IDs that no other call with another prefix makes.
func names(prefix string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s-%05d", prefix, i)
	}
	return ids
}
