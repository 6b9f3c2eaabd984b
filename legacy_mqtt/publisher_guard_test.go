package legacy_mqtt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

var errNotMine = errors.New("somebody else holds it")

// guardedBy makes a publisher with a client ID of its own that is allowed to publish
// while mine is true, and counts how often it asked.
func guardedBy(t testing.TB, cfg legacy_mqtt.Config, id string, mine *atomic.Bool, asked *atomic.Int32) *legacy_mqtt.Publisher {
	return newPublisherWith(t, cfg, func(o *legacy_mqtt.PublisherOptions) {
		o.Name, o.ClientID = "", id
		o.Guard = func(context.Context) error {
			asked.Add(1)
			if mine.Load() {
				return nil
			}
			return errNotMine
		}
	})
}

func text(topic, payload string) legacy_mqtt.Message {
	return legacy_mqtt.Message{Topic: topic, Payload: []byte(payload)}
}

// TestPublisherGuard: the guard is asked on every connection, before anything is sent
// on it, and its no fails what waits.
func TestPublisherGuard(t *testing.T) {
	e := newEnv(t)
	l := listen(t, e.broker)
	var mine atomic.Bool
	var asked atomic.Int32
	p := guardedBy(t, e.config(t, 1), "exactly-this", &mine, &asked)
	refused := func() {
		t.Helper()
		err := p.Publish(bounded(t), text("a", "forbidden"))
		if !errors.Is(err, legacy_mqtt.ErrUnconfirmed) || !errors.Is(err, errNotMine) {
			t.Errorf("Publish against the guard = %v", err)
		}
		devstack.Await(t, "health to say why", func() bool {
			err := p.Health()
			return err != nil && strings.Contains(err.Error(), "not allowed to publish now: somebody else holds it")
		})
	}
	refused()
	mine.Store(true)
	must(t, p.Publish(bounded(t), text("a", "allowed")))
	before := asked.Load()
	must(t, p.Publish(bounded(t), text("a", "again"))) // on the same connection
	if n := asked.Load(); n != before {
		t.Errorf("the guard was asked %d times on one connection", n-before+1)
	}
	mine.Store(false)
	e.Cut(t)
	e.Restore(t)
	devstack.Await(t, "the guard to be asked about the next connection", func() bool { return asked.Load() > before })
	refused()
	if got := l.bodies(); !slices.Equal(got, []string{"allowed", "again"}) {
		t.Errorf("received %q", got)
	}
	log, err := os.ReadFile(filepath.Join(e.broker.Dir(), "log"))
	must(t, err)
	if !strings.Contains(string(log), " as exactly-this ") {
		t.Error("the broker knows no client exactly-this")
	}
}

// TestPublisherGuardAsksAboutRepeats: what a lost connection has left unconfirmed is not
// sent again without the guard.
func TestPublisherGuardAsksAboutRepeats(t *testing.T) {
	broker := newDeafBroker(t)
	var mine atomic.Bool
	var asked atomic.Int32
	mine.Store(true)
	p := guardedBy(t, broker.config(t), "a", &mine, &asked)
	result := make(chan error, 1)
	go func() { result <- p.Publish(bounded(t), text("a", "once")) }()
	first := broker.accept(t)
	if got := first.publish(t); got != "once" {
		t.Fatalf("received %q", got)
	}
	mine.Store(false)
	must(t, first.Close())
	if left := broker.accept(t).rest(); len(left) > 0 {
		t.Errorf("%q was sent against the guard", left)
	}
	if err := <-result; !errors.Is(err, legacy_mqtt.ErrUnconfirmed) || !errors.Is(err, errNotMine) {
		t.Errorf("Publish = %v", err)
	}
}

// TestPublisherGuardIsBounded: a guard that finds no answer, and one that is still
// asked when the publisher is closed.
func TestPublisherGuardIsBounded(t *testing.T) {
	e := newEnv(t)
	cfg := e.config(t, 1)
	cfg.ConnectTimeout = 50 * time.Millisecond
	late := newPublisherWith(t, cfg, func(o *legacy_mqtt.PublisherOptions) {
		o.Guard = func(ctx context.Context) error { <-ctx.Done(); return nil }
	})
	if err := late.Publish(bounded(t), text("a", "")); !errors.Is(err, legacy_mqtt.ErrUnconfirmed) || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("Publish = %v", err)
	}
	asked := make(chan struct{})
	p := newPublisherWith(t, e.config(t, 1), func(o *legacy_mqtt.PublisherOptions) {
		o.Name = "other"
		o.Guard = func(ctx context.Context) error { close(asked); <-ctx.Done(); return ctx.Err() }
	})
	result := make(chan error, 1)
	go func() { result <- p.Publish(bounded(t), text("a", "")) }()
	<-asked
	must(t, p.Close(bounded(t)))
	if err := <-result; err == nil || !strings.Contains(err.Error(), "the publisher is closed") {
		t.Errorf("Publish = %v", err)
	}
}

// TestEvict: whoever is cut off while it publishes as fast as it can publishes nothing
// after that, although it comes back at once.
func TestEvict(t *testing.T) {
	e := newEnv(t)
	l := listen(t, e.broker)
	for round := range 5 {
		id := fmt.Sprint("holder-", round)
		var mine atomic.Bool
		var asked atomic.Int32
		mine.Store(true)
		holder := guardedBy(t, e.config(t, 1), id, &mine, &asked)
		sent := make(chan error, 1)
		go func() {
			for {
				for _, err := range holder.PublishAll(bounded(t), numbered("n", 0, 500)) {
					if err != nil {
						sent <- err
						return
					}
				}
			}
		}()
		devstack.Await(t, "the holder to publish", func() bool { return slices.Contains(l.bodies(), "499") })
		mine.Store(false)
		must(t, legacy_mqtt.Evict(bounded(t), e.config(t, 1), id))
		successor := newPublisherWith(t, e.config(t, 1), func(o *legacy_mqtt.PublisherOptions) { o.ClientID = "successor" })
		must(t, successor.Publish(bounded(t), text("n", "successor")))
		if err := <-sent; !errors.Is(err, legacy_mqtt.ErrUnconfirmed) || !errors.Is(err, errNotMine) {
			t.Errorf("who was cut off is told %v", err)
		}
		if err := holder.Publish(bounded(t), text("n", "late")); !errors.Is(err, errNotMine) {
			t.Errorf("who was cut off publishes later: %v", err)
		}
		must(t, successor.Publish(bounded(t), text("n", "end")))
		devstack.Await(t, "the end", func() bool { return slices.Contains(l.bodies(), "end") })
		list := l.bodies()
		if after := list[slices.Index(list, "successor"):]; !slices.Equal(after, []string{"successor", "end"}) {
			t.Fatalf("%d messages came after the successor's", len(after)-2)
		}
		must(t, successor.Close(bounded(t)))
		l.mu.Lock()
		l.received = nil
		l.mu.Unlock()
	}
}

// TestEvictFails: what goes wrong is told, without the password.
func TestEvictFails(t *testing.T) {
	e := newEnv(t)
	good := e.config(t, 1)
	must(t, legacy_mqtt.Evict(bounded(t), good, "nobody"))
	wrong := good
	wrong.Password = "not-the-secret"
	away := good
	away.URL = "mqtt://127.0.0.1:1"
	for _, c := range []struct {
		cfg      legacy_mqtt.Config
		id, want string
	}{
		{wrong, "nobody", "check Username, Password"},
		{away, "nobody", "cut the client nobody off at 127.0.0.1:1"},
		{good, "", "the client ID is empty"},
		{legacy_mqtt.Config{}, "nobody", "URL"},
	} {
		err := legacy_mqtt.Evict(bounded(t), c.cfg, c.id)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), wrong.Password) {
			t.Errorf("Evict = %v, want %q", err, c.want)
		}
	}
}

// TestPublishersWithOneClientID: they cut each other off, but more and more slowly, as
// short lives count as failures; health suspects it, and both get through.
func TestPublishersWithOneClientID(t *testing.T) {
	e := newEnv(t)
	l := listen(t, e.broker)
	cfg := e.config(t, 1)
	cfg.MinBackoff, cfg.MaxBackoff = 20*time.Millisecond, 30*time.Second
	var both []*legacy_mqtt.Publisher
	for i := range 2 {
		p := newPublisherWith(t, cfg, func(o *legacy_mqtt.PublisherOptions) { o.ClientID = "the-same" })
		both = append(both, p)
		must(t, p.Publish(bounded(t), text("n", fmt.Sprint("first of ", i))))
	}
	for i, p := range both {
		devstack.Await(t, "the rivalry to be suspected", func() bool {
			err := p.Health()
			return err != nil && strings.Contains(err.Error(), `does another client use the client ID "the-same"`)
		})
		must(t, p.Publish(bounded(t), text("n", fmt.Sprint("last of ", i))))
	}
	devstack.Await(t, "messages of both", func() bool {
		list := l.bodies()
		return slices.Contains(list, "last of 0") && slices.Contains(list, "last of 1")
	})
}

// TestPublisherSendsNothingGivenUp: what a call gave up while the broker did not read
// does not reach it when it does, neither on that connection nor on the next.
func TestPublisherSendsNothingGivenUp(t *testing.T) {
	for name, giveUp := range map[string]func(cancel func(), p *legacy_mqtt.Publisher) error{
		"call ends": func(cancel func(), _ *legacy_mqtt.Publisher) error { cancel(); return nil },
		"close":     func(_ func(), p *legacy_mqtt.Publisher) error { return p.Close(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			broker := newDeafBroker(t)
			p := newPublisherWith(t, broker.config(t), func(*legacy_mqtt.PublisherOptions) {})
			ctx, cancel := context.WithCancel(bounded(t))
			defer cancel()
			const n = 64 // more than the buffers between us take
			messages := make([]legacy_mqtt.Message, n)
			for i := range messages {
				messages[i] = legacy_mqtt.Message{Topic: "n", Payload: append(fmt.Appendf(nil, "%d ", i), make([]byte, 1<<20)...)}
			}
			results := make(chan []error, 1)
			go func() { results <- p.PublishAll(ctx, messages) }()
			c := broker.accept(t)
			if got := c.publish(t); !strings.HasPrefix(got, "0 ") { // so all are on their way
				t.Fatalf("received %.5q", got)
			}
			must(t, giveUp(cancel, p))
			for i, err := range <-results {
				if !errors.Is(err, legacy_mqtt.ErrUnconfirmed) {
					t.Errorf("message %d: %v", i, err)
				}
			}
			for _, got := range c.rest() {
				if strings.HasPrefix(got, fmt.Sprint(n-1)) {
					t.Error("the last message was sent after it had been given up")
				}
			}
			if name == "close" {
				return
			}
			next := make(chan error, 1)
			go func() { next <- p.Publish(bounded(t), text("n", "next")) }()
			c = broker.accept(t)
			if got := c.publish(t); got != "next" {
				t.Errorf("%.5q was sent on the next connection", got)
			}
			must(t, p.Close(bounded(t)))
			<-next
		})
	}
}

// deafBroker accepts connections and sends a CONNACK, and reads only what it is told to.
type deafBroker struct{ net.Listener }

func newDeafBroker(t *testing.T) deafBroker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return deafBroker{l}
}

func (b deafBroker) config(t *testing.T) legacy_mqtt.Config {
	cfg := (&env{broker: &devstack.Mosquitto{}, adjust: func(*legacy_mqtt.Config) {}}).configFor(t, "mqtt://"+b.Addr().String(), 1)
	return cfg
}

// deafConn is the broker's end of a connection.
type deafConn struct{ net.Conn }

func (b deafBroker) accept(t *testing.T) deafConn {
	t.Helper()
	conn, err := b.Accept()
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(deadline)))
	p, err := packets.ReadPacket(conn)
	must(t, err)
	if p.Type != packets.CONNECT {
		t.Fatalf("a connection begins with %s", p.PacketType())
	}
	var answer bytes.Buffer
	_, err = (&packets.Connack{Properties: &packets.Properties{}}).WriteTo(&answer)
	must(t, err)
	_, err = conn.Write(answer.Bytes())
	must(t, err)
	return deafConn{conn}
}

// publish reads the payload of the next PUBLISH.
func (c deafConn) publish(t *testing.T) string {
	t.Helper()
	p, err := packets.ReadPacket(c)
	must(t, err)
	publish, ok := p.Content.(*packets.Publish)
	if !ok {
		t.Fatalf("received %s", p.PacketType())
	}
	return string(publish.Payload)
}

// rest reads what is published until the connection ends.
func (c deafConn) rest() (list []string) {
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			return list
		}
		if publish, ok := p.Content.(*packets.Publish); ok {
			list = append(list, string(publish.Payload))
		}
	}
}
