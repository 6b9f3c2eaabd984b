package process_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// overheard counts the statements that look something up, or register devices, on all
// connections, and those that would wait for a lock as long as any.
type overheard struct{ devices, routes, plans, provisions, patient atomic.Int32 }

type overheardConn struct {
	net.Conn
	*overheard
	brief bool // the transaction waits briefly
}

func (o *overheard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	return &overheardConn{Conn: c, overheard: o}, err
}

func (c *overheardConn) Write(p []byte) (int, error) {
	switch lower := bytes.ToLower(p); {
	case bytes.Contains(lower, []byte("lock_timeout = 100")):
		c.brief = true
	case bytes.Contains(lower, []byte("begin")), bytes.Contains(lower, []byte("commit")), bytes.Contains(lower, []byte("rollback")):
		c.brief = false
	}
	for text, n := range map[string]*atomic.Int32{"FROM device_registry AS r\n  JOIN unnest": &c.devices, "FROM message_routes": &c.routes, "INSERT INTO device_registry": &c.provisions,
		"ORDER BY subscription_id\n   FOR NO KEY UPDATE": &c.plans} {
		times := int32(bytes.Count(p, []byte(text)))
		if n.Add(times); (n == &c.devices || n == &c.plans) && !c.brief {
			c.patient.Add(times)
		}
	}
	return c.Conn.Write(p)
}

// want checks how often was asked since the last time: for routes, which are believed
// for some seconds only, at most that often.
func (o *overheard) want(t *testing.T, what string, devices, routes, provisions int32) {
	t.Helper()
	if d, r, p := o.devices.Swap(0), o.routes.Swap(0), o.provisions.Swap(0); d != devices || r > routes || p != provisions {
		t.Errorf("%s: %d look-ups of devices, %d of routes and %d registrations, want %d, %d and %d", what, d, r, p, devices, routes, provisions)
	}
}

// TestOneQueryForABatch: all that the caches lack is asked for at once, and what they
// have is not asked for.
func TestOneQueryForABatch(t *testing.T) {
	const batch = 1000
	var asked overheard
	r := newRigVia(t, database(t)+"&default_query_exec_mode=describe_exec", asked.dial, func(o *process.Options) {
		o.Workers, o.BatchSize, o.Linger, o.RegistryTTL, o.AutoProvision, o.Routes = 1, batch, time.Second, time.Hour, true, true
	})
	r.Listening(true)
	r.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) SELECT 't' || n % 20, 'n' || n, 's1' FROM generate_series(0, 399) AS n;
		INSERT INTO subscriptions (subscription_id, tenant_id, device_limit) SELECT 's' || n, 't' || n, 10 FROM generate_series(0, 10) AS n`)
	n := 0
	send := func(devices int) {
		for i := range batch {
			n++
			r.deliver(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: fmt.Sprintf("tenant/t%d/device/n%d/telemetry", i%devices%20, i%devices), Body: []byte(good(n))}, nil)
		}
		r.drain()
	}
	send(400)
	asked.want(t, "400 devices that are registered", 1, 1, 0)
	send(400)
	asked.want(t, "the same", 0, 1, 0)
	send(800)
	asked.want(t, "400 more, which are to be registered as far as there is room", 2, 1, 1)
}
