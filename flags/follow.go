package flags

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/crossfade-io/crossfade/internal/backoff"
)

// notifyChannel is where the tables' triggers notify; see the migration.
const notifyChannel = "crossfade_flags"

// follow keeps the snapshot up to date until ctx ends.
func (p *StoreProvider) follow(ctx context.Context) {
	wait := p.opts.RetryMin
	for ctx.Err() == nil {
		before := p.snap.Load()
		err := p.session(ctx)
		if ctx.Err() != nil {
			return
		}
		p.note(nil, err)
		if p.snap.Load() != before {
			wait = p.opts.RetryMin // it had worked for a while
		}
		backoff.Sleep(ctx, backoff.Jitter(wait))
		wait = min(2*wait, p.opts.RetryMax)
	}
}

// session connects, listens, and reads the tables at once and upon every
// notification and beat. It returns when the connection or a reading failed.
func (p *StoreProvider) session(ctx context.Context) error {
	conn, err := p.listen(ctx)
	if err != nil {
		return err
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closeCtx) // nothing to be done about a connection that is given up
	}()
	for {
		readCtx, cancel := context.WithTimeout(ctx, p.opts.IOTimeout)
		snap, err := readSnapshot(readCtx, conn)
		cancel()
		if err != nil {
			return err
		}
		p.note(snap, nil)
		if err := p.awaitChange(ctx, conn); err != nil {
			return err
		}
	}
}

func (p *StoreProvider) listen(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.IOTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, p.opts.Conn)
	if err != nil {
		return nil, fmt.Errorf("connecting for the flags: %w", err)
	}
	if _, err := conn.Exec(ctx, "LISTEN "+notifyChannel); err != nil {
		_ = conn.Close(ctx) // the error of LISTEN says more
		return nil, fmt.Errorf("listening for changes of the flags: %w", err)
	}
	return conn, nil
}

// awaitChange returns nil when the tables should be read again: a notification
// came (and Debounce has passed), or the beat is due.
func (p *StoreProvider) awaitChange(ctx context.Context, conn *pgx.Conn) error {
	notified, err := waitNotified(ctx, conn, p.opts.Beat)
	if err != nil || !notified {
		return err
	}
	// A fixed window, so that a steady stream of changes cannot put the reading off.
	end := time.Now().Add(p.opts.Debounce)
	for notified && err == nil {
		notified, err = waitNotified(ctx, conn, time.Until(end))
	}
	return err
}

// waitNotified reports whether a notification came within d.
func waitNotified(ctx context.Context, conn *pgx.Conn, d time.Duration) (bool, error) {
	if d <= 0 {
		return false, nil
	}
	waitCtx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_, err := conn.WaitForNotification(waitCtx)
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case waitCtx.Err() != nil && !conn.IsClosed():
		return false, nil // pgx keeps the connection through a timeout
	}
	return false, fmt.Errorf("listening for changes of the flags: %w", err)
}

// note takes in how a reading ended and logs when that is news.
func (p *StoreProvider) note(snap *snapshot, err error) {
	if err != nil {
		err = explain(err)
	}
	var changed []string
	if err == nil {
		changed = snap.changedFrom(p.snap.Load())
		p.snap.Store(snap)
	}
	p.mu.Lock()
	wasFailing := p.lastErr != nil
	p.lastErr = err
	p.refused = errors.Is(err, errRefused)
	for _, key := range changed {
		if !slices.Contains(p.changed, key) {
			p.changed = append(p.changed, key)
		}
	}
	p.mu.Unlock()

	switch {
	case err != nil && !wasFailing:
		p.log.Warn("flags cannot be read; what is known holds until it is stale", "error", err, "max_stale", p.opts.MaxStale)
	case err == nil && wasFailing:
		p.log.Info("flags are read again")
	}
	p.firstOnce.Do(func() { close(p.first) })
	select {
	case p.loaded <- struct{}{}:
	default:
	}
}

// errRefused marks what PostgreSQL itself refuses (SQLSTATE class 42: missing
// table, no permission): the tables are not as they should be, and what is in
// memory is not to be trusted for another MaxStale.
var errRefused = errors.New("PostgreSQL refuses to show the flag tables")

// explain adds what an operator can do about a database error.
func explain(err error) error {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok:
		return err
	case pgErr.Code == "42P01":
		return fmt.Errorf("%w: run crossfade migrate: %w", errRefused, err)
	case pgErr.Code == "42501":
		return fmt.Errorf("%w: grant this role access to crossfade_flag_rules and crossfade_flag_targets: %w", errRefused, err)
	case len(pgErr.Code) == 5 && pgErr.Code[:2] == "42":
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return err
}
