package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/internal/fleet"
)

func configFor(m *devstack.Mosquitto) fleet.Config {
	cfg := fleet.DefaultConfig()
	cfg.BrokerURL, cfg.User, cfg.Password = m.URL(), m.User(), m.Password()
	cfg.DrainTimeout = deadline
	return cfg
}

// subscriber counts every message, through restarts of the broker.
type subscriber struct {
	mu     sync.Mutex
	copies map[string]map[int64]int // by tenant/device and seq
	shadow map[string]int64         // highest version
	wrong  []string                 // first arrivals out of order
	last   map[string]int64
}

func subscribe(t *testing.T, m *devstack.Mosquitto) *subscriber {
	t.Helper()
	s := &subscriber{copies: map[string]map[int64]int{}, shadow: map[string]int64{}, last: map[string]int64{}}
	u, err := url.Parse(m.URL())
	if err != nil {
		t.Fatal(err)
	}
	subscribed := make(chan error, 1)
	cm, err := autopaho.NewConnection(context.Background(), autopaho.ClientConfig{
		ServerUrls: []*url.URL{u}, KeepAlive: 20, SessionExpiryInterval: 3600,
		ConnectUsername: m.User(), ConnectPassword: []byte(m.Password()),
		ReconnectBackoff: func(int) time.Duration { return 20 * time.Millisecond },
		OnConnectionUp: func(cm *autopaho.ConnectionManager, ack *paho.Connack) {
			if ack.SessionPresent {
				return
			}
			_, err := cm.Subscribe(context.Background(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "tenant/#", QoS: 1}}})
			select {
			case subscribed <- err:
			default: // after the first time: a session that did not survive shows as lost messages
			}
		},
		ClientConfig: paho.ClientConfig{
			ClientID: "counter",
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
				s.take(p.Packet.Topic, p.Packet.Payload)
				return true, nil
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if err := cm.Disconnect(ctx); err != nil {
			t.Errorf("disconnect the subscriber: %v", err)
		}
		<-cm.Done()
	})
	select {
	case err := <-subscribed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(deadline):
		t.Fatal("could not subscribe")
	}
	return s
}

func (s *subscriber) take(topic string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	level := strings.Split(topic, "/")
	device := level[1] + "/" + level[3]
	var p struct{ Seq, Version json.Number }
	if level[4] == "shadow" {
		var v struct{ Version int64 }
		if json.Unmarshal(body, &v) == nil {
			s.shadow[device] = max(s.shadow[device], v.Version)
		}
		return
	}
	if err := json.Unmarshal(body, &struct {
		Seq *json.Number `json:"seq"`
	}{&p.Seq}); err != nil {
		s.wrong = append(s.wrong, "not JSON: "+string(body))
		return
	}
	seq, err := p.Seq.Int64()
	if err != nil {
		s.wrong = append(s.wrong, "no seq: "+string(body))
		return
	}
	if s.copies[device] == nil {
		s.copies[device] = map[int64]int{}
	}
	if s.copies[device][seq]++; s.copies[device][seq] == 1 {
		if seq != s.last[device]+1 {
			s.wrong = append(s.wrong, device+": gap or disorder before "+p.Seq.String())
		}
		s.last[device] = seq
	}
}

// distinct is the number of different messages seen.
func (s *subscriber) distinct() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seqs := range s.copies {
		n += int64(len(seqs))
	}
	return n
}

func start(t *testing.T, ctx context.Context, cfg fleet.Config) (*fleet.Fleet, chan error) {
	t.Helper()
	f, err := fleet.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return f, done
}

func finish(t *testing.T, done chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(2 * deadline):
		t.Fatal("Run did not return")
		return nil
	}
}

// What is acknowledged arrives, in each device's order, though the broker is
// stopped and started twice meanwhile.
func TestEverythingAcknowledgedArrives(t *testing.T) {
	m := devstack.TestMosquitto(t)
	sub := subscribe(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cfg := configFor(m)
	cfg.Devices, cfg.Connections, cfg.Rate, cfg.Shares.Shadow = 20, 5, 0, 0.05
	f, done := start(t, ctx, cfg)
	acked := func() int64 { return f.Record().Counts().Acked }

	for round := range 2 {
		before := acked()
		devstack.Await(t, "messages flow", func() bool { return acked() >= before+2000 })
		if err := m.Stop(ctx); err != nil {
			t.Fatalf("round %d: stop the broker: %v", round, err)
		}
		devstack.Await(t, "the fleet notices", func() bool { open, _ := f.Connected(); return open == 0 })
		if err := m.Start(ctx); err != nil {
			t.Fatalf("round %d: start the broker: %v", round, err)
		}
	}
	before := acked()
	devstack.Await(t, "messages flow again", func() bool { return acked() >= before+2000 })
	cancel()
	if err := finish(t, done); err != nil {
		t.Fatal(err)
	}

	c := f.Record().Counts()
	if c.Attempted != c.Acked || c.Unrouted != 0 || c.Refused != 0 {
		t.Errorf("a polite end leaves nothing uncertain, unrouted or refused: %+v", c)
	}
	if c.Repeated == 0 {
		t.Error("nothing was repeated: the restarts proved nothing")
	}
	devstack.Await(t, "the subscriber has everything", func() bool { return sub.distinct() >= c.Acked })
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if len(sub.wrong) > 0 {
		t.Errorf("%d surprises: %.3q", len(sub.wrong), sub.wrong)
	}
	if c.Shadow == 0 || len(sub.shadow) == 0 {
		t.Error("no shadow report")
	}
	t.Logf("%+v", c)
}

func TestPerDeviceEndsTheRun(t *testing.T) {
	m := devstack.TestMosquitto(t)
	sub := subscribe(t, m)
	cfg := configFor(m)
	cfg.Devices, cfg.PerDevice, cfg.Rate = 7, 50, 0
	f, done := start(t, t.Context(), cfg)
	if err := finish(t, done); err != nil {
		t.Fatal(err)
	}
	if c := f.Record().Counts(); c.Attempted != 350 || c.Acked != 350 || c.Uncertain() != 0 {
		t.Errorf("%+v, want 350 acknowledged", c)
	}
	devstack.Await(t, "all have arrived", func() bool { return sub.distinct() == 350 })
	if err := f.Run(t.Context()); !errors.Is(err, fleet.ErrStarted) {
		t.Errorf("a second Run: %v", err)
	}

	// A second fleet goes on where the first one ended.
	cfg.Record, cfg.PerDevice = f.Record(), 60
	f, done = start(t, t.Context(), cfg)
	if err := finish(t, done); err != nil {
		t.Fatal(err)
	}
	if c := f.Record().Counts(); c.Acked != 420 {
		t.Errorf("%+v, want 420 acknowledged after going on", c)
	}
	devstack.Await(t, "all have arrived", func() bool { return sub.distinct() == 420 })
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if len(sub.wrong) > 0 {
		t.Errorf("%.3q", sub.wrong)
	}
}

func TestNobodyListens(t *testing.T) {
	m := devstack.TestMosquitto(t)
	cfg := configFor(m)
	cfg.Devices, cfg.PerDevice, cfg.Rate = 3, 10, 0
	f, done := start(t, t.Context(), cfg)
	if err := finish(t, done); err != nil {
		t.Fatal(err)
	}
	if c := f.Record().Counts(); c.Acked != 30 || c.Unrouted != 30 {
		t.Errorf("%+v, want all 30 marked as having reached nobody", c)
	}
}

func TestRefusedLoginIsAnError(t *testing.T) {
	m := devstack.TestMosquitto(t)
	cfg := configFor(m)
	cfg.Password = "wrong-secret"
	_, done := start(t, t.Context(), cfg)
	err := finish(t, done)
	if err == nil || !strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "wrong-secret") {
		t.Errorf("error %v: want one that says what to check, without the secret", err)
	}
}

func TestBrokerThatNeverAnswers(t *testing.T) {
	m := devstack.TestMosquitto(t)
	cfg := configFor(m)
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	var log devstack.Log
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f, done := start(t, ctx, cfg)
	devstack.Await(t, "it says so", func() bool { return strings.Contains(log.String(), "no connection") })
	cancel()
	if err := finish(t, done); err == nil || !strings.Contains(err.Error(), "never reached") {
		t.Errorf("error %v, want one that says that the broker was never reached", err)
	}
	if c := f.Record().Counts(); c != (fleet.Counts{}) {
		t.Errorf("messages without a broker: %+v", c)
	}
	if n := strings.Count(log.String(), "no connection"); n != 1 {
		t.Errorf("one outage was logged %d times", n)
	}
}

// The bounded end: what the broker never acknowledged is uncertain.
func TestDrainIsBounded(t *testing.T) {
	m := devstack.TestMosquitto(t)
	cfg := configFor(m)
	cfg.Devices, cfg.Rate, cfg.DrainTimeout = 5, 0, 50*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f, done := start(t, ctx, cfg)
	devstack.Await(t, "messages flow", func() bool { return f.Record().Counts().Acked > 100 })
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the fleet notices", func() bool { open, _ := f.Connected(); return open == 0 })
	cancel()
	if err := finish(t, done); err != nil {
		t.Errorf("a broker that was there once is no error: %v", err)
	}
	if c := f.Record().Counts(); c.Uncertain() == 0 {
		t.Errorf("%+v: want the messages in flight uncertain", c)
	}
}
