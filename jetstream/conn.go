package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
)

// ErrNotConnected is returned by receipts that were settled while the server
// could not be reached. The acknowledgement is kept and sent after the
// reconnection if the message is still the same one there, but nobody promises
// that it will arrive: the copy may come again.
var ErrNotConnected = errors.New("not connected to NATS; the message may come again")

// Conn is one connection to NATS, shared by the sources, the mirror and the
// set-up of a process. It reconnects by itself for as long as it is open.
type Conn struct {
	nc    *nats.Conn
	js    natsjs.JetStream
	where string // the servers' addresses, without secrets
	log   *slog.Logger

	// epoch counts lost connections: what was known about the server's streams
	// before the loss may not hold after it.
	epoch atomic.Uint64

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever the connection comes or goes
	lastErr error
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
	c := &Conn{where: strings.Join(where, ", "), log: log, changed: make(chan struct{})}
	opts = append(opts,
		nats.ConnectHandler(func(*nats.Conn) { c.up("connected to NATS") }),
		nats.ReconnectHandler(func(*nats.Conn) { c.up("reconnected to NATS") }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.down(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { c.noteError(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.noteError(err)
			c.log.Warn("NATS connection error", "server", c.where, "error", err)
		}),
	)
	c.nc, err = nats.Connect(strings.Join(cfg.URLs, ","), opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", c.where, err)
	}
	c.js, err = natsjs.New(c.nc)
	if err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("connect to NATS at %s: %w", c.where, err)
	}
	return c, nil
}

func (c *Conn) up(msg string) {
	c.log.Info(msg, "server", c.where)
	c.broadcast(nil)
}

func (c *Conn) down(err error) {
	c.epoch.Add(1)
	c.broadcast(err)
	if !c.nc.IsClosed() {
		c.log.Warn("lost the connection to NATS; reconnecting", "server", c.where, "error", err)
	}
}

func (c *Conn) broadcast(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastErr = err
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Conn) noteError(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastErr = err
}

// change returns a channel that is closed at the next change of the connection.
// Fetch it before looking at the state, or a change in between goes unseen.
func (c *Conn) change() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// connected reports whether the server can be written to now.
func (c *Conn) connected() bool { return c.nc.IsConnected() }

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

// Health is nil while connected, and otherwise says what is missing. It does no
// I/O and may be called from any goroutine.
func (c *Conn) Health() error {
	if c.connected() {
		return nil
	}
	if c.nc.IsClosed() {
		return fmt.Errorf("NATS at %s: the connection was closed", c.where)
	}
	c.mu.Lock()
	last := c.lastErr
	c.mu.Unlock()
	if last == nil {
		last = errors.New("no answer yet")
	}
	return fmt.Errorf("NATS at %s: not connected (%w); still trying, check that the server runs and accepts these credentials", c.where, last)
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
	if c.nc.IsClosed() {
		return nil
	}
	var err error
	if c.connected() {
		err = c.Flush(ctx)
	}
	c.nc.Close()
	return err
}
