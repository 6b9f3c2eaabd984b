package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

func routePublisher(t testing.TB, conn *jetstream.Conn, change func(*jetstream.RoutesConfig)) *jetstream.RoutePublisher {
	t.Helper()
	cfg := jetstream.DefaultRoutesConfig()
	cfg.RetryBase = 10 * time.Millisecond
	if change != nil {
		change(&cfg)
	}
	p, err := jetstream.NewRoutePublisher(conn, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// routeMessages are n messages of each device, as the outbox gives them.
func routeMessages(tenant string, devices, n int) []jetstream.RouteMessage {
	var list []jetstream.RouteMessage
	for i := range n {
		for d := range devices {
			list = append(list, jetstream.RouteMessage{Tenant: tenant, Key: fmt.Sprintf("%s/d%d", tenant, d),
				ID: fmt.Sprintf("%s-%d-%d", tenant, d, i), Body: fmt.Appendf(nil, "%s/d%d %05d", tenant, d, i)})
		}
	}
	return list
}

// publishAll plays the outbox: what is stored or refused goes, the rest is given
// again, until nothing is left. It returns the reasons of what was refused.
func publishAll(t testing.TB, p *jetstream.RoutePublisher, list []jetstream.RouteMessage) (refused []string) {
	t.Helper()
	ctx := testContext(t)
	for len(list) > 0 {
		if !p.AwaitConnected(ctx) {
			t.Fatalf("%d messages are left: %v", len(list), p.Health())
		}
		window := list[:min(len(list), 500)]
		var left []jetstream.RouteMessage
		for i, o := range p.Publish(ctx, window) {
			switch {
			case o.Refused != "":
				refused = append(refused, o.Refused)
			case !o.Stored:
				left = append(left, window[i])
			}
		}
		list = append(left, list[len(window):]...)
	}
	return refused
}

// storedRoutes reads the ROUTES stream from its beginning.
func storedRoutes(t testing.TB, n *devstack.NATS) []*natsjs.RawStreamMsg {
	t.Helper()
	ctx := testContext(t)
	stream, err := direct(t, n).Stream(ctx, "ROUTES")
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var list []*natsjs.RawStreamMsg
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && seq > 0; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	return list
}

// wantOrder fails unless the stream holds each message once, and each device's in order.
func wantOrder(t testing.TB, n *devstack.NATS, want int) {
	t.Helper()
	last := make(map[string]string)
	seen := make(map[string]bool)
	for _, m := range storedRoutes(t, n) {
		id := m.Header.Get(nats.MsgIdHdr)
		device, number, _ := strings.Cut(string(m.Data), " ")
		if seen[id] {
			t.Errorf("%s is stored twice", id)
		}
		if number <= last[device] && last[device] != "" {
			t.Errorf("%s: %s comes after %s", device, number, last[device])
		}
		seen[id], last[device] = true, number
	}
	if len(seen) != want {
		t.Errorf("%d messages are stored, want %d", len(seen), want)
	}
}

// TestRoutesStreamIsCreated: also after somebody has deleted it.
func TestRoutesStreamIsCreated(t *testing.T) {
	n := devstack.TestNATS(t)
	p := routePublisher(t, connect(t, n, ""), nil)
	publishAll(t, p, routeMessages("t1", 3, 5))
	wantOrder(t, n, 15)
	if err := direct(t, n).DeleteStream(testContext(t), "ROUTES"); err != nil {
		t.Fatal(err)
	}
	publishAll(t, p, routeMessages("t2", 3, 5))
	wantOrder(t, n, 15)
	if err := p.Health(); err != nil {
		t.Errorf("all is published, and health says %v", err)
	}
}

// TestRouteOrderThroughKills kills the server in mid-flow, again and again: nothing
// is lost or doubled, and no device's messages overtake each other.
func TestRouteOrderThroughKills(t *testing.T) {
	n := devstack.TestNATS(t)
	p := routePublisher(t, connect(t, n, ""), nil)
	publishAll(t, p, routeMessages("first", 1, 1))
	done := make(chan error, 1)
	js := direct(t, n)
	go func() { done <- killAndStart(t.Context(), n, js, 1500, 3000, 4500) }()
	publishAll(t, p, routeMessages("t1", 40, 200))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantOrder(t, n, 8001)
}

// killAndStart kills the server each time that the stream has grown to a number of
// messages, and starts it again.
func killAndStart(ctx context.Context, n *devstack.NATS, js natsjs.JetStream, at ...uint64) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(at) > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the stream did not grow to %d messages", at[0])
		case <-tick.C:
		}
		s, err := js.Stream(ctx, "ROUTES")
		if err != nil || s.CachedInfo().State.Msgs < at[0] {
			continue
		}
		if err := errors.Join(n.Kill(), n.Start(ctx)); err != nil {
			return err
		}
		at = at[1:]
	}
	return nil
}

// TestRefusedRouteMessages: what can never be stored says so, and its device's later
// messages go on.
func TestRefusedRouteMessages(t *testing.T) {
	n := devstack.TestNATS(t)
	p := routePublisher(t, connect(t, n, ""), nil)
	list := routeMessages("t1", 2, 3)
	list[2].Body = make([]byte, 2<<20) // above the server's max_payload
	bad := routeMessages("t *", 1, 2)
	refused := publishAll(t, p, slices.Concat(bad, list))
	slices.Sort(refused)
	if len(refused) != 3 || !strings.Contains(refused[0], "2097152 bytes") || !strings.Contains(refused[2], "NATS subject") {
		t.Errorf("refused: %q", refused)
	}
	wantOrder(t, n, 5)
	stream, err := direct(t, n).Stream(testContext(t), "ROUTES")
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.MaxMsgSize = 100
	if _, err := direct(t, n).UpdateStream(testContext(t), config); err != nil {
		t.Fatal(err)
	}
	list = routeMessages("t3", 1, 2)
	list[0].Body = make([]byte, 200)
	if refused := publishAll(t, p, list); len(refused) != 1 {
		t.Errorf("refused by the stream: %q", refused)
	}
	wantOrder(t, n, 6)
}

// TestOneTenantsFailureRestsAlone: the stream is full for one tenant's subject.
func TestOneTenantsFailureRestsAlone(t *testing.T) {
	n := devstack.TestNATS(t)
	_, err := direct(t, n).CreateStream(testContext(t), natsjs.StreamConfig{Name: "ROUTES", Subjects: []string{"routes.>"},
		Discard: natsjs.DiscardNew, DiscardNewPerSubject: true, MaxMsgsPerSubject: 3})
	if err != nil {
		t.Fatal(err)
	}
	p := routePublisher(t, connect(t, n, ""), func(c *jetstream.RoutesConfig) { c.RetryBase = time.Second })
	outcomes := p.Publish(testContext(t), slices.Concat(routeMessages("full", 1, 5), routeMessages("t1", 1, 3)))
	for i, o := range outcomes {
		if want := i != 3 && i != 4; o.Stored != want || o.Refused != "" {
			t.Errorf("message %d: %+v", i, o)
		}
	}
	if outcomes[3].Err == nil || outcomes[4].Err != nil {
		t.Errorf("the message after the failed one was tried, or no error: %v, %v", outcomes[3].Err, outcomes[4].Err)
	}
	if got := p.Resting(); len(got) != 1 || got[0] != "full" {
		t.Errorf("%v rest, want the full tenant", got)
	}
	if p.Health() == nil {
		t.Error("health does not speak of it")
	}
	if err := direct(t, n).DeleteStream(testContext(t), "ROUTES"); err != nil {
		t.Fatal(err)
	}
	publishAll(t, p, routeMessages("full", 1, 5))
	if got := p.Resting(); len(got) != 0 || p.Health() != nil {
		t.Errorf("%v rest, health is %v", got, p.Health())
	}
}

// TestATurnEnds: what was read long ago may be another publisher's by now, and is not
// begun any more.
func TestATurnEnds(t *testing.T) {
	n := devstack.TestNATS(t)
	p := routePublisher(t, connect(t, n, ""), func(c *jetstream.RoutesConfig) { c.Turn = 100 * time.Millisecond })
	publishAll(t, p, routeMessages("first", 1, 1))
	list := routeMessages("t1", 1, 50_000) // one after the other: 2 µs each
	outcomes := p.Publish(testContext(t), list)
	if !outcomes[0].Stored || outcomes[len(list)-1] != (jetstream.RouteOutcome{}) {
		t.Errorf("the first message: %+v, the last: %+v", outcomes[0], outcomes[len(list)-1])
	}
}

// TestPublishEndsWithItsContext: soon, and with an answer for what was under way.
func TestPublishEndsWithItsContext(t *testing.T) {
	n := devstack.TestNATS(t)
	p := routePublisher(t, connect(t, n, ""), nil)
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	for i, o := range p.Publish(ctx, routeMessages("t1", 2, 2)) {
		if o != (jetstream.RouteOutcome{}) {
			t.Errorf("message %d after the end: %+v", i, o)
		}
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the loss is noticed", func() bool { return !p.Connected() })
	for i, o := range p.Publish(testContext(t), routeMessages("t1", 2, 2)) {
		if o.Stored || o.Refused != "" {
			t.Errorf("message %d without a server: %+v", i, o)
		}
	}
	short, cancel := context.WithTimeout(testContext(t), 10*time.Millisecond)
	defer cancel()
	if p.AwaitConnected(short) || !errors.Is(short.Err(), context.DeadlineExceeded) {
		t.Error("connected to a dead server")
	}
}

func TestRoutesConfigValidates(t *testing.T) {
	if err := jetstream.DefaultRoutesConfig().Validate(); err != nil {
		t.Error(err)
	}
	for field, change := range map[string]func(*jetstream.RoutesConfig){
		"MaxInFlight": func(c *jetstream.RoutesConfig) { c.MaxInFlight = 0 },
		"AckTimeout":  func(c *jetstream.RoutesConfig) { c.AckTimeout = time.Hour },
		"Turn":        func(c *jetstream.RoutesConfig) { c.Turn = 0 },
		"RetryBase":   func(c *jetstream.RoutesConfig) { c.RetryBase = time.Hour },
		"Replicas":    func(c *jetstream.RoutesConfig) { c.Setup.Replicas = 9 },
	} {
		c := jetstream.DefaultRoutesConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s out of range: %v", field, err)
		}
	}
}
