package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// ErrNotConnected is returned by receipts that were settled while the server
// could not be reached. The acknowledgement is kept and sent after the
// reconnection if the message is still the same one there, but nobody promises
// that it will arrive: the copy may come again.
var ErrNotConnected = errors.New("not connected to NATS; the message may come again")

// Conn is one connection to NATS, shared by the sources, the mirror and the
// set-up of a process. It reconnects by itself for as long as it is open.
type Conn struct {
	nc     *nats.Conn
	js     natsjs.JetStream
	filler *filler
	cfg    Config
	where  string // the servers' addresses, without secrets
	log    *slog.Logger

	// nats.go holds its lock while it waits for a server, for seconds. So what
	// Health and receipts need to know is kept here, from its callbacks.
	alive  atomic.Bool
	closed atomic.Bool
	first  chan struct{} // closed at the first connection
	opened atomic.Pointer[nats.Conn]

	// epoch counts lost connections: what was known about the server's streams
	// before the loss may not hold after it.
	epoch atomic.Uint64

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever the connection comes or goes
	lastErr error         // why there is no connection, explained
	logged  string        // the last reason that was logged

	denials denials
}

// Connect opens the connection. A server that cannot be reached is no error: it
// is tried again until Close, with Health saying so meanwhile. The error is for
// what no retry can mend: an invalid configuration or an unreadable file.
func Connect(cfg Config, log *slog.Logger) (*Conn, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	opts, err := cfg.options()
	if err != nil {
		return nil, fmt.Errorf("NATS configuration: %w", err)
	}
	where := make([]string, len(cfg.URLs))
	for i, u := range cfg.URLs {
		where[i] = RedactURL(strings.TrimSpace(u))
	}
	c := &Conn{
		cfg: cfg, where: strings.Join(where, ", "), log: log,
		changed: make(chan struct{}), first: make(chan struct{}),
	}
	c.nc, err = nats.Connect("", append(opts, c.callbacks()...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", c.where, err)
	}
	c.opened.Store(c.nc)
	if c.nc.IsConnected() {
		<-c.first // the callback is on its way, even if the connection is lost again
	}
	c.js, err = natsjs.New(c.nc)
	if err == nil {
		c.filler, err = newFiller(c.nc)
	}
	if err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("connect to NATS at %s: %w", c.where, err)
	}
	return c, nil
}

// callbacks are called by nats.go one after the other. They get the connection
// as an argument because they may come before nats.Connect has returned it.
func (c *Conn) callbacks() []nats.Option {
	return []nats.Option{
		nats.ConnectHandler(func(nc *nats.Conn) {
			c.up(nc, "connected to NATS")
			close(c.first)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { c.up(nc, "reconnected to NATS") }),
		nats.DisconnectErrHandler(c.down),
		nats.ClosedHandler(func(*nats.Conn) { c.closed.Store(true) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { c.refused(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if c.connected() && !c.denials.tell(err) {
				c.log.Warn("NATS connection error", "server", c.where, "error", err)
			}
		}),
		// Called before every round of attempts, without nats.go's lock. A failed
		// TLS handshake or login is told by no callback, only by LastError.
		nats.CustomReconnectDelay(func(attempts int) time.Duration {
			if nc := c.opened.Load(); nc != nil {
				if err := nc.LastError(); err != nil {
					c.refused(err)
				}
			}
			return backoff.Delay(max(attempts, 1), reconnectBase, backoffLimit)
		}),
	}
}

func (c *Conn) up(nc *nats.Conn, msg string) {
	// It may be lost again by now, with the callback for that already done.
	c.alive.Store(nc.IsConnected())
	c.log.Info(msg, "server", c.where)
	c.broadcast(nil)
}

func (c *Conn) down(_ *nats.Conn, err error) {
	c.alive.Store(false)
	c.epoch.Add(1)
	if err != nil {
		err = c.cfg.explain(err)
	}
	c.broadcast(err)
	if !c.closed.Load() {
		c.log.Warn("lost the connection to NATS; reconnecting", "server", c.where, "error", err)
	}
}

func (c *Conn) broadcast(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastErr, c.logged = err, ""
	close(c.changed)
	c.changed = make(chan struct{})
}

// refused notes why an attempt to connect failed, and logs it when it is not
// the same as the time before.
func (c *Conn) refused(err error) {
	err = c.cfg.explain(err)
	c.mu.Lock()
	c.lastErr = err
	news := c.logged != err.Error()
	c.logged = err.Error()
	c.mu.Unlock()
	if news {
		c.log.Warn("cannot connect to NATS; still trying", "server", c.where, "error", err)
	}
}

// change returns a channel that is closed at the next change of the connection.
// Fetch it before looking at the state, or a change in between goes unseen.
func (c *Conn) change() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// connected reports whether the server can be written to now.
func (c *Conn) connected() bool { return c.alive.Load() }

// awaitConnected returns true once connected, and false when ctx ended first.
func (c *Conn) awaitConnected(ctx context.Context) bool {
	for {
		ch := c.change()
		if c.connected() {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-ch:
		}
	}
}

// onThisConnection returns a context that ends with the connection that was up
// at the given epoch: questions that were under way are never answered, and
// waiting for their time-out would hold up the recovery.
func (c *Conn) onThisConnection(ctx context.Context, epoch uint64) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for {
			ch := c.change()
			if c.epoch.Load() != epoch {
				cancel(errLostConnection)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-ch:
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// Health is nil while connected, and otherwise says what is missing. It does no
// I/O and may be called from any goroutine.
func (c *Conn) Health() error {
	if c.connected() {
		return nil
	}
	c.mu.Lock()
	last := c.lastErr
	c.mu.Unlock()
	if last == nil {
		last = errors.New("no answer yet; check URLs, and that the server runs")
	}
	if c.closed.Load() {
		return fmt.Errorf("NATS at %s: the connection was closed for good (%w); restart this program", c.where, last)
	}
	return fmt.Errorf("NATS at %s: not connected, still trying: %w", c.where, last)
}

// Flush returns when the server has taken in everything that was sent before,
// acknowledgements included; within ctx, and within ten seconds.
func (c *Conn) Flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if !c.connected() {
		return fmt.Errorf("flush NATS connection to %s: %w", c.where, ErrNotConnected)
	}
	if err := c.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("flush NATS connection to %s: %w", c.where, err)
	}
	return nil
}

// Close flushes what was sent, within ctx, and closes the connection. Closing
// twice is fine. The error says that the flush failed; the connection is closed
// all the same.
func (c *Conn) Close(ctx context.Context) error {
	if c.closed.Swap(true) {
		return nil
	}
	var err error
	if c.connected() {
		err = c.Flush(ctx)
	}
	c.nc.Close()
	c.alive.Store(false)
	return err
}
