package devstack_test

import (
	"context"
	"net"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/eclipse/paho.golang/paho"
)

// connectMQTT connects with a persistent session and reports whether the
// broker already had it. Messages received go to the channel.
func connectMQTT(t *testing.T, m *devstack.Mosquitto, clientID, password string) (client *paho.Client, known bool, received chan string) {
	t.Helper()
	ctx := testContext(t)
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", m.Address())
	must(t, err)
	received = make(chan string, 10)
	client = paho.NewClient(paho.ClientConfig{
		ClientID: clientID,
		Conn:     conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			received <- string(p.Packet.Payload)
			return true, nil
		}},
	})
	expiry := uint32(3600)
	ack, err := client.Connect(ctx, &paho.Connect{
		ClientID: clientID, KeepAlive: 30, CleanStart: false,
		Username: m.User(), UsernameFlag: true, Password: []byte(password), PasswordFlag: true,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
	})
	if err != nil {
		t.Fatalf("connect %s: %v", clientID, err)
	}
	return client, ack.SessionPresent, received
}

func publish(t *testing.T, c *paho.Client, topic, payload string) {
	t.Helper()
	_, err := c.Publish(testContext(t), &paho.Publish{QoS: 1, Topic: topic, Payload: []byte(payload)})
	must(t, err)
}

func disconnect(t *testing.T, c *paho.Client) {
	t.Helper()
	must(t, c.Disconnect(&paho.Disconnect{}))
	<-c.Done()
}

// subscribeAndLeave makes a session with a subscription, then queues one message for it.
func subscribeAndLeave(t *testing.T, m *devstack.Mosquitto) {
	t.Helper()
	sub, _, _ := connectMQTT(t, m, "subscriber", m.Password())
	_, err := sub.Subscribe(testContext(t), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "a/b", QoS: 1}}})
	must(t, err)
	disconnect(t, sub)
	pub, _, _ := connectMQTT(t, m, "publisher", m.Password())
	publish(t, pub, "a/b", "while away")
	disconnect(t, pub)
}

func TestMosquittoKeepsSessionsOverStop(t *testing.T) {
	m := devstack.TestMosquitto(t)
	url := m.URL()
	subscribeAndLeave(t, m)

	must(t, m.Stop(testContext(t)))
	if pid := m.PID(); pid != 0 {
		t.Errorf("PID is %d after Stop, want 0", pid)
	}
	must(t, m.Start(testContext(t)))
	must(t, m.Start(testContext(t))) // a second time: nothing happens
	if m.URL() != url {
		t.Errorf("URL is %s after the restart, want %s", m.URL(), url)
	}

	sub, known, received := connectMQTT(t, m, "subscriber", m.Password())
	defer disconnect(t, sub)
	if !known {
		t.Error("the broker has forgotten the session")
	}
	select {
	case got := <-received:
		if got != "while away" {
			t.Errorf("received %q", got)
		}
	case <-testContext(t).Done():
		t.Fatal("the queued message did not come")
	}
}

func TestMosquittoComesBackAfterKill(t *testing.T) {
	m := devstack.TestMosquitto(t)
	must(t, m.Kill())
	must(t, m.Kill()) // a second time: nothing happens
	if conn, err := net.Dial("tcp", m.Address()); err == nil {
		conn.Close()
		t.Fatal("something still listens after Kill")
	}
	must(t, m.Start(testContext(t)))
	c, known, _ := connectMQTT(t, m, "somebody", m.Password())
	defer disconnect(t, c)
	if known {
		t.Error("a session that was never there is present")
	}
}

func TestMosquittoWantsThePassword(t *testing.T) {
	m := devstack.TestMosquitto(t)
	for name, connect := range map[string]*paho.Connect{
		"anonymous":      {ClientID: "x", CleanStart: true, KeepAlive: 30},
		"wrong password": {ClientID: "y", CleanStart: true, KeepAlive: 30, Username: m.User(), UsernameFlag: true, Password: []byte("no"), PasswordFlag: true},
	} {
		conn, err := net.Dial("tcp", m.Address())
		must(t, err)
		client := paho.NewClient(paho.ClientConfig{Conn: conn})
		ack, err := client.Connect(testContext(t), connect)
		if err == nil {
			t.Errorf("%s: let in", name)
			disconnect(t, client)
			continue
		}
		if ack == nil || ack.ReasonCode != 0x87 {
			t.Errorf("%s: want reason code 0x87 (not authorized), got %+v, %v", name, ack, err)
		}
	}
}

func TestMosquittoOptions(t *testing.T) {
	dir := t.TempDir()
	m, err := devstack.StartMosquitto(testContext(t), devstack.MosquittoOptions{
		Dir: dir, AllowAnonymous: true, Extra: []string{"max_qos 1"},
	})
	must(t, err)
	conn, err := net.Dial("tcp", m.Address())
	must(t, err)
	client := paho.NewClient(paho.ClientConfig{Conn: conn})
	ack, err := client.Connect(testContext(t), &paho.Connect{ClientID: "anon", CleanStart: true, KeepAlive: 30})
	must(t, err)
	if ack.Properties.MaximumQoS == nil || *ack.Properties.MaximumQoS != 1 {
		t.Error("the extra line had no effect")
	}
	disconnect(t, client)
	must(t, m.Close())
	must(t, m.Close())
	if err := m.Start(context.Background()); err == nil {
		t.Error("Start after Close succeeded")
	}
}

func TestMosquittoErrorQuotesItsLog(t *testing.T) {
	_, err := devstack.StartMosquitto(testContext(t), devstack.MosquittoOptions{Extra: []string{"no_such_option 1"}})
	wantError(t, err, "no_such_option")
}
