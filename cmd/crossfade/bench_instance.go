package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/crossfade-io/crossfade/internal/fleet"
)

// measurePipeline is what everything is about: `crossfade run` on the backlog. The
// time runs from the instance's own word that it is taking messages in (so it
// holds finding its consumers and filling its caches) until the last message is
// committed.
func (b *bench) measurePipeline(ctx context.Context) (m benchMeasure, report fleet.Report, err error) {
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

	in, err := startBenchInstance(ctx, b.program, b.environment(db.url, nats.URL()))
	if err != nil {
		return m, report, err
	}
	clock, err := startBenchClock(in.pid(), b.postgres.PID(), nats.PID())
	if err == nil {
		err = in.awaitWritten(ctx, b.options.Messages)
	}
	if err == nil {
		m, err = clock.stop(b.options.Messages)
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
func (b *bench) environment(database, nats string) []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "CROSSFADE_") && !strings.HasPrefix(e, "PG") && !strings.HasPrefix(e, "DATABASE_URL=") {
			env = append(env, e)
		}
	}
	// As a user and a password, since a URL that holds them is refused.
	scheme, rest, _ := strings.Cut(nats, "://")
	login, host, _ := cutLast(rest, "@")
	user, password, _ := strings.Cut(login, ":")
	batch, workers := b.options.BatchSize, b.options.Workers
	return append(env,
		"CROSSFADE_DATABASE_URL="+database,
		"CROSSFADE_NATS_URL="+scheme+"://"+host,
		"CROSSFADE_NATS_USER="+user,
		"CROSSFADE_NATS_PASSWORD="+password,
		// Twice what the workers hold, so that they never wait for the source.
		"CROSSFADE_NATS_WINDOW="+strconv.Itoa(max(8000, 2*batch*workers)),
		"CROSSFADE_MQTT_ENABLED=false",
		"CROSSFADE_BRIDGE_INSTANCE=bench",
		// Tenants are wished to be on JetStream as well; this spares the first
		// messages the wait until the instance has read that.
		"CROSSFADE_BRIDGE_DEFAULT_STAGE=jetstream",
		"CROSSFADE_PIPELINE_BATCH_SIZE="+strconv.Itoa(batch),
		"CROSSFADE_PIPELINE_WORKERS="+strconv.Itoa(workers),
		"CROSSFADE_DATABASE_MAX_CONNS="+strconv.Itoa(workers+8),
		"CROSSFADE_HTTP_LISTEN=127.0.0.1:0",
		"CROSSFADE_LOG_FORMAT=json",
	)
}

// benchInstance is `crossfade run` in a process of its own.
type benchInstance struct {
	cmd     *exec.Cmd
	exited  chan struct{}
	err     error // how it ended; read after exited
	running chan struct{}
	address string // of its metrics; read after running

	mu  sync.Mutex
	log []string // the last lines of it
}

// startBenchInstance returns once the instance takes messages in.
func startBenchInstance(ctx context.Context, program string, env []string) (*benchInstance, error) {
	in := &benchInstance{cmd: exec.Command(program, "run"), exited: make(chan struct{}), running: make(chan struct{})}
	in.cmd.Env = env
	dieWithParent(in.cmd)
	stderr, err := in.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	go func() {
		// The kernel counts the thread that forked as the parent.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := in.cmd.Start()
		started <- err
		if err == nil {
			in.read(stderr)
			in.err = in.cmd.Wait()
			close(in.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start an instance: %w", err)
	}
	select {
	case <-in.running:
		return in, nil
	case <-in.exited:
		return nil, in.ended()
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("an instance does not start: %w", context.Cause(ctx)), in.stop())
	}
}

// read follows the log until it ends.
func (in *benchInstance) read(r io.Reader) {
	const keep = 20
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		in.mu.Lock()
		in.log = append(in.log[max(0, len(in.log)+1-keep):], lines.Text())
		in.mu.Unlock()
		var line struct{ Msg, Listen string }
		if in.address == "" && json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "running" {
			in.address = line.Listen
			close(in.running)
		}
	}
	// A line too long to read must not leave the instance writing into a full pipe.
	_, _ = io.Copy(io.Discard, r)
}

func (in *benchInstance) pid() int { return in.cmd.Process.Pid }

func (in *benchInstance) ended() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return fmt.Errorf("the instance ended: %v; end of its log:\n  %s", in.err, strings.Join(in.log, "\n  "))
}

// awaitWritten waits until the instance has committed so many messages. It asks
// often only when that is near: every answer costs the instance a millisecond.
func (in *benchInstance) awaitWritten(ctx context.Context, messages int) error {
	began := time.Now()
	for {
		s, err := scrapeInstance(ctx, http.DefaultClient, in.address)
		switch {
		case err != nil:
			return err
		case s.written >= messages:
			return nil
		case s.written+s.quarantined+s.duplicates >= messages:
			return fmt.Errorf("%w: of %d messages %d were written, %d quarantined, %d duplicates", errNo, messages, s.written, s.quarantined, s.duplicates)
		}
		pause := 100 * time.Millisecond
		if s.written > 0 {
			left := time.Duration(float64(time.Since(began)) * float64(messages-s.written) / float64(s.written))
			pause = min(max(left/2, 2*time.Millisecond), pause)
		}
		select {
		case <-time.After(pause):
		case <-in.exited:
			return in.ended()
		case <-ctx.Done():
			return fmt.Errorf("%d of %d messages are written: %w", s.written, messages, context.Cause(ctx))
		}
	}
}

// look adds what the instance itself has measured.
func (in *benchInstance) look(ctx context.Context, m *benchMeasure) error {
	s, err := scrapeInstance(ctx, http.DefaultClient, in.address)
	if err != nil {
		return err
	}
	m.P50, m.P99 = s.latency.quantile(.5), s.latency.quantile(.99)
	m.PeakBytes, err = peakMemory(in.pid())
	return err
}

// stop has the instance end by itself, and kills it where it does not.
func (in *benchInstance) stop() error {
	http.DefaultClient.CloseIdleConnections()
	// It may have ended already, which exited tells.
	_ = in.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-in.exited:
	case <-time.After(time.Minute):
		_ = in.cmd.Process.Kill()
		<-in.exited
		return errors.New("the instance did not stop on SIGTERM and was killed")
	}
	if in.err != nil {
		return in.ended()
	}
	return nil
}
