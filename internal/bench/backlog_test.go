package bench

import (
	"testing"
	"time"
)

// TestBacklogFits: no subject gets more than the stream keeps of one, and the
// record knows every message once.
func TestBacklogFits(t *testing.T) {
	for _, c := range []struct{ messages, devices int }{{1000, 20}, {300_000, 1000}, {300_000, 999}, {1_234_567, 1000}} {
		b := newBacklog(c.messages, c.devices, time.Now())
		perTenant := map[string]int{}
		for i := range b.messages {
			d, _ := b.message(i)
			perTenant[d.Tenant]++
		}
		for tenant, n := range perTenant {
			if n > tenantLimit {
				t.Errorf("%d messages of %d devices: %d are %s's", c.messages, c.devices, n, tenant)
			}
		}
		if counts := b.record.Counts(); counts.Attempted != int64(c.messages) || counts.Acked != int64(c.messages) || counts.Unrouted != 0 {
			t.Errorf("%d messages are recorded as %+v", c.messages, counts)
		}
		if len(perTenant) != len(b.tenants()) || len(perTenant) < 3 {
			t.Errorf("%d messages are of %d tenants, tenants() names %d", c.messages, len(perTenant), len(b.tenants()))
		}
	}
}
