package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
	"github.com/crossfade-io/crossfade/migrations"
)

// demoStack is everything that the demo runs beside the fleet.
type demoStack struct {
	broker   *devstack.Mosquitto
	nats     *devstack.NATS
	database *demoDatabase
	pool     *pgxpool.Pool
	child    *demoChild
}

// startDemoStack starts everything and registers the devices. After an error
// nothing is left running. died is told when `crossfade run` ends by itself.
func startDemoStack(ctx context.Context, screen *demoScreen, devices []fleet.Device, died func(error)) (_ *demoStack, err error) {
	s := &demoStack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	screen.say("Starting, privately and on free ports of this host:")
	if err := s.startServers(ctx, screen); err != nil {
		return nil, err
	}
	if s.pool, err = pgxpool.New(ctx, s.database.url); err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	if _, err := migrations.Apply(ctx, s.database.url, nil); err != nil {
		return nil, err
	}
	if err := fleet.Register(ctx, s.pool, devices); err != nil {
		return nil, err
	}
	// NATS runs within this process, so its directory lives exactly as long, and is
	// cleared away at the next start if this process is killed.
	s.child = newDemoChild(s.environ(os.Environ()), filepath.Join(s.nats.Dir(), "crossfade.log"), died)
	began := time.Now()
	if err := s.child.start(ctx); err != nil {
		return nil, err
	}
	screen.say("  %-14s http://%-23s both sources and the mirror, process %d, %s",
		"crossfade run", s.child.address(), s.child.pid(), demoTook(began))
	return s, nil
}

// startServers starts the three side by side: PostgreSQL takes longest.
func (s *demoStack) startServers(ctx context.Context, screen *demoScreen) error {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	part := func(name, where, what string) {
		screen.say("  %-14s %-30s %s, %s", name, where, what, demoTook(began))
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
		if s.database, err = openDemoDatabase(ctx); err != nil {
			return err
		}
		what := "a database of the demo's own, where DATABASE_URL points"
		if s.database.private {
			what = "all that is taken in ends here"
		}
		part("PostgreSQL", s.database.where, what)
		return nil
	})
	return g.Wait()
}

func demoTook(began time.Time) string {
	return fmt.Sprintf("%.1f s", time.Since(began).Seconds())
}

// environ configures `crossfade run`. Whatever else the caller's environment says
// of Crossfade or, with a private database, of PostgreSQL, is meant for other
// installations than this one.
func (s *demoStack) environ(base []string) []string {
	own := slices.DeleteFunc(slices.Clone(base), func(entry string) bool {
		return strings.HasPrefix(entry, "CROSSFADE_") || strings.HasPrefix(entry, "DATABASE_URL=") ||
			s.database.private && strings.HasPrefix(entry, "PG")
	})
	return append(own,
		"CROSSFADE_DATABASE_URL="+s.database.url,
		"CROSSFADE_MQTT_URL="+s.broker.URL(),
		"CROSSFADE_MQTT_USER="+s.broker.User(),
		"CROSSFADE_MQTT_PASSWORD="+s.broker.Password(),
		"CROSSFADE_NATS_URL=nats://"+s.nats.Address(),
		"CROSSFADE_NATS_USER="+s.nats.User(),
		"CROSSFADE_NATS_PASSWORD="+s.nats.Password(),
		"CROSSFADE_MIRROR_ENABLED=true",
		"CROSSFADE_BRIDGE_INSTANCE=demo",
		"CROSSFADE_BRIDGE_FLAG_BEAT=1s",
		"CROSSFADE_BRIDGE_SHUTDOWN_TIMEOUT=15s",
	)
}

// close stops everything in order and removes all data.
func (s *demoStack) close() error {
	var errs []error
	if s.child != nil {
		errs = append(errs, s.child.stop())
	}
	if s.pool != nil {
		s.pool.Close()
	}
	if s.database != nil && s.database.close != nil {
		errs = append(errs, s.database.close())
	}
	if s.nats != nil {
		errs = append(errs, s.nats.Close())
	}
	if s.broker != nil {
		errs = append(errs, s.broker.Close())
	}
	return errors.Join(errs...)
}
