package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/migrations"
)

// stack is everything that the demo runs beside the fleet.
type stack struct {
	broker   *devstack.Mosquitto
	nats     *devstack.NATS
	database *devstack.Database
	pool     *pgxpool.Pool
	instance *instance
}

// startStack starts everything and registers the devices. After an error
// nothing is left running. program is the path of crossfade, "" for this one; died
// is told when `crossfade run` ends by itself.
func startStack(ctx context.Context, screen *Screen, program string, devices []fleet.Device, died func(error)) (_ *stack, err error) {
	s := &stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	screen.say("Starting, privately and on free ports of this host:")
	if err := s.startServers(ctx, screen); err != nil {
		return nil, err
	}
	if s.pool, err = pgxpool.New(ctx, s.database.URL()); err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	if _, err := migrations.Apply(ctx, s.database.URL(), nil); err != nil {
		return nil, err
	}
	if err := fleet.Register(ctx, s.pool, devices); err != nil {
		return nil, err
	}
	// NATS runs within this process, so its directory lives exactly as long, and is
	// cleared away at the next start if this process is killed.
	s.instance = newInstance(program, s.environ(os.Environ()), filepath.Join(s.nats.Dir(), "crossfade.log"), died)
	began := time.Now()
	if err := s.instance.start(ctx); err != nil {
		return nil, err
	}
	screen.say("  %-14s http://%-23s both sources and the mirror, process %d, %s",
		"crossfade run", s.instance.address(), s.instance.pid(), took(began))
	return s, nil
}

// startServers starts the three side by side: PostgreSQL takes longest.
func (s *stack) startServers(ctx context.Context, screen *Screen) error {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	part := func(name, where, what string) {
		screen.say("  %-14s %-30s %s, %s", name, where, what, took(began))
	}
	g.Go(func() (err error) {
		if s.broker, err = devstack.StartMosquitto(ctx, devstack.MosquittoOptions{}); err == nil {
			part("Mosquitto", s.broker.URL(), "the broker that devices publish to")
		}
		return err
	})
	g.Go(func() (err error) {
		if s.nats, err = devstack.StartNATS(ctx, devstack.NATSOptions{InProcess: true}); err == nil {
			part("NATS", "nats://"+s.nats.Address(), "JetStream on disk, within this process")
		}
		return err
	})
	g.Go(func() (err error) {
		if s.database, err = devstack.NewDatabase(ctx, "crossfade_demo"); err != nil {
			return err
		}
		what := "a database of the demo's own, where DATABASE_URL points"
		if s.database.Private() {
			what = "all that is taken in ends here"
		}
		part("PostgreSQL", s.database.Address(), what)
		return nil
	})
	return g.Wait()
}

func took(began time.Time) string {
	return fmt.Sprintf("%.1f s", time.Since(began).Seconds())
}

// environ configures `crossfade run`, with nothing of the user's own configuration.
func (s *stack) environ(base []string) []string {
	return append(devstack.WithoutSettings(base, s.database.Private()),
		"CROSSFADE_DATABASE_URL="+s.database.URL(),
		"CROSSFADE_MQTT_URL="+s.broker.URL(),
		"CROSSFADE_MQTT_USER="+s.broker.User(),
		"CROSSFADE_MQTT_PASSWORD="+s.broker.Password(),
		"CROSSFADE_NATS_URL=nats://"+s.nats.Address(),
		"CROSSFADE_NATS_USER="+s.nats.User(),
		"CROSSFADE_NATS_PASSWORD="+s.nats.Password(),
		"CROSSFADE_NATS_ACK_WAIT="+ackWait.String(),
		"CROSSFADE_MIRROR_ENABLED=true",
		"CROSSFADE_BRIDGE_INSTANCE=demo",
		"CROSSFADE_BRIDGE_FLAG_BEAT=1s",
		"CROSSFADE_STAGES_DWELL="+dwell.String(),
		"CROSSFADE_BRIDGE_SHUTDOWN_TIMEOUT=15s",
		// A few devices send here what a fleet does elsewhere: any of Options.Rate.
		"CROSSFADE_PIPELINE_RATE_LIMIT_RPS=100000",
		"CROSSFADE_PIPELINE_RATE_LIMIT_BURST=100000",
	)
}

// close stops everything in order and removes all data.
func (s *stack) close() error {
	var errs []error
	if s.instance != nil {
		errs = append(errs, s.instance.stop())
	}
	if s.pool != nil {
		s.pool.Close()
	}
	if s.database != nil {
		errs = append(errs, s.database.Close())
	}
	if s.nats != nil {
		errs = append(errs, s.nats.Close())
	}
	if s.broker != nil {
		errs = append(errs, s.broker.Close())
	}
	return errors.Join(errs...)
}
