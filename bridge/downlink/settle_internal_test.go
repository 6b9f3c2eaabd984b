package downlink

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
)

// refusing is a database whose every transaction ends like one with a row that it
// refuses. It counts them.
type refusing struct{ begun int }

func (d *refusing) Begin(context.Context) (pgx.Tx, error) {
	d.begun++
	return nil, &pgconn.PgError{Code: "P0001", Message: "no"}
}

// TestRefusalsAreBounded: however many outcomes PostgreSQL refuses, a turn makes some
// transactions and no more; they are tried again later, some at a time, none is lost.
func TestRefusalsAreBounded(t *testing.T) {
	s := &Sender{o: Options{FirstRetry: time.Hour, LastRetry: time.Hour}, log: slog.New(slog.DiscardHandler)}
	s.metrics = s.newMetrics(prometheus.NewRegistry())
	const n = 3000
	for i := range n {
		s.unsettled = append(s.unsettled, newOutcome(&row{ID: int64(i), Tenant: "t", Kind: Command}, send, nil))
	}
	turn := func() int {
		db := &refusing{}
		if err := s.settle(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		if len(s.unsettled) != n {
			t.Fatalf("%d outcomes are left", len(s.unsettled))
		}
		return db.begun
	}
	if m := turn(); m > 200 {
		t.Errorf("%d transactions for what is new", m)
	}
	if m := turn(); m != 0 {
		t.Errorf("%d transactions though none is due", m)
	}
	for i := range s.unsettled {
		s.unsettled[i].due = time.Now().Add(-time.Minute)
	}
	if m := turn(); m > 100 {
		t.Errorf("%d transactions for what is due again", m)
	}
	again := 0
	for _, o := range s.unsettled {
		if o.refusals > 1 {
			again++
		}
	}
	if again != 50 {
		t.Errorf("%d were tried again", again)
	}
}
