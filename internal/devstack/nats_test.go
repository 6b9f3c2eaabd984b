package devstack_test

import (
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Fatalf("want an error with %q, got: %v", part, err)
	}
}

func withJetStream(t *testing.T, n *devstack.NATS, do func(js jetstream.JetStream)) {
	t.Helper()
	nc, err := nats.Connect(n.URL())
	must(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	must(t, err)
	do(js)
}

func storeOne(t *testing.T, n *devstack.NATS) {
	t.Helper()
	withJetStream(t, n, func(js jetstream.JetStream) {
		_, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, Storage: jetstream.FileStorage})
		must(t, err)
		_, err = js.Publish(testContext(t), "s.1", []byte("kept"))
		must(t, err)
	})
}

func wantOne(t *testing.T, n *devstack.NATS) {
	t.Helper()
	withJetStream(t, n, func(js jetstream.JetStream) {
		stream, err := js.Stream(testContext(t), "S")
		must(t, err)
		msg, err := stream.GetMsg(testContext(t), 1)
		must(t, err)
		if string(msg.Data) != "kept" {
			t.Errorf("the stream holds %q", msg.Data)
		}
	})
}

func TestNATSKeepsStreamsOverKillAndStop(t *testing.T) {
	n := devstack.TestNATS(t)
	url := n.URL()
	storeOne(t, n)
	must(t, n.Kill())
	if _, err := nats.Connect(n.URL()); err == nil {
		t.Fatal("something still answers after Kill")
	}
	must(t, n.Start(testContext(t)))
	wantOne(t, n)
	must(t, n.Stop(testContext(t)))
	must(t, n.Stop(testContext(t)))
	must(t, n.Start(testContext(t)))
	wantOne(t, n)
	if n.URL() != url {
		t.Errorf("URL is %s after restarts, want %s", n.URL(), url)
	}
}

func TestNATSInProcess(t *testing.T) {
	n, err := devstack.StartNATS(testContext(t), devstack.NATSOptions{InProcess: true, User: "u", Password: "p"})
	must(t, err)
	if n.URL() != "nats://u:p@"+n.Address() {
		t.Errorf("URL is %s", n.URL())
	}
	storeOne(t, n)
	wantError(t, n.Kill(), "InProcess")
	must(t, n.Stop(testContext(t)))
	must(t, n.Start(testContext(t)))
	must(t, n.Start(testContext(t)))
	wantOne(t, n)
	dir := n.Dir()
	must(t, n.Close())
	must(t, n.Close())
	mustBeGone(t, dir)
	if err := n.Start(testContext(t)); err == nil {
		t.Error("Start after Close succeeded")
	}
}

func TestNATSWantsThePassword(t *testing.T) {
	n := devstack.TestNATS(t)
	if nc, err := nats.Connect("nats://" + n.Address()); err == nil {
		nc.Close()
		t.Error("let in without a password")
	}
}

func TestNATSPortTakenIsAnError(t *testing.T) {
	n := devstack.TestNATS(t)
	var port int
	for _, c := range n.Address()[len("127.0.0.1:"):] {
		port = port*10 + int(c-'0')
	}
	for _, inProcess := range []bool{true, false} {
		_, err := devstack.StartNATS(testContext(t), devstack.NATSOptions{Port: port, InProcess: inProcess})
		wantError(t, err, "address already in use")
	}
}
