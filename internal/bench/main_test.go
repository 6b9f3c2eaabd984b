package bench

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// crossfade is the path of the program, built for these tests.
var crossfade string

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.MainWithCrossfade(m, &crossfade)) }
