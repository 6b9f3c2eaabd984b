package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// changesChannel is where the triggers of migration 00006 announce what others
// have changed.
const changesChannel = "crossfade_changes"

// ChangeKind is what a [Change] is of.
type ChangeKind int

// The kinds of changes.
const (
	// ChangeEverything: anything may have changed.
	ChangeEverything ChangeKind = iota
	// ChangeDevice: a device, its certificates or its modules.
	ChangeDevice
	// ChangeTenant: devices of a tenant, or its subscriptions.
	ChangeTenant
	// ChangeRoutes: a tenant's routes.
	ChangeRoutes
	// ChangeSettings: app_settings.
	ChangeSettings
	// ChangeListening and ChangeDeaf: from now on changes are heard of, or may be
	// missed. ChangeListening comes before the ChangeEverything for what was missed.
	ChangeListening
	ChangeDeaf
)

// Change is what somebody has changed in the database, or whether that is heard.
type Change struct {
	Kind           ChangeKind
	Tenant, Device string // as far as the kind has them
}

// ListenOptions are those of [Store.Listen]. DefaultListenOptions gives sensible ones.
type ListenOptions struct {
	// Beat is how often a connection on which nothing comes is asked whether it
	// lives; Patience how long an answer may take. Their sum is how long a dead
	// connection goes unnoticed. Both more than zero.
	Beat, Patience time.Duration
	// RetryMin and RetryMax bound the wait before connecting again, 1 ms and up.
	RetryMin, RetryMax time.Duration
	Logger             *slog.Logger
}

// DefaultListenOptions returns the defaults.
func DefaultListenOptions() ListenOptions {
	return ListenOptions{Beat: 2 * time.Second, Patience: 3 * time.Second, RetryMin: 100 * time.Millisecond, RetryMax: 5 * time.Second}
}

// Validate names the fields that can't be used.
func (o ListenOptions) Validate() error {
	var errs []error
	if o.Beat <= 0 || o.Patience <= 0 {
		errs = append(errs, fmt.Errorf("listen options: Beat is %v and Patience %v: choose more than 0", o.Beat, o.Patience))
	}
	if o.RetryMin < time.Millisecond || o.RetryMax < o.RetryMin {
		errs = append(errs, fmt.Errorf("listen options: RetryMin is %v and RetryMax %v: choose 1ms or more, and RetryMax not below RetryMin", o.RetryMin, o.RetryMax))
	}
	if o.Logger == nil {
		errs = append(errs, errors.New("listen options: Logger must be set"))
	}
	return errors.Join(errs...)
}

// Listen tells of changes until ctx ends, on a connection of its own that it makes
// again whenever it is lost. heard is called from one goroutine, in order; what it
// has not returned from holds up what comes after. It begins deaf.
//
// A change that is told of can be read: whoever reads after heard was called sees it.
func (s *Store) Listen(ctx context.Context, o ListenOptions, heard func(Change)) error {
	if err := o.Validate(); err != nil {
		return err
	}
	l := &listener{ListenOptions: o, store: s, heard: heard}
	wait := o.RetryMin
	for ctx.Err() == nil {
		err := l.session(ctx)
		if l.listening {
			l.listening, wait = false, o.RetryMin
			heard(Change{Kind: ChangeDeaf})
		}
		if ctx.Err() != nil {
			break
		}
		l.note(err)
		backoff.Sleep(ctx, backoff.Jitter(wait))
		wait = min(2*wait, o.RetryMax)
	}
	return nil
}

type listener struct {
	ListenOptions
	store     *Store
	heard     func(Change)
	listening bool
	failing   bool // and said so
}

// note logs when listening begins to fail, and when it works again.
func (l *listener) note(err error) {
	switch {
	case err != nil && !l.failing:
		l.Logger.Warn("changes of devices, routes and settings cannot be listened to; they take effect some seconds later until that is mended", "error", err)
	case err == nil && l.failing:
		l.Logger.Info("changes of devices, routes and settings are listened to again")
	}
	l.failing = err != nil
}

// session listens until the connection fails or ctx ends.
func (l *listener) session(ctx context.Context) error {
	conn, err := l.connect(ctx)
	if err != nil {
		return translate("connect to listen for changes", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing) // nothing to be done about a connection that is given up
	}()
	silent, err := l.subscribe(ctx, conn)
	if err != nil {
		return translate("listen for changes", err)
	}
	l.listening = true
	l.note(nil)
	l.tellSilent(silent)
	l.heard(Change{Kind: ChangeListening})
	l.heard(Change{Kind: ChangeEverything})
	for {
		if err := l.await(ctx, conn); err != nil {
			return translate("listen for changes", err)
		}
	}
}

func (l *listener) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.Patience)
	defer cancel()
	return pgx.ConnectConfig(ctx, l.store.pool.Config().ConnConfig)
}

// subscribe returns once notifications are known to come. Behind a connection
// pooler that shares sessions LISTEN succeeds, and nothing ever comes of it: so a
// word to ourselves has to. It goes by another connection, for such a pooler does
// hand on what comes together with the answer to a statement. It also returns the tables
// of which not all is notified.
func (l *listener) subscribe(ctx context.Context, conn *pgx.Conn) ([]silentTable, error) {
	ctx, cancel := context.WithTimeout(ctx, l.Patience)
	defer cancel()
	silent, err := silentTables(ctx, conn)
	if err != nil {
		return nil, err
	}
	word := fmt.Sprintf("crossfade_changes_%d_%016x", conn.PgConn().PID(), rand.Uint64())
	for _, channel := range []string{changesChannel, word} {
		if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
			return nil, err
		}
	}
	if _, err := l.store.pool.Exec(ctx, "NOTIFY "+word); err != nil {
		return nil, fmt.Errorf("try it out: %w", err)
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, fmt.Errorf("nothing that is notified comes: a connection pooler in between has to share connections by session, not by transaction: %w", err)
		case err != nil:
			return nil, err
		case n.Channel == word: // all others are covered by ChangeEverything
			_, err := conn.Exec(ctx, "UNLISTEN "+word)
			return silent, err
		}
	}
}

// await waits for a notification or the beat. An error means that the connection
// is lost, or ctx ended.
func (l *listener) await(ctx context.Context, conn *pgx.Conn) error {
	waiting, cancel := context.WithTimeout(ctx, l.Beat)
	defer cancel()
	n, err := conn.WaitForNotification(waiting)
	switch {
	case err == nil:
		if n.Channel == changesChannel {
			l.heard(parseChange(n.Payload))
		}
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case waiting.Err() == nil || conn.IsClosed(): // pgx keeps the connection through a time-out
		return err
	}
	asking, cancel := context.WithTimeout(ctx, l.Patience)
	defer cancel()
	return conn.Ping(asking)
}

// parseChange reads a payload as migration 00006 describes them. One that it does
// not know may be that of a later version, and of anything.
func parseChange(payload string) Change {
	var p struct {
		Device   []string `json:"d"`
		Tenant   *string  `json:"s"`
		Routes   *string  `json:"r"`
		Settings int      `json:"c"`
	}
	// What is no UTF-8 (a database in SQL_ASCII) would name another device.
	if !utf8.ValidString(payload) || json.Unmarshal([]byte(payload), &p) != nil {
		return Change{Kind: ChangeEverything}
	}
	switch {
	case len(p.Device) == 2:
		return Change{Kind: ChangeDevice, Tenant: p.Device[0], Device: p.Device[1]}
	case p.Tenant != nil:
		return Change{Kind: ChangeTenant, Tenant: *p.Tenant}
	case p.Routes != nil:
		return Change{Kind: ChangeRoutes, Tenant: *p.Routes}
	case p.Settings != 0:
		return Change{Kind: ChangeSettings}
	}
	return Change{Kind: ChangeEverything}
}
