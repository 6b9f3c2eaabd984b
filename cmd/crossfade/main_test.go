package main

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// beCrossfade makes this test program behave as crossfade itself, for tests that
// start it as a child; or, set to "broken", as one that fails to start. Its name does not begin with CROSSFADE_: the demo keeps such
// settings from its child.
const beCrossfade = "BE_CROSSFADE"

func TestMain(m *testing.M) {
	tests := devstack.Main(m)
	switch os.Getenv(beCrossfade) {
	case "":
	case "broken":
		os.Stderr.WriteString("broken on purpose\n")
		os.Exit(1)
	default:
		main()
	}
	goleak.VerifyTestMain(tests)
}
