package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// The ceilings are taken the way that was found fastest, whatever the pipeline is
// told to do.
const (
	copyConnections = 2
	ceilingBatch    = 2000
)

const copyColumns = `telemetry (time, tenant_id, device_id, site_id, msg_type, seq, metrics)`

// readRows fetches what a run has stored, in the order of time in which it came,
// ready to be written again.
func (b *bench) readRows(ctx context.Context, db *database) error {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	var all bytes.Buffer
	if _, err := conn.Conn().PgConn().CopyTo(ctx, &all, `COPY (SELECT time, tenant_id, device_id, site_id, msg_type, seq, metrics FROM telemetry ORDER BY time) TO STDOUT (FORMAT binary)`); err != nil {
		return fmt.Errorf("read the rows back: %w", err)
	}
	b.rows, err = splitCopy(all.Bytes(), ceilingBatch)
	return err
}

// copyHeader is the length of what comes before the first row of a binary COPY
// without extensions (PostgreSQL manual, "COPY", Binary Format).
const copyHeader = 19

// splitCopy cuts one binary COPY stream into several of so many rows, the last
// of fewer.
func splitCopy(stream []byte, rows int) ([][]byte, error) {
	bad := errors.New("a binary COPY stream ends early")
	if len(stream) < copyHeader {
		return nil, bad
	}
	header, at := stream[:copyHeader:copyHeader], copyHeader
	var streams [][]byte
	from, n := at, 0
	cut := func() {
		if n > 0 {
			one := append(bytes.Clone(header), stream[from:at]...)
			streams = append(streams, append(one, 0xFF, 0xFF))
		}
		from, n = at, 0
	}
	for {
		if at+2 > len(stream) {
			return nil, bad
		}
		fields := int16(binary.BigEndian.Uint16(stream[at:]))
		if fields < 0 {
			cut()
			return streams, nil
		}
		end := at + 2
		for range fields {
			if end+4 > len(stream) {
				return nil, bad
			}
			end += 4 + max(int(int32(binary.BigEndian.Uint32(stream[end:]))), 0)
		}
		at, n = end, n+1
		if n == rows {
			cut()
		}
	}
}

// measureCopy is how fast PostgreSQL takes the rows when nothing is checked or
// remembered: the same rows into the same table, index and partitions, encoded
// beforehand, on two connections.
func (b *bench) measureCopy(ctx context.Context) (m Measure, err error) {
	db, err := b.newDatabase(ctx)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, db.drop()) }()
	conns := make([]*pgx.Conn, copyConnections)
	for i := range conns {
		if conns[i], err = pgx.Connect(ctx, db.url); err != nil {
			return m, err
		}
		defer conns[i].Close(context.WithoutCancel(ctx))
	}
	clock, err := startStopwatch(os.Getpid(), b.postgres.PID(), 0)
	if err != nil {
		return m, err
	}
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for _, conn := range conns {
		group.Go(func() error {
			for i := next.Add(1) - 1; i < int64(len(b.rows)); i = next.Add(1) - 1 {
				if _, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(b.rows[i]), `COPY `+copyColumns+` FROM STDIN (FORMAT binary)`); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return m, err
	}
	return clock.stop(b.Messages)
}

// measurePull is how fast the backlog can be taken and acknowledged, by the same
// source in this process, when nothing is done with it.
func (b *bench) measurePull(ctx context.Context) (m Measure, err error) {
	nats, remove, err := b.startNATS(ctx)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	conn, err := connect(nats)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	cfg := jetstream.DefaultSourceConfig()
	source, err := jetstream.NewSource(conn, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return m, err
	}
	clock, err := startStopwatch(os.Getpid(), 0, nats.PID())
	if err != nil {
		return m, err
	}
	// All that may be in hand fits in, so that delivering never waits.
	incoming := make(chan pipeline.Receipt, cfg.Window*len(cfg.Consumers))
	intake, stop := context.WithCancel(ctx)
	group, intake := errgroup.WithContext(intake)
	group.Go(func() error { return source.Run(intake, func(d pipeline.Delivery) { incoming <- d.Receipt }) })
	group.Go(func() error {
		defer stop()
		if err := acknowledge(intake, incoming, b.Messages); err != nil {
			return err
		}
		if err := conn.Flush(intake); err != nil {
			return err
		}
		m, err = clock.stop(b.Messages)
		return err
	})
	err = group.Wait()
	return m, errors.Join(err, source.Close(context.WithoutCancel(ctx)))
}

// acknowledge acknowledges so many messages, in batches.
func acknowledge(ctx context.Context, incoming <-chan pipeline.Receipt, messages int) error {
	batch := make([]pipeline.Receipt, 0, ceilingBatch)
	for done := 0; done < messages; {
		select {
		case r := <-incoming:
			batch = append(batch, r)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if len(batch) < cap(batch) && done+len(batch) < messages {
			continue
		}
		for _, r := range batch {
			if err := r.Ack(); err != nil {
				return err
			}
		}
		done += len(batch)
		batch = batch[:0]
	}
	return nil
}
