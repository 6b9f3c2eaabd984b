package jetstream_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/crossfade-io/crossfade/jetstream"
)

// denyRoutes lets the user publish everything but what is denied.
func denyRoutes(subjects ...string) func(*server.Options) {
	return func(o *server.Options) {
		o.Users = []*server.User{{Username: "crossfade", Password: goodPassword,
			Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: subjects}}}}
	}
}

// TestDeniedTenantHoldsNobodyUp: the server never answers what it does not permit, and
// nobody waits for that answer (P6).
func TestDeniedTenantHoldsNobodyUp(t *testing.T) {
	_, c := login{guard: denyRoutes("routes.denied"), secrets: []string{goodPassword},
		config: func(c *jetstream.Config) { c.User, c.Password = "crossfade", goodPassword }}.connect(t)
	c.awaitHealth()
	p := routePublisher(t, c.Conn, func(c *jetstream.RoutesConfig) { c.AckTimeout, c.RetryBase = 20*time.Second, time.Second })
	publishAll(t, p, routeMessages("denied.not", 1, 1)) // makes the stream
	outcomes := p.Publish(testContext(t), slices.Concat(routeMessages("denied", 300, 2), routeMessages("t2", 20, 3)))
	for i, o := range outcomes[:600] {
		first := i < 300
		if o.Stored || first != (o.Err != nil) || first && !strings.Contains(o.Err.Error(), "grant") {
			t.Errorf("denied message %d: %+v, want an error that tells the remedy for a device's first", i, o)
		}
	}
	for i, o := range outcomes[600:] {
		if !o.Stored {
			t.Errorf("message %d of the other tenant: %+v", i, o)
		}
	}
	if got := p.Resting(); !slices.Equal(got, []string{"denied"}) {
		t.Errorf("%v rest, want the denied tenant", got)
	}
	if n := strings.Count(c.logged.String(), "NATS connection error"); n != 0 {
		t.Errorf("the log has %d lines of what the publisher tells once", n)
	}
}
