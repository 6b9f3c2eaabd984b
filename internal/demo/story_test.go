package demo

import (
	"testing"
	"time"
)

func TestStoryOfManyTenants(t *testing.T) {
	tenants := make([]string, 100)
	for _, duration := range []time.Duration{5 * time.Second, time.Minute, time.Hour} {
		for _, chaos := range []bool{false, true} {
			var last time.Duration
			acts := (&story{}).acts(tenants, duration, chaos)
			for _, a := range acts {
				if a.at < last || a.at >= duration {
					t.Errorf("%v, chaos %v: an act at %v after one at %v", duration, chaos, a.at, last)
				}
				last = a.at
			}
			if !chaos && len(acts) != mostWaves+3 {
				t.Errorf("%v: %d acts", duration, len(acts))
			}
		}
	}
}
