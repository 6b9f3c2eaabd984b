package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/crossfade-io/crossfade/pipeline"
)

// session is one spell of undisturbed pulling: one inbox, one connection, a
// consumer that stays the same.
//
// It speaks the pull protocol itself (NATS ADR-13) instead of using Fetch or
// Consume of the jetstream package. Those hand over the message they have just
// received, but drop what has reached the client when a fetch ends early, which
// costs each of those messages a delivery attempt; and Consume asks for more
// whenever its own buffer is low, whatever is in hand.
type session struct {
	p       *puller
	deliver func(pipeline.Delivery)
	inbox   string
	sub     *nats.Subscription
	fetch   int
	expiry  time.Duration

	generation uint64
	began      bool        // stream and consumer were found good
	progressed atomic.Bool // the server has answered a pull

	stopping atomic.Bool  // give back what still arrives
	last     atomic.Int64 // monotonic time of the last sign from the server
	failed   chan error   // capacity 1
}

func newSession(p *puller, deliver func(pipeline.Delivery)) *session {
	return &session{p: p, deliver: deliver, failed: make(chan error, 1)}
}

// room that stays unused for this long is asked for even if it is small.
const linger = 2 * time.Millisecond

// drainTimeout bounds how long the end of a session waits for messages that are
// on their way.
const drainTimeout = 2 * time.Second

var (
	errLostConnection = errors.New("the connection was lost")
	errSilent         = errors.New("the server stopped answering pulls (missed heartbeats)")
)

// run returns why the session ended; nil only when ctx ended.
func (s *session) run(ctx context.Context) error {
	change := s.p.conn.change()
	epoch := s.p.conn.epoch.Load()
	if err := s.begin(ctx, epoch); err != nil {
		if s.p.conn.epoch.Load() != epoch {
			return errLostConnection
		}
		return err
	}
	err := s.pullUntil(ctx, change, epoch)
	if err != nil {
		// The reason may be that the stream was replaced.
		s.p.unverify()
	}
	s.end(ctx.Err() != nil)
	return err
}

// begin makes sure of the consumer and opens the inbox.
func (s *session) begin(ctx context.Context, epoch uint64) error {
	p := s.p
	ctx, cancel := p.conn.onThisConnection(ctx, epoch)
	defer cancel()
	report, e, err := ensureSpec(ctx, p.conn, p.spec, p.cfg.Setup)
	for _, object := range report.Created {
		p.log.Info("created in JetStream", "object", object)
	}
	if err != nil {
		return err
	}
	if err := p.verify(ctx, e, epoch); err != nil {
		return err
	}
	p.mu.RLock()
	s.generation = p.generation
	p.mu.RUnlock()
	s.limits(e)
	// Before the first pull, which may have the server give up what it waited to deliver.
	if err := p.givenUp.listen(e.consumer.Config.MaxDeliver > 0); err != nil {
		return fmt.Errorf("subscribe for given-up messages: %w", err)
	}
	s.inbox = p.conn.nc.NewInbox()
	s.sub, err = p.conn.nc.Subscribe(s.inbox, s.onMsg)
	if err != nil {
		return fmt.Errorf("subscribe for pulls: %w", err)
	}
	// The window bounds what can be waiting here; dropping any of it would
	// cost a delivery attempt.
	if err := s.sub.SetPendingLimits(-1, -1); err != nil {
		return fmt.Errorf("subscribe for pulls: %w", err)
	}
	s.began = true
	p.setHealth(nil)
	return nil
}

// limits fits the window and the pulls to what the consumer permits.
func (s *session) limits(e ensured) {
	largest := s.p.conn.nc.MaxPayload()
	if most := int64(e.stream.CachedInfo().Config.MaxMsgSize); most > 0 {
		largest = min(largest, most)
	}
	s.p.largest.Store(largest)
	c := e.consumer.Config
	window := s.p.cfg.Window
	if c.MaxAckPending > 0 {
		window = min(window, c.MaxAckPending)
	}
	s.fetch = min(s.p.cfg.Fetch, window)
	if c.MaxRequestBatch > 0 {
		s.fetch = min(s.fetch, c.MaxRequestBatch)
	}
	s.expiry = s.p.cfg.PullExpiry
	if c.MaxRequestExpires > 0 {
		s.expiry = min(s.expiry, c.MaxRequestExpires)
	}
	// Two pulls under way hide the round trip; many small ones cost the server
	// more than they gain.
	s.p.hand.resize(window, max(min(s.fetch, window/2), 1), s.p.cfg.WindowBytes)
}

func (s *session) pullUntil(ctx context.Context, change <-chan struct{}, epoch uint64) error {
	beat := time.NewTicker(s.heartbeat())
	defer beat.Stop()
	small := time.NewTimer(linger)
	defer small.Stop()
	patient := false // first pull: at once
	for {
		if p := s.p; p.conn.epoch.Load() != epoch || !p.conn.connected() {
			return errLostConnection
		}
		again, err := s.pull(patient)
		if err != nil {
			return err
		}
		if again {
			small.Reset(linger)
		}
		patient = true
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.failed:
			return err
		case <-change:
			change = s.p.conn.change()
		case <-s.p.hand.wake:
		case <-small.C:
			patient = false
		case <-beat.C:
			_, requested := s.p.hand.counts()
			if silent := monotonic() - s.last.Load(); requested > 0 && silent > int64(2*s.heartbeat()+s.heartbeat()/2) {
				return errSilent
			}
		}
	}
}

func (s *session) heartbeat() time.Duration { return min(s.p.cfg.Heartbeat, s.expiry/2) }

// pull asks for as much as there is room for. again is true where small room
// was left to grow.
func (s *session) pull(patient bool) (again bool, err error) {
	for {
		n, later := s.p.hand.reserve(s.fetch, patient)
		if n == 0 {
			return later, nil
		}
		body, err := json.Marshal(pullRequest{Batch: n, Expires: s.expiry, Heartbeat: s.heartbeat()})
		if err != nil {
			return false, fmt.Errorf("encode pull: %w", err)
		}
		s.last.Store(monotonic())
		subject := "$JS.API.CONSUMER.MSG.NEXT." + s.p.spec.name + "." + s.p.spec.consumer
		if err := s.p.conn.nc.PublishRequest(subject, s.inbox, body); err != nil {
			return false, fmt.Errorf("pull: %w", err)
		}
	}
}

// pullRequest is JSApiConsumerGetNextRequest of the server; durations are
// nanoseconds.
type pullRequest struct {
	Batch     int           `json:"batch"`
	Expires   time.Duration `json:"expires"`
	Heartbeat time.Duration `json:"idle_heartbeat"`
}

// onMsg takes a message, or a status, from the inbox. It is the only caller of
// deliver for this session.
func (s *session) onMsg(m *nats.Msg) {
	now := monotonic()
	s.last.Store(now)
	// A stored message comes under its stream subject, a status under the inbox.
	if m.Subject == s.inbox {
		s.onStatus(m)
		return
	}
	p := s.p
	if s.stopping.Load() {
		p.hand.expired(1)
		if p.conn.nc.Publish(m.Reply, answerNak) == nil {
			p.released.Add(1)
		}
		return
	}
	size := int64(m.Size())
	if p.hand.refuses(size) {
		p.giveBack(m.Reply)
		return
	}
	r := &receipt{from: p, reply: m.Reply, subject: m.Subject, size: size, generation: s.generation}
	p.received.Add(1)
	p.hand.add(r, now, true)
	if !s.progressed.Load() {
		s.progressed.Store(true)
	}
	origin := m.Header.Get(headerOrigin)
	s.deliver(pipeline.Delivery{
		Path: pipeline.PathJetStream, Subject: m.Subject, Body: m.Data, Receipt: r,
		Origin: producedBy(origin), Sole: sole(origin, r.Occurred),
	})
}

// onStatus follows the pull protocol: 100 is a heartbeat; 404 and 408 end a pull
// in the ordinary way, with what is missing from it in a header; anything else
// ends the session.
func (s *session) onStatus(m *nats.Msg) {
	status := m.Header.Get("Status")
	description := m.Header.Get("Description")
	switch status {
	case "100":
		s.progressed.Store(true)
		return
	case "404", "408":
		missing, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages"))
		if err == nil {
			s.p.hand.expired(missing)
			return
		}
	case "503":
		s.fail(errors.New("nobody answers pulls: the consumer or stream is gone, or JetStream is not ready (503)"))
		return
	}
	s.fail(fmt.Errorf("the server refused or ended the pull: %s %s", status, description))
}

func (s *session) fail(err error) {
	select {
	case s.failed <- err:
	default: // the first reason is the one that counts
	}
}

// end closes the inbox after everything that was on its way to it has been
// delivered, or given back when the source is stopping.
func (s *session) end(stopping bool) {
	s.stopping.Store(stopping)
	if s.p.conn.connected() {
		s.drain()
	} else {
		s.handleWaiting()
	}
	// Harmless when the drain is through; the error would only say so.
	_ = s.sub.Unsubscribe()
	s.p.hand.forget()
}

// drain ends the server's interest first, so that it sends no more, and then
// waits for what it had sent.
func (s *session) drain() {
	done := make(chan struct{})
	s.sub.SetClosedHandler(func(string) { close(done) })
	if err := s.sub.Drain(); err != nil {
		return // the connection was closed: nothing comes
	}
	timeout := time.NewTimer(drainTimeout)
	defer timeout.Stop()
	select {
	case <-done:
	case <-timeout.C:
	}
}

// handleWaiting waits until onMsg has had all that reached this process.
func (s *session) handleWaiting() {
	for deadline := time.Now().Add(drainTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if n, _, err := s.sub.Pending(); err != nil || n == 0 {
			return
		}
	}
}
