package process

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/pipeline/store"
)

// TestHealthIsNotClearedByAnotherWorker: one worker's success must not hide that
// another cannot write.
func TestHealthIsNotClearedByAnotherWorker(t *testing.T) {
	o := DefaultOptions()
	o.Logger, o.Registry = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	p, err := New(&store.Store{}, o)
	if err != nil {
		t.Fatal(err)
	}
	stuck, fine := p.workers[0], p.workers[1]
	failed, mended, done := make(chan struct{}, 100), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = stuck.retry(context.Background(), 1, func() error {
			select {
			case <-mended:
				return nil
			default:
				failed <- struct{}{}
				return store.ErrUnavailable
			}
		})
	}()
	<-failed
	<-failed // it has come round once, so the first failure is noted
	if err := fine.retry(t.Context(), 1, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := p.Health(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("while one worker is stuck: Health = %v", err)
	}
	close(mended)
	<-done
	if err := p.Health(); err != nil {
		t.Errorf("afterwards: Health = %v", err)
	}
}
