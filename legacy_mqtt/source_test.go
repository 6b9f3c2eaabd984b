package legacy_mqtt_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/eclipse/paho.golang/paho"

	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestSharedSubscription: two members of a group divide the messages, and each
// goes to one of them.
func TestSharedSubscription(t *testing.T) {
	e := newEnv(t)
	var members []*running
	for i := range 2 {
		cfg := e.config(t, 100)
		cfg.Group, cfg.ClientID = "ingest", fmt.Sprintf("member-%d", i)
		r := run(t, cfg)
		r.awaitHealthy(t)
		members = append(members, r)
	}
	const messages = 400
	ids := make([]string, messages)
	for i := range ids {
		ids[i] = fmt.Sprintf("m-%d", i)
	}
	e.Publish(t, ids...)

	seen := map[string]int{}
	for range messages {
		var d pipeline.Delivery
		select {
		case d = <-members[0].deliveries:
		case d = <-members[1].deliveries:
		case <-time.After(deadline):
			t.Fatalf("only %d of %d messages arrived", len(seen), messages)
		}
		must(t, d.Receipt.Ack())
		seen[idOf(d)]++
	}
	if len(seen) != messages {
		t.Errorf("%d different messages among %d deliveries", len(seen), messages)
	}
	for i, m := range members {
		if got := m.Stats().Received; got < messages/10 {
			t.Errorf("member %d was given %d of %d messages", i, got, messages)
		}
	}
}

// TestDeliveryFields: topic, path, body, arrival and the user name from the
// configured property reach the pipeline; all three kinds of topic are read.
func TestDeliveryFields(t *testing.T) {
	e := newEnv(t)
	cfg := e.config(t, 10)
	cfg.UsernameProperty = "username"
	r := run(t, cfg)
	r.awaitHealthy(t)
	before := time.Now()
	for _, topic := range []string{deviceTopic, "tenant/t1/device/d1/shadow/reported", "tenant/t1/device/d1/commands/ack"} {
		publish(t, e.broker, 1, topic, paho.UserProperties{{Key: "username", Value: "t1/d1"}}, "one")
		d := r.next(t)
		if d.Topic != topic || d.Path != pipeline.PathMQTT || d.Username != "t1/d1" || d.Subject != "" || idOf(d) != "one" {
			t.Errorf("delivery = %+v", d)
		}
		if at := d.Receipt.Occurred(); at.Before(before) || at.After(time.Now()) {
			t.Errorf("occurred at %s", at)
		}
		must(t, d.Receipt.Ack())
	}
	publish(t, e.broker, 1, deviceTopic, nil, "nobody")
	if d := r.next(t); d.Username != "" {
		t.Errorf("user name %q of a message without one", d.Username)
	}
}

// TestHardLimit: messages that know no Receive Maximum (QoS 0) still do not
// fill the memory: reading stops at the limit and goes on as copies are settled.
func TestHardLimit(t *testing.T) {
	e := newEnv(t)
	cfg := e.config(t, 5)
	cfg.HardLimit = 8
	r := run(t, cfg)
	r.awaitHealthy(t)
	ids := make([]string, 100)
	for i := range ids {
		ids[i] = fmt.Sprintf("m-%d", i)
	}
	publish(t, e.broker, 0, deviceTopic, nil, ids...)
	for i := range ids {
		devstack.Await(t, "the source to fill its hands", func() bool {
			return r.Stats().InHand == int64(min(cfg.HardLimit, len(ids)-i))
		})
		d := r.next(t)
		if i%2 == 0 {
			must(t, d.Receipt.Ack())
		} else {
			must(t, d.Receipt.Release())
		}
	}
	s := r.Stats()
	if s.Received != 100 || s.Acked != 50 || s.Released != 50 || s.InHand != 0 || s.AckErrors != 0 || s.Connections != 1 {
		t.Errorf("stats = %+v", s)
	}
}

// TestFullHandsDoNotHoldUpReconnect: at the hard limit paho's handler waits. A
// connection that is lost meanwhile must be replaced all the same.
func TestFullHandsDoNotHoldUpReconnect(t *testing.T) {
	one := int64(len(deviceTopic) + len(`{"id":"0"}`))
	for name, limit := range map[string]func(*legacy_mqtt.Config){
		"by number": func(c *legacy_mqtt.Config) { c.HardLimit = 4 },
		"by bytes":  func(c *legacy_mqtt.Config) { c.WindowBytes, c.KeepAlive = 4*one, time.Second }, // who does not read notices no loss
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			cfg := e.config(t, 4)
			limit(&cfg)
			r := run(t, cfg)
			r.awaitHealthy(t)
			publish(t, e.broker, 0, deviceTopic, nil, "0", "1", "2", "3", "4", "5", "6", "7")
			devstack.Await(t, "full hands", func() bool { return r.Stats().InHand == 4 })
			e.Cut(t)
			devstack.Await(t, "the loss to be noticed", func() bool { return r.Health() != nil })
			e.Restore(t)
			r.awaitHealthy(t)
			for range 4 {
				must(t, r.next(t).Receipt.Ack())
			}
			e.Publish(t, "after")
			if d := r.next(t); idOf(d) != "after" {
				t.Errorf("%s came, want the message published after the loss", idOf(d))
			}
		})
	}
}

// TestSettlingStaleCopies: a copy of a lost connection refuses its
// acknowledgement, each copy settles once, and neither upsets the count.
func TestSettlingStaleCopies(t *testing.T) {
	e := newEnv(t)
	r := run(t, e.config(t, 10))
	r.awaitHealthy(t)
	e.Publish(t, "a", "b")
	first, second := r.next(t), r.next(t)
	e.Cut(t)
	devstack.Await(t, "the loss to be noticed", func() bool { return r.Health() != nil })
	if err := first.Receipt.Ack(); !errors.Is(err, legacy_mqtt.ErrConnectionGone) {
		t.Errorf("Ack = %v, want ErrConnectionGone", err)
	}
	if err := second.Receipt.Release(); err != nil {
		t.Errorf("Release = %v: a lost connection has released everything", err)
	}
	e.Restore(t)
	for range 2 {
		d := r.next(t)
		must(t, d.Receipt.Ack())
		if d.Receipt.Ack() == nil || d.Receipt.Release() == nil {
			t.Error("a copy was settled twice")
		}
	}
	if s := r.Stats(); s.InHand != 0 || s.AckErrors != 1 || s.Acked != 2 || s.Connections != 2 {
		t.Errorf("stats = %+v", s)
	}
}

// TestSameClientIDTwice: two sources with one client ID throw each other out.
// Both say so, and neither does it as fast as it can.
func TestSameClientIDTwice(t *testing.T) {
	e := newEnv(t)
	cfg := e.config(t, 10)
	first := run(t, cfg)
	first.awaitHealthy(t)
	second := run(t, cfg)
	for _, r := range []*running{first, second} {
		devstack.Await(t, "Health to name the cause", func() bool {
			err := r.Health()
			return err != nil && strings.Contains(err.Error(), "another client use")
		})
	}
}

// TestWrongPassword: the broker's refusal is named, without the password.
func TestWrongPassword(t *testing.T) {
	e := newEnv(t)
	cfg := e.config(t, 10)
	cfg.Password = "not-the-secret"
	var log devstack.Log
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r := run(t, cfg)
	devstack.Await(t, "Health to name the cause", func() bool {
		err := r.Health()
		return err != nil && strings.Contains(err.Error(), "check Username, Password")
	})
	if strings.Contains(log.String()+r.Health().Error(), cfg.Password) {
		t.Error("the password is in the log or in Health")
	}
}

// TestRunMisuse: a source runs once, and not after Close.
func TestRunMisuse(t *testing.T) {
	e := newEnv(t)
	r := run(t, e.config(t, 10))
	r.awaitHealthy(t)
	deliver := func(pipeline.Delivery) {}
	if r.Run(context.Background(), deliver) == nil {
		t.Error("a second Run succeeded")
	}
	closed := newSource(t, e.config(t, 10))
	must(t, closed.Close(bounded(t)))
	if closed.Run(context.Background(), deliver) == nil {
		t.Error("Run after Close succeeded")
	}
}

// TestCloseWithoutNetwork: a source that never connected can be closed.
func TestCloseWithoutNetwork(t *testing.T) {
	e := newEnv(t)
	e.Cut(t)
	r := run(t, e.config(t, 10))
	devstack.Await(t, "a failed attempt", func() bool {
		err := r.Health()
		return err != nil && strings.Contains(err.Error(), "cannot connect")
	})
	// Closing is the clean-up's work; goleak sees what it leaves behind.
}
