package rollout

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestMain(m *testing.M) {
	tests := devstack.Main(m)
	runChild()
	goleak.VerifyTestMain(tests)
}
