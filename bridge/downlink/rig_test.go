package downlink_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crossfade-io/crossfade/bridge/downlink"
	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/migrations"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// rig is a database, a broker, and a device side that hears everything.
type rig struct {
	*testing.T
	url    string
	pool   *pgxpool.Pool
	broker *devstack.Mosquitto

	listening atomic.Int64 // how often the devices have subscribed

	mu    sync.Mutex
	heard []*paho.Publish
}

func newRig(t *testing.T, extra ...string) *rig {
	t.Parallel() // most of it is waiting
	t.Helper()
	broker, err := devstack.StartMosquitto(t.Context(), devstack.MosquittoOptions{Extra: append([]string{"max_queued_messages 0"}, extra...)})
	must(t, err)
	t.Cleanup(func() { must(t, broker.Close()) })
	r := &rig{T: t, url: devstack.TestOwnedDatabase(t), broker: broker}
	_, err = migrations.Apply(t.Context(), r.url, nil)
	must(t, err)
	r.pool, err = store.NewPool(t.Context(), storeConfig(r.url), "crossfade")
	must(t, err)
	t.Cleanup(r.pool.Close)
	return r
}

func storeConfig(url string) store.Config {
	c := store.DefaultConfig(url)
	c.MaxConns = 4
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) exec(sql string, args ...any) {
	r.Helper()
	if _, err := r.pool.Exec(r.Context(), sql, args...); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
}

func (r *rig) text(sql string, args ...any) string {
	r.Helper()
	var s string
	if err := r.pool.QueryRow(r.Context(), `SELECT coalesce((`+sql+`)::text, '')`, args...).Scan(&s); err != nil {
		r.Fatalf("%s: %v", sql, err)
	}
	return s
}

func (r *rig) becomes(want, sql string, args ...any) {
	r.Helper()
	deadline := time.NewTimer(60 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		got := r.text(sql, args...)
		if got == want {
			return
		}
		select {
		case <-deadline.C:
			r.Fatalf("%s: %q, want %q", sql, got, want)
		case <-tick.C:
		}
	}
}

func (r *rig) config(broker string) legacy_mqtt.Config {
	c := legacy_mqtt.DefaultConfig()
	c.URL, c.ClientID, c.Username, c.Password = broker, "test", r.broker.User(), r.broker.Password()
	c.MinBackoff, c.MaxBackoff = 10*time.Millisecond, 200*time.Millisecond
	return c
}

func (r *rig) options(name string) downlink.Options {
	o := downlink.DefaultOptions()
	o.Pool, o.MQTT, o.ClientID = r.pool, r.config(r.broker.URL()), name
	o.Beat, o.Sweep, o.FirstRetry = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	o.Registry, o.Logger = prometheus.NewRegistry(), slog.New(slog.NewTextHandler(r.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	return o
}

// start runs a sender until the test ends, or stop is called.
func (r *rig) start(o downlink.Options) (s *downlink.Sender, stop func()) {
	r.Helper()
	s, err := downlink.New(o)
	must(r.T, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	stop = func() { cancel(); running.Wait() }
	r.Cleanup(stop)
	return s, stop
}

// listen subscribes as all devices, with a session that outlives the broker's restarts.
func (r *rig) listen(filters ...string) {
	r.Helper()
	u, err := url.Parse(r.broker.URL())
	must(r.T, err)
	var subscriptions []paho.SubscribeOptions
	for _, f := range filters {
		subscriptions = append(subscriptions, paho.SubscribeOptions{Topic: f, QoS: 1, RetainAsPublished: true, RetainHandling: 1})
	}
	subscribed := make(chan error, 100)
	c := autopaho.ClientConfig{
		ServerUrls: []*url.URL{u}, KeepAlive: 20, SessionExpiryInterval: 3600,
		ConnectUsername: r.broker.User(), ConnectPassword: []byte(r.broker.Password()),
		ReconnectBackoff: func(int) time.Duration { return 20 * time.Millisecond },
		OnConnectionUp: func(m *autopaho.ConnectionManager, _ *paho.Connack) {
			_, err := m.Subscribe(context.Background(), &paho.Subscribe{Subscriptions: subscriptions})
			r.listening.Add(1)
			subscribed <- err
		},
		ClientConfig: paho.ClientConfig{ClientID: "devices", OnPublishReceived: []func(paho.PublishReceived) (bool, error){
			func(p paho.PublishReceived) (bool, error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.heard = append(r.heard, p.Packet)
				return true, nil
			},
		}},
	}
	manager, err := autopaho.NewConnection(context.Background(), c)
	must(r.T, err)
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = manager.Disconnect(ctx)
	})
	must(r.T, <-subscribed)
}

func (r *rig) all() []*paho.Publish {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*paho.Publish(nil), r.heard...)
}

// bodies are the payloads on a topic, in the order in which they came.
func (r *rig) bodies(topic string) (list []string) {
	for _, p := range r.all() {
		if p.Topic == topic {
			list = append(list, string(p.Payload))
		}
	}
	return list
}

// shadow is the body of a desired state.
type shadow struct {
	Desired   json.RawMessage
	Version   int64
	Timestamp time.Time
}

// inOrder checks that no desired version came after a newer one, and returns the last
// of each device.
func (r *rig) inOrder() map[string]int64 {
	r.Helper()
	last := make(map[string]int64)
	for _, p := range r.all() {
		device, ok := strings.CutSuffix(p.Topic, "/shadow/desired")
		if !ok || len(p.Payload) == 0 {
			continue
		}
		var s shadow
		must(r.T, json.Unmarshal(p.Payload, &s))
		if s.Version < last[device] {
			r.Fatalf("%s: version %d came after %d", device, s.Version, last[device])
		}
		last[device] = s.Version
	}
	return last
}

func (r *rig) desire(device, state string) {
	r.Helper()
	r.exec(`INSERT INTO device_state (tenant_id, device_id, desired_state) VALUES ('t1', $1, $2::text::jsonb)
	ON CONFLICT (tenant_id, device_id) DO UPDATE SET desired_state = EXCLUDED.desired_state`, device, state)
}

func (r *rig) command(device, id string) {
	r.Helper()
	r.exec(`INSERT INTO device_commands (tenant_id, command_id, device_id, command_type, command_params) VALUES ('t1', $1, $2, 'reboot', '{"hard": true}')`, id, device)
}

func desiredTopic(device string) string  { return "tenant/t1/device/" + device + "/shadow/desired" }
func commandTopic(device string) string  { return "tenant/t1/device/" + device + "/commands" }
func responseTopic(device string) string { return "tenant/t1/device/" + device + "/commands/response" }

// wire is a way to the broker on which what goes towards it can be held up, while
// connections stay.
type wire struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	held  bool
	stuck bool // something waits to go through
	let   *sync.Cond
	conns []net.Conn
	work  sync.WaitGroup
}

func (r *rig) wire() *wire {
	r.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(r.T, err)
	w := &wire{listener: l, target: r.broker.Address()}
	w.let = sync.NewCond(&w.mu)
	w.work.Go(w.accept)
	r.Cleanup(func() {
		_ = l.Close()
		w.drop()
		w.work.Wait()
	})
	return w
}

func (w *wire) url() string { return "mqtt://" + w.listener.Addr().String() }

func (w *wire) hold(held bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held, w.stuck = held, false
	w.let.Broadcast()
}

// drop closes what it carries, with what waits to go through.
func (w *wire) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.held = false
	w.let.Broadcast()
}

// carries reports whether something waits to go through.
func (w *wire) carries() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held && w.stuck
}

func (w *wire) accept() {
	for {
		from, err := w.listener.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", w.target)
		if err != nil {
			_ = from.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, from, to)
		w.mu.Unlock()
		w.work.Go(func() { _, _ = io.Copy(from, to); _ = from.Close() })
		w.work.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				n, err := from.Read(buf)
				w.mu.Lock()
				for w.held {
					w.stuck = n > 0
					w.let.Wait()
				}
				w.mu.Unlock()
				if n > 0 {
					_, _ = to.Write(buf[:n])
				}
				if err != nil {
					_ = to.Close()
					return
				}
			}
		})
	}
}

func numbered(i int) string { return fmt.Sprintf("d%d", i) }
