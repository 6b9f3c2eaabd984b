package main

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// beCrossfade makes this test program behave as crossfade itself, for tests that
// start it as a child. Its name does not begin with CROSSFADE_: the demo keeps such
// settings from its child.
const beCrossfade = "BE_CROSSFADE"

func TestMain(m *testing.M) {
	tests := devstack.Main(m)
	if os.Getenv(beCrossfade) != "" {
		main()
	}
	goleak.VerifyTestMain(tests)
}
