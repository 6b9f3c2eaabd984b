package devstack_test

import (
	"context"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestMain(m *testing.M) {
	runner := devstack.Main(m)
	if os.Getenv(parentVariable) != "" {
		beParent()
	}
	goleak.VerifyTestMain(runner)
}

// deadline bounds every step of a test; it is reached only when something hangs.
const deadline = 60 * time.Second

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBeGone(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there after Close (%v)", dir, err)
	}
}
