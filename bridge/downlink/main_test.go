package downlink_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestMain(m *testing.M) {
	runSenderChild()
	goleak.VerifyTestMain(devstack.Main(m))
}
