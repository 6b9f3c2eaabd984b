package rollout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/session"
	"github.com/crossfade-io/crossfade/internal/backoff"
)

// driverLock is the advisory lock of whoever drives rollouts. It spares work and log
// lines; that nothing is done twice is up to the rollout's revision.
const driverLock = 0x63726f7373726f6c // "crossrol"

// silence is after how long PostgreSQL ends the session of a driver that is not heard
// of, so that another instance takes over.
const silence = 10 * time.Second

var lockSession = session.Options{
	Application: "crossfade rollout", Silence: silence, StatementTimeout: 30 * time.Second, LockTimeout: 5 * time.Second,
}

// Options configures a driver. Begin with DefaultOptions.
type Options struct {
	Pool   *pgxpool.Pool
	Logger *slog.Logger
	// Round is how often the driver looks what has come about, and others try to
	// become the driver. Up to 5s.
	Round time.Duration
	// GatesEvery is how often a wave that bakes is measured.
	GatesEvery time.Duration
}

// DefaultOptions looks every second, and measures every five.
func DefaultOptions() Options { return Options{Round: time.Second, GatesEvery: 5 * time.Second} }

// Validate names the fields that are out of range, and what would be in it.
func (o *Options) Validate() error {
	var errs []error
	if o.Pool == nil || o.Logger == nil {
		errs = append(errs, errors.New("rollout: Pool and Logger must be set"))
	}
	if o.Round <= 0 || o.Round > silence/2 {
		errs = append(errs, fmt.Errorf("rollout: Round is %v: set more than 0 and no more than %v (default 1s)", o.Round, silence/2))
	}
	if o.GatesEvery <= 0 {
		errs = append(errs, fmt.Errorf("rollout: GatesEvery is %v: set more than 0 (default 5s)", o.GatesEvery))
	}
	return errors.Join(errs...)
}

// Drive carries rollouts out until ctx ends, whenever no other instance does. What
// fails is tried again. Only options that cannot work are an error.
func Drive(ctx context.Context, o Options) error {
	if err := o.Validate(); err != nil {
		return err
	}
	d := &driver{o: o, log: o.Logger.With("part", "rollout")}
	for ctx.Err() == nil {
		err := d.stand(ctx)
		switch {
		case ctx.Err() != nil:
		case err == nil:
			d.troubled = false
		case !d.troubled:
			d.troubled = true
			d.log.Warn("rollouts do not go on by this instance; trying again", "error", err)
		}
		backoff.Sleep(ctx, o.Round)
	}
	return nil
}

type driver struct {
	o        Options
	log      *slog.Logger
	troubled bool // and it was said

	conn     *pgx.Conn
	measured time.Time
}

// stand keeps one session until it fails or ctx ends.
func (d *driver) stand(ctx context.Context) error {
	if err := d.connect(ctx); err != nil {
		return err
	}
	defer session.Close(d.conn)
	for ctx.Err() == nil {
		var mine bool
		if err := d.bounded(ctx, func(ctx context.Context) error {
			return d.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, int64(driverLock)).Scan(&mine)
		}); err != nil {
			return fmt.Errorf("ask for the lock of rollouts: %w", err)
		}
		d.troubled = false
		if mine {
			return d.drive(ctx)
		}
		backoff.Sleep(ctx, d.o.Round)
	}
	return nil
}

func (d *driver) drive(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := false
		if err := d.bounded(ctx, func(ctx context.Context) (err error) {
			changed, err = d.advance(ctx)
			return err
		}); err != nil {
			return err
		}
		d.troubled = false
		if !changed {
			backoff.Sleep(ctx, d.o.Round)
		}
	}
	return nil
}

// advance takes one step of the rollout that is under way, if there is one. All that
// is written goes through the session that has the lock: who has lost it cannot write.
func (d *driver) advance(ctx context.Context) (bool, error) {
	var name string
	err := d.conn.QueryRow(ctx, `SELECT name FROM crossfade_rollouts WHERE state IN ('pending', 'running')`).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for rollouts: %w", err)
	}
	var before Progress
	r, changed, err := transact(ctx, d.conn, name, func(ctx context.Context, tx pgx.Tx, r *Rollout) (Change, error) {
		before = r.Progress
		var known []string
		if r.Phase == Choosing {
			var err error
			if known, err = control.Tenants(ctx, d.o.Pool); err != nil {
				return Change{}, err
			}
		}
		var measured func(*Tenant) bool
		if (r.Phase == Baking || r.Phase == Judging) && time.Since(d.measured) >= d.o.GatesEvery {
			d.measured = time.Now()
			measured = func(t *Tenant) bool { return t.State == InBake && t.Wave == r.Wave }
		}
		o, err := observe(ctx, tx, r, known, measured)
		if err != nil {
			return Change{}, err
		}
		return Step(r, o), nil
	})
	if changed && (r.State != before.State || r.Phase != before.Phase || r.Wave != before.Wave) {
		d.log.Info("rollout", "rollout", name, "state", r.State, "phase", r.Phase, "wave", r.Wave+1, "of", len(r.Plan.Waves), "reason", r.Why)
	}
	return changed, err
}

func (d *driver) connect(ctx context.Context) error {
	return d.bounded(ctx, func(ctx context.Context) (err error) {
		d.conn, err = session.Open(ctx, d.o.Pool.Config().ConnConfig, lockSession)
		return err
	})
}

// bounded gives what uses the session some time, and no more.
func (d *driver) bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	return f(ctx)
}
