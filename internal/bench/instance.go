package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

// measurePipeline is what everything is about: `crossfade run` on the backlog. The
// time runs from the instance's own word that it is taking messages in (so it
// holds finding its consumers and filling its caches) until the last message is
// committed.
func (b *bench) measurePipeline(ctx context.Context) (m Measure, report fleet.Report, err error) {
	db, err := b.newDatabase(ctx)
	if err != nil {
		return m, report, err
	}
	defer func() { err = errors.Join(err, db.drop()) }()
	nats, remove, err := b.startNATS(ctx)
	if err != nil {
		return m, report, err
	}
	defer func() { err = errors.Join(err, remove()) }()

	in, err := startInstance(ctx, b.Program, b.environment(db.url, nats))
	if err != nil {
		return m, report, err
	}
	clock, err := startStopwatch(in.PID(), b.postgres.PID(), nats.PID())
	if err == nil {
		err = in.awaitWritten(ctx, b.Messages)
	}
	if err == nil {
		m, err = clock.stop(b.Messages)
	}
	if err == nil {
		err = in.look(ctx, &m)
	}
	if err = errors.Join(err, in.stop()); err != nil {
		return m, report, err
	}
	if report, err = fleet.Reconcile(ctx, db.pool, b.backlog.record); err != nil {
		return m, report, err
	}
	if err = b.reconciled(report); err == nil && b.rows == nil {
		err = b.readRows(ctx, db)
	}
	return m, report, err
}

// environment is the instance's, with nothing of the user's own configuration.
func (b *bench) environment(database string, nats *devstack.NATS) []string {
	return append(devstack.WithoutSettings(os.Environ(), true),
		"CROSSFADE_DATABASE_URL="+database,
		"CROSSFADE_NATS_URL=nats://"+nats.Address(),
		"CROSSFADE_NATS_USER="+nats.User(),
		"CROSSFADE_NATS_PASSWORD="+nats.Password(),
		// Twice what the workers hold, so that they never wait for the source.
		"CROSSFADE_NATS_WINDOW="+strconv.Itoa(max(16000, 2*b.BatchSize*b.Workers)),
		"CROSSFADE_MQTT_ENABLED=false",
		"CROSSFADE_BRIDGE_INSTANCE=bench",
		// Tenants are wished to be on JetStream as well; this spares the first
		// messages the wait until the instance has read that.
		"CROSSFADE_BRIDGE_DEFAULT_STAGE=jetstream",
		"CROSSFADE_PIPELINE_BATCH_SIZE="+strconv.Itoa(b.BatchSize),
		"CROSSFADE_PIPELINE_WORKERS="+strconv.Itoa(b.Workers),
		"CROSSFADE_DATABASE_MAX_CONNS="+strconv.Itoa(b.Workers+8),
		"CROSSFADE_HTTP_LISTEN=127.0.0.1:0",
		"CROSSFADE_LOG_FORMAT=json",
	)
}

// stopPatience is much longer than the instance's own limit on stopping.
const stopPatience = time.Minute

// instance is `crossfade run` in a process of its own.
type instance struct {
	*devstack.Program
	address string // of its metrics
	http    *http.Client
}

// startInstance returns as soon as the instance says that it takes messages in,
// since the measurement begins there. program is the path of crossfade, "" for
// this one.
func startInstance(ctx context.Context, program string, env []string) (*instance, error) {
	address, said := make(chan string, 1), false
	child, err := devstack.StartProgram(ctx, devstack.ProgramOptions{
		Name: "crossfade run", Path: program, Args: []string{"run"}, Env: env,
		Line: func(text string) {
			var line struct{ Msg, Listen string }
			if !said && json.Unmarshal([]byte(text), &line) == nil && line.Msg == "running" {
				said = true
				address <- line.Listen
			}
		},
	})
	if err != nil {
		return nil, err
	}
	in := &instance{Program: child, http: &http.Client{Transport: &http.Transport{}}}
	select {
	case in.address = <-address:
		return in, nil
	case <-in.Done():
		return nil, in.Err()
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("crossfade run does not say that it is running: %w", context.Cause(ctx)), in.stop())
	}
}

// awaitWritten waits until the instance has committed so many messages. It asks
// often only when that is near: every answer costs the instance a millisecond.
func (in *instance) awaitWritten(ctx context.Context, messages int) error {
	began := time.Now()
	for {
		s, err := scrapeInstance(ctx, in.http, in.address)
		switch {
		case err != nil:
			return err
		case s.written >= messages:
			return nil
		case s.written+s.quarantined+s.duplicates >= messages:
			return fmt.Errorf("%w: of %d messages %d were written, %d quarantined, %d duplicates", ErrNotReconciled, messages, s.written, s.quarantined, s.duplicates)
		}
		pause := 100 * time.Millisecond
		if s.written > 0 {
			left := time.Duration(float64(time.Since(began)) * float64(messages-s.written) / float64(s.written))
			pause = min(max(left/2, 2*time.Millisecond), pause)
		}
		select {
		case <-time.After(pause):
		case <-in.Done():
			// Why it has ended, stop says.
			return fmt.Errorf("%d of %d messages are written, and the instance is gone", s.written, messages)
		case <-ctx.Done():
			return fmt.Errorf("%d of %d messages are written: %w", s.written, messages, context.Cause(ctx))
		}
	}
}

// look adds what the instance itself has measured.
func (in *instance) look(ctx context.Context, m *Measure) error {
	s, err := scrapeInstance(ctx, in.http, in.address)
	if err != nil {
		return err
	}
	m.P50, m.P99 = s.latency.quantile(.5), s.latency.quantile(.99)
	m.PeakBytes, err = peakMemory(in.PID())
	return err
}

// stop has the instance end in order; that it has ended before, or does not end
// well, is an error.
func (in *instance) stop() error {
	in.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeoutCause(context.Background(), stopPatience, fmt.Errorf("it had %v", stopPatience))
	defer cancel()
	return in.Stop(ctx)
}
