package fleet_test

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m)) }

// deadline is for waits that end as soon as their condition holds.
const deadline = 60 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("gave up waiting until %s", what)
		case <-tick.C:
		}
	}
}
