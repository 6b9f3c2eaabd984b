package legacy_mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline"
)

// newPublisher makes a publisher that is closed when the test ends.
func newPublisher(t testing.TB, cfg legacy_mqtt.Config) *legacy_mqtt.Publisher {
	t.Helper()
	return newPublisherWith(t, cfg, func(*legacy_mqtt.PublisherOptions) {})
}

func newPublisherWith(t testing.TB, cfg legacy_mqtt.Config, adjust func(*legacy_mqtt.PublisherOptions)) *legacy_mqtt.Publisher {
	t.Helper()
	o := legacy_mqtt.DefaultPublisherOptions()
	adjust(&o)
	p, err := legacy_mqtt.NewPublisher(cfg, o)
	must(t, err)
	t.Cleanup(func() { must(t, p.Close(bounded(t))) })
	return p
}

// listener is a plain subscriber.
type listener struct {
	mu       sync.Mutex
	received []*paho.Publish
}

// listen subscribes to everything at the broker, in a session that outlives it.
func listen(t testing.TB, broker *devstack.Mosquitto) *listener {
	t.Helper()
	l := &listener{}
	conn, err := net.Dial("tcp", broker.Address())
	must(t, err)
	client := paho.NewClient(paho.ClientConfig{Conn: conn, OnPublishReceived: []func(paho.PublishReceived) (bool, error){
		func(p paho.PublishReceived) (bool, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.received = append(l.received, p.Packet)
			return true, nil
		},
	}})
	_, err = client.Connect(bounded(t), &paho.Connect{
		ClientID: "listener", KeepAlive: 30, CleanStart: true,
		Username: broker.User(), UsernameFlag: true, Password: []byte(broker.Password()), PasswordFlag: true,
	})
	must(t, err)
	_, err = client.Subscribe(bounded(t), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "#", QoS: 1}}})
	must(t, err)
	t.Cleanup(func() { _ = client.Disconnect(&paho.Disconnect{}) })
	return l
}

func (l *listener) bodies() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]string, len(l.received))
	for i, p := range l.received {
		list[i] = string(p.Payload)
	}
	return list
}

func numbered(topic string, from, n int) []legacy_mqtt.Message {
	list := make([]legacy_mqtt.Message, n)
	for i := range list {
		list[i] = legacy_mqtt.Message{Topic: topic, Payload: fmt.Append(nil, from+i)}
	}
	return list
}

func allSent(t testing.TB, results []error) {
	t.Helper()
	for i, err := range results {
		if err != nil {
			t.Fatalf("message %d of %d: %v", i, len(results), err)
		}
	}
}

// TestPublisherProperties: everything that a message has reaches the subscriber, and
// what is retained those who come later.
func TestPublisherProperties(t *testing.T) {
	e := newEnv(t)
	l := listen(t, e.broker)
	p := newPublisher(t, e.config(t, 1))
	if err := p.Health(); err != nil {
		t.Errorf("Health before anything was published = %v", err)
	}
	must(t, p.Publish(bounded(t), legacy_mqtt.Message{
		Topic: "tenant/t1/device/d1/shadow/desired", Payload: []byte(`{"a":1}`), Retain: true, Expiry: 90*time.Second + time.Millisecond,
		ContentType: "application/json", CorrelationData: []byte{0, 1, 2},
		User: []legacy_mqtt.UserProperty{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}},
	}))
	must(t, p.Publish(bounded(t), legacy_mqtt.Message{Topic: "plain"}))
	devstack.Await(t, "both messages", func() bool { return len(l.bodies()) == 2 })
	l.mu.Lock()
	got, plain := l.received[0], l.received[1]
	l.mu.Unlock()
	properties := got.Properties
	if got.Topic != "tenant/t1/device/d1/shadow/desired" || string(got.Payload) != `{"a":1}` || got.QoS != 1 ||
		properties.ContentType != "application/json" || string(properties.CorrelationData) != "\x00\x01\x02" ||
		properties.MessageExpiry == nil || *properties.MessageExpiry != 91 || fmt.Sprint(properties.User) != "[{a 1} {a 2}]" {
		t.Errorf("received %v", got)
	}
	if len(plain.Payload) != 0 || plain.Properties.MessageExpiry != nil || plain.Retain || plain.Properties.ContentType != "" {
		t.Errorf("received %v", plain)
	}
	late := listen(t, e.broker)
	devstack.Await(t, "the retained message", func() bool { return slices.Equal(late.bodies(), []string{`{"a":1}`}) })
}

// TestPublisherPipelines: thousands at a time, in order, never more on the way than the
// broker allows, which would end the connection.
func TestPublisherPipelines(t *testing.T) {
	broker, err := devstack.StartMosquitto(t.Context(), devstack.MosquittoOptions{Extra: []string{"max_inflight_messages 7"}})
	must(t, err)
	t.Cleanup(func() { must(t, broker.Close()) })
	e := &env{broker: broker, adjust: func(*legacy_mqtt.Config) {}}
	l := listen(t, broker)
	p := newPublisher(t, e.configFor(t, broker.URL(), 1))
	const n = 5000
	var callers sync.WaitGroup
	for c := range 2 {
		callers.Go(func() { allSent(t, p.PublishAll(bounded(t), numbered("n", c*n, n))) })
	}
	callers.Wait()
	devstack.Await(t, "all messages", func() bool { return len(l.bodies()) == 2*n })
	next := []int{0, n}
	for _, body := range l.bodies() {
		var i int
		_, err := fmt.Sscan(body, &i)
		must(t, err)
		if i != next[i/n] {
			t.Fatalf("message %d of its call came when %d was due", i, next[i/n])
		}
		next[i/n]++
	}
	log, err := os.ReadFile(filepath.Join(broker.Dir(), "log"))
	must(t, err)
	if n := strings.Count(string(log), " as crossfade-test-publisher "); n != 1 {
		t.Errorf("%d connections were needed: was the broker sent more than it allows?", n)
	}
}

// TestPublisherOverRestarts: a broker that is stopped, killed, or cut off in the midst
// of thousands of messages. Each is confirmed in the end; while sessions are kept each
// arrives, and those of a call for the first time in their order.
func TestPublisherOverRestarts(t *testing.T) {
	for _, how := range []string{"stop", "kill", "cut"} {
		t.Run(how, func(t *testing.T) {
			e := newEnv(t)
			cfg := e.config(t, 1000)
			cfg.Filters = []string{"#"}
			r := run(t, cfg)
			r.awaitHealthy(t)
			arrived, next := make(map[int]bool), make(map[int]int)
			cfg.ClientID = "somebody"
			p := newPublisher(t, cfg)
			const batches, each = 20, 500
			results := make(chan []error, batches)
			for b := range batches {
				go func() { results <- p.PublishAll(bounded(t), numbered("n", b*each, each)) }()
			}
			take := func(d pipeline.Delivery) {
				_ = d.Receipt.Ack() // of a lost connection it comes again
				i, err := strconv.Atoi(string(d.Body))
				must(t, err)
				if how != "kill" && !arrived[i] && i != i/each*each+next[i/each] {
					t.Errorf("message %d came when %d of its call had come", i%each, next[i/each])
				}
				if !arrived[i] {
					arrived[i] = true
					next[i/each]++
				}
			}
			for range each {
				take(r.next(t))
			}
			switch how {
			case "stop":
				e.Stop(t)
				e.Start(t)
			case "kill":
				e.Kill(t)
				e.Start(t)
			case "cut":
				e.Cut(t)
				e.Restore(t)
			}
			for range batches {
				for {
					select {
					case list := <-results:
						allSent(t, list)
					case d := <-r.deliveries:
						take(d)
						continue
					}
					break
				}
			}
			must(t, p.Health())
			for how != "kill" && len(arrived) < batches*each {
				take(r.next(t))
			}
		})
	}
}

// TestPublisherRefused: what the access rules forbid is told with the topic and the
// remedy, and holds up nothing else.
func TestPublisherRefused(t *testing.T) {
	rules := filepath.Join(t.TempDir(), "acl")
	must(t, os.WriteFile(rules, []byte("user crossfade\ntopic readwrite good/#\n"), 0o600))
	broker, err := devstack.StartMosquitto(t.Context(), devstack.MosquittoOptions{Extra: []string{"acl_file " + rules, "max_packet_size 2000"}})
	must(t, err)
	t.Cleanup(func() { must(t, broker.Close()) })
	e := &env{broker: broker, adjust: func(*legacy_mqtt.Config) {}}
	p := newPublisher(t, e.configFor(t, broker.URL(), 1))
	results := p.PublishAll(bounded(t), []legacy_mqtt.Message{
		{Topic: "good/nobody/listens"},
		{Topic: "bad/topic", Payload: []byte("x")},
		{Topic: "good/large", Payload: make([]byte, 3000)},
		{Topic: "good/+/wildcard"},
		{Topic: "good/expiry", Expiry: -time.Second},
		{Topic: "good/end"},
	})
	var refused *legacy_mqtt.RefusedError
	if !errors.As(results[1], &refused) || refused.Topic != "bad/topic" || refused.Code != 0x87 ||
		!strings.Contains(results[1].Error(), "allow the user crossfade to write") {
		t.Errorf("against the rules: %v", results[1])
	}
	for i, want := range map[int]string{2: "good/large: its 30", 3: `"good/+/wildcard" is no topic`, 4: "good/expiry: an expiry of -1s"} {
		if results[i] == nil || !strings.Contains(results[i].Error(), want) {
			t.Errorf("message %d: %v, want %q", i, results[i], want)
		}
	}
	if results[0] != nil || results[5] != nil {
		t.Errorf("what is allowed: %v, %v", results[0], results[5])
	}
	for _, err := range results {
		if err != nil && strings.Contains(err.Error(), broker.Password()) {
			t.Error("an error holds the password")
		}
	}
}

// TestPublisherTakenOver: another client takes the publisher's ID. It comes back, and
// what is published meanwhile is sent.
func TestPublisherTakenOver(t *testing.T) {
	e := newEnv(t)
	p := newPublisher(t, e.config(t, 1))
	must(t, p.Publish(bounded(t), legacy_mqtt.Message{Topic: "a"}))
	for range 3 {
		thief(t, e.broker, "crossfade-test-publisher")
		must(t, p.Publish(bounded(t), legacy_mqtt.Message{Topic: "a"}))
	}
}

// thief connects once under a client ID and goes away.
func thief(t testing.TB, broker *devstack.Mosquitto, id string) {
	t.Helper()
	conn, err := net.Dial("tcp", broker.Address())
	must(t, err)
	client := paho.NewClient(paho.ClientConfig{Conn: conn})
	_, err = client.Connect(bounded(t), &paho.Connect{
		ClientID: id, KeepAlive: 30, CleanStart: true,
		Username: broker.User(), UsernameFlag: true, Password: []byte(broker.Password()), PasswordFlag: true,
	})
	must(t, err)
	must(t, client.Disconnect(&paho.Disconnect{}))
}

// TestPublisherGivesUp: with the broker away a call ends with its context, or when its
// patience is over, and says that nobody knows. What was given up is not sent later.
func TestPublisherGivesUp(t *testing.T) {
	e := newEnv(t)
	l := listen(t, e.broker)
	e.Cut(t)
	p := newPublisherWith(t, e.config(t, 1), func(o *legacy_mqtt.PublisherOptions) { o.Patience = 100 * time.Millisecond })
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Publish(ended, legacy_mqtt.Message{Topic: "a", Payload: []byte("ended")}); !errors.Is(err, legacy_mqtt.ErrUnconfirmed) || !errors.Is(err, context.Canceled) {
		t.Errorf("context ended: %v", err)
	}
	err := p.Publish(bounded(t), legacy_mqtt.Message{Topic: "a", Payload: []byte("impatient")})
	if !errors.Is(err, legacy_mqtt.ErrUnconfirmed) || !strings.Contains(err.Error(), "100ms") || !strings.Contains(err.Error(), "connect") {
		t.Errorf("out of patience: %v", err)
	}
	e.Restore(t)
	devstack.Await(t, "a message to be sent", func() bool {
		return p.Publish(t.Context(), legacy_mqtt.Message{Topic: "a", Payload: []byte("sent")}) == nil
	})
	for _, body := range l.bodies() {
		if body != "sent" {
			t.Errorf("%q was sent after it had been given up", body)
		}
	}
}

// TestPublisherClose: who waits is told, who comes later too, and twice is fine.
func TestPublisherClose(t *testing.T) {
	e := newEnv(t)
	unused := newPublisher(t, e.config(t, 1))
	must(t, unused.Close(bounded(t)))
	e.Cut(t)
	p := newPublisher(t, e.config(t, 1))
	waiting := make(chan error, 1)
	go func() { waiting <- p.Publish(bounded(t), legacy_mqtt.Message{Topic: "a"}) }()
	devstack.Await(t, "an attempt to connect", func() bool { return p.Health() != nil })
	must(t, p.Close(bounded(t)))
	for _, err := range []error{<-waiting, p.Publish(t.Context(), legacy_mqtt.Message{Topic: "a"}), p.Health(), unused.Health()} {
		if err == nil || !strings.Contains(err.Error(), "the publisher is closed") {
			t.Errorf("after Close: %v", err)
		}
	}
}

// TestPublisherWrongPassword: the broker's refusal is named, without the password.
func TestPublisherWrongPassword(t *testing.T) {
	e := newEnv(t)
	cfg := e.config(t, 1)
	cfg.Password = "not-the-secret"
	p := newPublisherWith(t, cfg, func(o *legacy_mqtt.PublisherOptions) { o.Patience = time.Second })
	err := p.Publish(bounded(t), legacy_mqtt.Message{Topic: "a"})
	if err == nil || !strings.Contains(err.Error(), "check Username, Password") || strings.Contains(err.Error(), cfg.Password) {
		t.Errorf("Publish = %v", err)
	}
}

// TestPublisherOptions: what is out of range is named.
func TestPublisherOptions(t *testing.T) {
	cfg := legacy_mqtt.DefaultConfig()
	cfg.URL, cfg.ClientID = "mqtt://localhost", "a"
	for field, spoil := range map[string]func(*legacy_mqtt.PublisherOptions){
		"Name":     func(o *legacy_mqtt.PublisherOptions) { o.Name = "" },
		"ClientID": func(o *legacy_mqtt.PublisherOptions) { o.ClientID = "a\x00" },
		"Window":   func(o *legacy_mqtt.PublisherOptions) { o.Window = 70_000 },
		"Patience": func(o *legacy_mqtt.PublisherOptions) { o.Patience = 0 },
	} {
		o := legacy_mqtt.DefaultPublisherOptions()
		spoil(&o)
		if _, err := legacy_mqtt.NewPublisher(cfg, o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
