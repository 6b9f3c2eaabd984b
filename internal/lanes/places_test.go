package lanes_test

import (
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/internal/lanes"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestPlacesOfOtherLanesAreForgotten: another instance has gone on from there.
func TestPlacesOfOtherLanesAreForgotten(t *testing.T) {
	p := lanes.NewPlaces()
	for lane := range int16(4) {
		p.Tenants[lane] = fmt.Sprint("t", lane)
		p.Devices[lanes.Tenant{Lane: lane, Tenant: "t"}] = fmt.Sprint("d", lane)
	}
	p.Arguments([]int16{1, 3})
	after, devices := p.Arguments([]int16{0, 1, 2, 3})
	if after[0] != nil || after[2] != nil || *after[1] != "t1" || *after[3] != "t3" {
		t.Errorf("the rings go on after %v", after)
	}
	for i, lane := range devices.Lanes {
		if lane != 1 && lane != 3 || devices.Tenants[i] != "t" || devices.Devices[i] != fmt.Sprint("d", lane) {
			t.Errorf("lane %d goes on after device %s of %s", lane, devices.Devices[i], devices.Tenants[i])
		}
	}
	if len(devices.Lanes) != 2 {
		t.Errorf("%d places, want 2", len(devices.Lanes))
	}
}

// TestPlacesAreBounded: names of devices are of whoever may send.
func TestPlacesAreBounded(t *testing.T) {
	p := lanes.NewPlaces()
	for i := range 50_000 {
		p.Devices[lanes.Tenant{Tenant: fmt.Sprint(i)}] = "d"
		p.Bound()
	}
	if n := len(p.Devices); n > 10_000 {
		t.Errorf("%d places are remembered", n)
	}
}
