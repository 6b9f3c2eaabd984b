package fleet_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m)) }

// deadline is for waits that end as soon as their condition holds.
const deadline = 60 * time.Second
