package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// RoutesConfig bounds the work of a route publisher.
type RoutesConfig struct {
	// MaxInFlight is how many messages may be published and not yet confirmed; of
	// one key it is one.
	MaxInFlight int
	// AckTimeout is how long a confirmation may take before the message counts as
	// failed, to be published again under the same ID.
	AckTimeout time.Duration
	// Turn is how long one call of Publish begins to publish messages. What was read
	// longer ago than that may have become somebody else's.
	Turn time.Duration
	// RetryBase is the first pause of a tenant whose messages fail; it doubles, with
	// jitter, up to 30 s.
	RetryBase time.Duration
	// Setup is how the stream is created where it is missing.
	Setup SetupOptions
}

// DefaultRoutesConfig returns 256 in flight, confirmed within 5 s, turns of 10 s,
// retries from 100 ms on.
func DefaultRoutesConfig() RoutesConfig {
	return RoutesConfig{MaxInFlight: 256, AckTimeout: 5 * time.Second, Turn: 10 * time.Second,
		RetryBase: 100 * time.Millisecond, Setup: DefaultSetupOptions()}
}

// Validate names the first field that is out of range and its remedy.
func (c RoutesConfig) Validate() error {
	switch {
	case c.MaxInFlight < 1 || c.MaxInFlight > 10_000:
		return fmt.Errorf("field MaxInFlight: %d is out of range; use 1 to 10000", c.MaxInFlight)
	case c.AckTimeout < 100*time.Millisecond || c.AckTimeout > 20*time.Second:
		return fmt.Errorf("field AckTimeout: %s is out of range; use 100ms to 20s", c.AckTimeout)
	case c.Turn < 100*time.Millisecond || c.Turn > 20*time.Second:
		return fmt.Errorf("field Turn: %s is out of range; use 100ms to 20s", c.Turn)
	case c.RetryBase < time.Millisecond || c.RetryBase > backoffLimit:
		return fmt.Errorf("field RetryBase: %s is out of range; use 1ms to %s", c.RetryBase, backoffLimit)
	}
	return c.Setup.Validate()
}

// RouteMessage is one message for routes.{tenant}.
type RouteMessage struct {
	Tenant string
	// Key is whose messages are kept in order: a device.
	Key string
	// ID is by which the stream knows a repeat (Nats-Msg-Id).
	ID   string
	Body []byte
}

// RouteOutcome is what became of a message. The zero value is for one that was not
// published, since one of its key before it failed, or time ran out.
type RouteOutcome struct {
	// Stored: the server has confirmed it, now or under an earlier attempt.
	Stored bool
	// Refused is why it can never be stored as it is; empty otherwise.
	Refused string
	// Err is why it may not be stored; another attempt may succeed.
	Err error
}

// RoutePublisher puts messages into the ROUTES stream. Of one key there is never
// more than one under way, and none is begun before the one before it is confirmed
// or refused for good: an order that no reconnection, lost message or change of the
// stream's leader can break, which pipelined publishing does not give. Messages of
// different keys go side by side.
//
// Publish is not for concurrent use; the other methods are.
type RoutePublisher struct {
	conn    *Conn
	cfg     RoutesConfig
	log     *slog.Logger
	trouble atomic.Pointer[error] // of the last turn
	rests   rests
}

// NewRoutePublisher returns a publisher on conn. The error is for an invalid
// configuration.
func NewRoutePublisher(conn *Conn, cfg RoutesConfig, log *slog.Logger) (*RoutePublisher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("route publisher: %w", err)
	}
	return &RoutePublisher{conn: conn, cfg: cfg, log: log, rests: rests{base: cfg.RetryBase}}, nil
}

// AwaitConnected returns true once the server can be reached, and false when ctx
// ended first.
func (p *RoutePublisher) AwaitConnected(ctx context.Context) bool { return p.conn.awaitConnected(ctx) }

// Connected reports whether the server can be reached now.
func (p *RoutePublisher) Connected() bool { return p.conn.connected() }

// Health is nil while messages can be published, and otherwise says why not.
func (p *RoutePublisher) Health() error {
	if err := p.conn.Health(); err != nil {
		return err
	}
	if e := p.trouble.Load(); e != nil && !p.rests.none(time.Now()) {
		return *e
	}
	return nil
}

// Resting are the tenants whose messages failed and are not to be tried yet. One
// tenant's trouble (a subject that we may not publish on, say) is not to be
// waited for by others.
func (p *RoutePublisher) Resting() []string { return p.rests.list(time.Now()) }

// Publish publishes messages, each key's in the order given, and returns what
// became of each. It returns once all under way are settled: at most Turn and
// AckTimeout later, or, once ctx has ended, within a second.
func (p *RoutePublisher) Publish(ctx context.Context, messages []RouteMessage) []RouteOutcome {
	t := &routeTurn{p: p, messages: messages, outcomes: make([]RouteOutcome, len(messages)),
		intake: ctx, end: time.Now().Add(p.cfg.Turn)}
	epoch := p.conn.epoch.Load()
	if !p.conn.connected() {
		return t.outcomes
	}
	work, cancel := p.conn.onThisConnection(context.WithoutCancel(ctx), epoch)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		backoff.Sleep(work, finishGrace)
		cancel()
	})
	defer stop()

	chains := t.chains()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(p.cfg.MaxInFlight, len(chains)) {
		wg.Go(func() {
			for n := next.Add(1) - 1; int(n) < len(chains); n = next.Add(1) - 1 {
				t.publish(work, chains[n])
			}
		})
	}
	wg.Wait()
	p.review(ctx, t, epoch)
	return t.outcomes
}

// routeTurn is one call of Publish.
type routeTurn struct {
	p        *RoutePublisher
	messages []RouteMessage
	outcomes []RouteOutcome
	intake   context.Context // no message is begun after it has ended,
	end      time.Time       // or after this
}

// chains are the indexes of each key's messages, keys in order of their first.
func (t *routeTurn) chains() [][]int {
	numbers := make(map[string]int)
	var chains [][]int
	for i := range t.messages {
		n, ok := numbers[t.messages[i].Key]
		if !ok {
			n = len(chains)
			numbers[t.messages[i].Key] = n
			chains = append(chains, nil)
		}
		chains[n] = append(chains[n], i)
	}
	return chains
}

// publish publishes one key's messages, one after the other, up to the first that
// fails.
func (t *routeTurn) publish(ctx context.Context, chain []int) {
	for _, i := range chain {
		if ctx.Err() != nil || t.intake.Err() != nil || time.Now().After(t.end) {
			return
		}
		t.outcomes[i] = t.p.one(ctx, &t.messages[i])
		if t.outcomes[i].Err != nil {
			return
		}
	}
}

func (p *RoutePublisher) one(ctx context.Context, m *RouteMessage) RouteOutcome {
	if !subjectSafe(m.Tenant) {
		return RouteOutcome{Refused: "the tenant's name cannot be part of a NATS subject"}
	}
	msg := &nats.Msg{Subject: "routes." + m.Tenant, Data: m.Body}
	ctx, unwatch := p.conn.denials.watch(ctx, msg.Subject)
	defer unwatch()
	ctx, cancel := context.WithTimeout(ctx, p.cfg.AckTimeout)
	defer cancel()
	_, err := p.conn.js.PublishMsg(ctx, msg, natsjs.WithMsgID(m.ID), natsjs.WithRetryAttempts(0))
	switch {
	case err == nil:
		return RouteOutcome{Stored: true}
	case refusedForSize(err):
		return RouteOutcome{Refused: fmt.Sprintf("%d bytes are more than the server or the stream permits: %v; raise max_payload or max_msg_size", len(m.Body), err)}
	case errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrBadHeaderMsg), refusedForHeader(err):
		return RouteOutcome{Refused: fmt.Sprintf("the server cannot take the message: %v", err)}
	}
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		err = cause
	}
	return RouteOutcome{Err: fmt.Errorf("publish on %s: %w", abridged(msg.Subject), err)}
}

// errCodeHeaderTooLong is the server's JSStreamHeaderExceedsMaximumErr, for which
// nats.go has no name.
const errCodeHeaderTooLong natsjs.ErrorCode = 10097

func refusedForHeader(err error) bool {
	var api *natsjs.APIError
	return errors.As(err, &api) && api.ErrorCode == errCodeHeaderTooLong
}

// review draws the turn's conclusions: who rests, and whether the stream is there.
func (p *RoutePublisher) review(ctx context.Context, t *routeTurn, epoch uint64) {
	if p.conn.epoch.Load() != epoch || ctx.Err() != nil {
		return // the failures say nothing about the tenants
	}
	var failed error
	missing := false
	now := time.Now()
	for i := range t.outcomes {
		o, tenant := &t.outcomes[i], t.messages[i].Tenant
		switch {
		case o.Err != nil:
			failed = o.Err
			missing = missing || errors.Is(o.Err, natsjs.ErrNoStreamResponse)
			p.rests.failed(tenant, now)
		case o.Stored:
			p.rests.succeeded(tenant, now)
		}
	}
	if missing {
		if err := p.ensure(ctx); err != nil {
			failed = err
		} else {
			p.rests.clear()
		}
	}
	if failed == nil {
		if p.rests.none(now) && p.trouble.Swap(nil) != nil {
			p.log.Info("routes are published again")
		}
		return
	}
	if p.trouble.Swap(&failed) == nil {
		p.log.Warn("routes cannot be published; trying again until they can", "error", failed)
	}
}

// ensure creates the stream where it is missing.
func (p *RoutePublisher) ensure(ctx context.Context) error {
	for _, s := range specs {
		if s.name != streamRoutes {
			continue
		}
		report, _, err := ensureSpec(ctx, p.conn, s, p.cfg.Setup)
		for _, object := range report.Created {
			p.log.Info("created in JetStream", "object", object)
		}
		if err == nil && len(report.Created) == 0 {
			return fmt.Errorf("nobody confirms messages on %s, though stream %s is there: see whether its leader is up and its subjects are %s", s.subject, s.name, s.subject)
		}
		return err
	}
	return nil
}

const streamRoutes = "ROUTES"
