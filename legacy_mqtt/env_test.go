package legacy_mqtt_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/sourcetest"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m), sourcetest.LeftByProxy()) }

const (
	deviceTopic = "tenant/t1/device/d1/telemetry"
	deadline    = 60 * time.Second
)

// env is a broker of the test's own behind a network that can be cut.
type env struct {
	broker  *devstack.Mosquitto
	network *sourcetest.Network
	// adjust changes the configuration of the sources that New makes.
	adjust func(*legacy_mqtt.Config)
}

func newEnv(t testing.TB) *env {
	t.Helper()
	broker := devstack.TestMosquitto(t)
	return &env{broker: broker, network: sourcetest.NewNetwork(t, broker.Address()), adjust: func(*legacy_mqtt.Config) {}}
}

// config is for a source that reaches the broker through the network.
func (e *env) config(t testing.TB, window int) legacy_mqtt.Config {
	return e.configFor(t, "mqtt://"+e.network.Addr(), window)
}

func (e *env) configFor(t testing.TB, url string, window int) legacy_mqtt.Config {
	cfg := legacy_mqtt.DefaultConfig()
	cfg.URL = url
	cfg.Username, cfg.Password = e.broker.User(), e.broker.Password()
	cfg.ClientID = "crossfade-test"
	cfg.Window = window
	cfg.MinBackoff, cfg.MaxBackoff = 10*time.Millisecond, 200*time.Millisecond
	cfg.ReleaseDelay = 50 * time.Millisecond
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	e.adjust(&cfg)
	return cfg
}

func (e *env) New(t *testing.T, window int) bridge.Source {
	t.Helper()
	return newSource(t, e.config(t, window))
}

func newSource(t testing.TB, cfg legacy_mqtt.Config) *legacy_mqtt.Source {
	t.Helper()
	s, err := legacy_mqtt.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (e *env) Publish(t *testing.T, ids ...string) {
	t.Helper()
	publish(t, e.broker, 1, deviceTopic, nil, ids...)
}

func (e *env) ID(d pipeline.Delivery) string { return idOf(d) }

func (e *env) Cut(t *testing.T)     { e.network.Cut(t) }
func (e *env) Restore(t *testing.T) { e.network.Restore(t) }

func (e *env) Stop(t *testing.T) {
	t.Helper()
	must(t, e.broker.Stop(bounded(t)))
}

func (e *env) Start(t *testing.T) {
	t.Helper()
	must(t, e.broker.Start(bounded(t)))
}

func (e *env) Kill(t *testing.T) {
	t.Helper()
	must(t, e.broker.Kill())
}

type body struct {
	ID string `json:"id"`
}

func idOf(d pipeline.Delivery) string {
	var b body
	if err := json.Unmarshal(d.Body, &b); err != nil {
		return "unreadable body: " + string(d.Body)
	}
	return b.ID
}

// publish sends one message for each ID straight to the broker, several at a
// time but through one connection.
func publish(t testing.TB, broker *devstack.Mosquitto, qos byte, topic string, user paho.UserProperties, ids ...string) {
	t.Helper()
	client := dialPublisher(t, broker)
	defer func() { _ = client.Disconnect(&paho.Disconnect{}) }()
	next := make(chan string)
	failed := make(chan error, len(ids))
	var senders sync.WaitGroup
	for range min(16, len(ids)) {
		senders.Go(func() {
			for id := range next {
				payload, _ := json.Marshal(body{id})
				_, err := client.Publish(context.Background(), &paho.Publish{
					Topic: topic, QoS: qos, Payload: payload, Properties: &paho.PublishProperties{User: user},
				})
				if err != nil {
					failed <- err
				}
			}
		})
	}
	for _, id := range ids {
		next <- id
	}
	close(next)
	senders.Wait()
	close(failed)
	var errs []error
	for err := range failed {
		errs = append(errs, err)
	}
	if qos == 0 {
		// Its PUBACK says that the broker has read all that came before;
		// closing the connection earlier could take some of it away.
		_, err := client.Publish(context.Background(), &paho.Publish{Topic: "barrier", QoS: 1})
		errs = append(errs, err)
	}
	must(t, errors.Join(errs...))
}

func dialPublisher(t testing.TB, broker *devstack.Mosquitto) *paho.Client {
	t.Helper()
	conn, err := net.Dial("tcp", broker.Address())
	must(t, err)
	client := paho.NewClient(paho.ClientConfig{Conn: conn})
	_, err = client.Connect(bounded(t), &paho.Connect{
		ClientID: "publisher-" + time.Now().Format("150405.000000000"), KeepAlive: 30, CleanStart: true,
		Username: broker.User(), UsernameFlag: true, Password: []byte(broker.Password()), PasswordFlag: true,
	})
	must(t, err)
	return client
}

// running is a source under test with what it has delivered.
type running struct {
	*legacy_mqtt.Source
	deliveries chan pipeline.Delivery
	end        func() // ends Run and closes; the test's end does so anyway
}

// run runs a source until the test ends.
func run(t testing.TB, cfg legacy_mqtt.Config) *running {
	t.Helper()
	r := &running{Source: newSource(t, cfg), deliveries: make(chan pipeline.Delivery, 100_000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, func(d pipeline.Delivery) { r.deliveries <- d }) }()
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		ctx, release := context.WithTimeout(context.Background(), deadline)
		defer release()
		must(t, r.Close(ctx))
	})
	t.Cleanup(r.end)
	return r
}

func (r *running) awaitHealthy(t testing.TB) {
	t.Helper()
	devstack.Await(t, "the source to be healthy", func() bool { return r.Health() == nil })
}

// next returns the next delivery.
func (r *running) next(t testing.TB) pipeline.Delivery {
	t.Helper()
	select {
	case d := <-r.deliveries:
		return d
	case <-time.After(deadline):
		t.Fatalf("nothing was delivered; health: %v", r.Health())
		panic("unreachable")
	}
}

// bounded outlives t's own context, which ends before its clean-up.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
