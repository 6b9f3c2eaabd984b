package control

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestMain(m *testing.M) {
	runChild()
	goleak.VerifyTestMain(devstack.Main(m))
}
