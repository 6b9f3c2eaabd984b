package jetstream

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/pipeline"
)

const (
	// maxGivenUpInHand is how far messages that were given up may exceed the window:
	// pulls under way have spoken for all its room, and an idle consumer's never end.
	maxGivenUpInHand = 64
	// maxGivenUpWaiting bounds the memory of those that are not in hand yet.
	maxGivenUpWaiting = 100_000
	// givenUpAsks is how often a message must not be found before it counts as lost: a
	// replica that lags behind does not have it either.
	givenUpAsks = 3
	// givenUpBeat is how soon it is seen that there is room in the window again.
	givenUpBeat = 100 * time.Millisecond
)

// givenUp takes in the messages of one consumer that the server gave up because they
// were delivered max_deliver times. The server says so once, in an advisory that nobody
// keeps, and never delivers them again; so they are read from the stream and delivered
// from here.
//
// Every instance hears every advisory: with a queue group a message would be lost with
// the one instance that was chosen. The ledger takes what several deliver for one.
type givenUp struct {
	p     *puller
	where string // subject of the advisories
	wake  chan struct{}

	mu      sync.Mutex
	sub     *nats.Subscription // nil while the consumer has no limit, or nobody runs
	running bool
	waiting waitingList
	inHand  int

	stream natsjs.Stream // nil: to be looked up; run's own

	taken, lost  atomic.Uint64
	denied       atomic.Bool
	warnedBroken atomic.Bool
}

// waitingFor is a message that is to be read from the stream, or read again.
type waitingFor struct {
	sequence uint64
	due      int64 // monotonic
	released int   // times that it was given back
	missing  int   // times that it was not found
	failed   int   // times that the server did not answer
}

func newGivenUp(p *puller) *givenUp {
	return &givenUp{
		p: p, wake: make(chan struct{}, 1),
		where: "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES." + p.spec.name + "." + p.spec.consumer,
	}
}

// listen subscribes for advisories where the consumer has a limit, once, and ends the
// subscription where it has none any more. nats.go renews it at a reconnection. Where the
// server denies it, the source works on without.
func (g *givenUp) listen(limited bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case limited && g.sub == nil && g.running:
		g.p.conn.denials.onRefusal(g.where, g.refused)
		sub, err := g.p.conn.nc.Subscribe(g.where, func(m *nats.Msg) { g.hear(m.Data) })
		if err != nil {
			return err
		}
		g.sub = sub
	case !limited && g.sub != nil:
		g.leave()
	}
	return nil
}

// leave ends the subscription; g.mu is held.
func (g *givenUp) leave() {
	if g.sub == nil {
		return
	}
	_ = g.sub.Unsubscribe() // fails only on a connection that is closed
	g.sub = nil
	g.p.conn.denials.onRefusal(g.where, nil)
}

// refused is told that the server denies the subscription.
func (g *givenUp) refused(err error) {
	if g.denied.Swap(true) {
		return
	}
	g.p.log.Warn("JetStream gives up messages of this consumer after max_deliver deliveries, and this user may not hear of it: they are lost; "+
		"grant it the right to subscribe to the subject, or remove the limit (--nats-adjust)", "subject", g.where, "error", err)
}

// hear takes an advisory.
func (g *givenUp) hear(data []byte) {
	sequence, ok := parseAdvisory(data, g.p.spec)
	if !ok {
		if !g.warnedBroken.Swap(true) {
			g.p.log.Warn("cannot read an advisory of given-up messages; ignored, as further ones will be", "subject", g.where, "bytes", len(data))
		}
		return
	}
	g.denied.Store(false)
	if !g.push(waitingFor{sequence: sequence}) {
		g.lose(sequence, "too many messages were given up at once")
	}
}

// push reports false where there is no room, or where nobody reads any more.
func (g *givenUp) push(w waitingFor) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.running || len(g.waiting) >= maxGivenUpWaiting {
		return false
	}
	heap.Push(&g.waiting, w)
	g.signal()
	return true
}

func (g *givenUp) signal() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// lose counts a message that will not be delivered from here.
func (g *givenUp) lose(sequence uint64, why string) {
	if n := g.lost.Add(1); n&(n-1) == 0 { // the 1st, 2nd, 4th, 8th…
		g.p.log.Warn("a message that JetStream gave up after max_deliver deliveries cannot be taken in; it is lost unless another instance has it",
			"sequence", sequence, "reason", why, "so_far", n)
	}
}

// run delivers until ctx ends.
func (g *givenUp) run(ctx context.Context, deliver func(pipeline.Delivery)) {
	defer g.stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		w, wait, ok := g.next()
		if ok && g.p.conn.awaitConnected(ctx) {
			g.take(ctx, w, deliver)
			continue
		}
		if ok {
			g.push(w)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		case <-timer.C:
		}
	}
}

// start lets advisories be listened for. It is called before the first pull.
func (g *givenUp) start() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = true
}

func (g *givenUp) stop() {
	g.mu.Lock()
	g.running = false
	g.leave()
	left := g.waiting
	g.waiting = nil
	g.mu.Unlock()
	for _, w := range left {
		g.lose(w.sequence, "the source is stopping")
	}
}

// next returns what to take now, or how long to wait before it is asked again.
func (g *givenUp) next() (w waitingFor, wait time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		return w, time.Hour, false
	}
	if wait = time.Duration(g.waiting[0].due - monotonic()); wait > 0 {
		return w, wait, false
	}
	if g.inHand >= maxGivenUpInHand || g.p.hand.full() {
		return w, givenUpBeat, false
	}
	return heap.Pop(&g.waiting).(waitingFor), 0, true
}

// take reads a message from the stream and delivers it.
func (g *givenUp) take(ctx context.Context, w waitingFor, deliver func(pipeline.Delivery)) {
	p := g.p
	p.mu.RLock()
	generation := p.generation // from before the message is read: that of a later stream makes it stale
	p.mu.RUnlock()
	msg, err := g.read(ctx, w.sequence)
	switch {
	case ctx.Err() != nil:
		g.again(w, 0) // counted by stop
		return
	case errors.Is(err, natsjs.ErrMsgNotFound):
		if w.missing++; w.missing >= givenUpAsks {
			g.lose(w.sequence, "the stream does not hold it any more")
			return
		}
		g.again(w, w.missing)
		return
	case err != nil:
		w.failed++
		p.log.Log(ctx, levelOf(w.failed), "cannot read a message that JetStream gave up; trying again", "sequence", w.sequence, "error", err)
		g.again(w, w.failed)
		return
	}
	r := &receipt{
		from: p, subject: msg.Subject, size: int64(len(msg.Subject) + len(msg.Data)), generation: generation, givenUp: &w,
		reply: replyOf(p.spec, msg.Sequence, msg.Time),
	}
	g.mu.Lock()
	g.inHand++
	g.mu.Unlock()
	p.received.Add(1)
	p.hand.add(r, monotonic(), false)
	if w.released == 0 {
		g.taken.Add(1)
	}
	// Sole: the consumer's floor has passed it, so stages may have moved on in the belief
	// that it was settled.
	deliver(pipeline.Delivery{
		Path: pipeline.PathJetStream, Subject: msg.Subject, Body: msg.Data, Receipt: r,
		Origin: producedBy(msg.Header.Get(headerOrigin)), Sole: true,
	})
}

// levelOf tells of a failure once for each message; more would repeat what Health says.
func levelOf(failed int) slog.Level {
	if failed == 1 {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (g *givenUp) read(ctx context.Context, sequence uint64) (*natsjs.RawStreamMsg, error) {
	ctx, lost := g.p.conn.onThisConnection(ctx, g.p.conn.epoch.Load())
	defer lost()
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	var err error
	if g.stream == nil {
		if g.stream, err = g.p.conn.js.Stream(ctx, g.p.spec.name); err != nil {
			g.stream = nil
			return nil, err
		}
	}
	msg, err := g.stream.GetMsg(ctx, sequence)
	if err != nil {
		g.stream = nil // its settings may have changed
	}
	return msg, err
}

// again has a message read once more, after a while that grows with the failures.
func (g *givenUp) again(w waitingFor, failures int) {
	w.due = monotonic() + int64(backoff.Delay(max(failures, 1), reconnectBase, backoffLimit))
	if !g.push(w) {
		g.lose(w.sequence, "the source is stopping, or too many messages were given up at once")
	}
}

// settled takes a receipt's message out of the hand. Where it was given back it is
// delivered again from here, since the server will not.
func (g *givenUp) settled(r *receipt, back bool) {
	g.mu.Lock()
	g.inHand--
	g.signal()
	g.mu.Unlock()
	if !back {
		return
	}
	w := *r.givenUp
	w.released, w.missing, w.failed = w.released+1, 0, 0
	g.again(w, w.released)
}

// replyOf is where a message's acknowledgement goes, though its last delivery has been
// given up: the server keeps the number of its deliveries until then, which is all that
// shows (num_redelivered) what nobody has taken in. The consumer's sequence of that
// delivery is not known; 1 moves no floor.
func replyOf(s spec, sequence uint64, stored time.Time) string {
	return "$JS.ACK." + s.name + "." + s.consumer + ".1." + strconv.FormatUint(sequence, 10) + ".1." +
		strconv.FormatInt(stored.UnixNano(), 10) + ".0"
}

// waitingList is a heap, first due first.
type waitingList []waitingFor

func (l waitingList) Len() int           { return len(l) }
func (l waitingList) Less(i, j int) bool { return l[i].due < l[j].due }
func (l waitingList) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }
func (l *waitingList) Push(x any)        { *l = append(*l, x.(waitingFor)) }
func (l *waitingList) Pop() any {
	last := len(*l) - 1
	w := (*l)[last]
	*l = (*l)[:last]
	return w
}
