package bridge_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/bridge/sourcetest"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestMain(m *testing.M) {
	runBridgeChild()
	goleak.VerifyTestMain(devstack.Main(m), sourcetest.LeftByProxy())
}
