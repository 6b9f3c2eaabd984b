package jetstream_test

import (
	"fmt"
	"iter"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

// bodies are n messages.
func bodies(n int, at func(int)) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for i := range n {
			at(i)
			if !yield("telemetry.t1", fmt.Appendf(nil, "m-%d", i)) {
				return
			}
		}
	}
}

// However often it is called, Publish has one subscription.
func TestPublishLeavesNothingBehind(t *testing.T) {
	g, c := login{guard: tokenGuard, config: func(c *jetstream.Config) { c.Token = goodPassword }}.connect(t)
	c.awaitHealth()
	_, err := jetstream.Ensure(testContext(t), c.Conn, jetstream.DefaultSetupOptions())
	must(t, err)
	before := g.server.NumSubscriptions()
	for range 20 {
		must(t, jetstream.Publish(testContext(t), c.Conn, bodies(10, func(int) {})))
	}
	must(t, c.Flush(testContext(t)))
	if after := g.server.NumSubscriptions(); after > before+2 {
		t.Errorf("%d subscriptions, %d before", after, before)
	}
}

// A server that is busy for a moment is waited for.
func TestPublishWaitsForABusyServer(t *testing.T) {
	server := devstack.TestNATS(t)
	conn := connect(t, server, "")
	_, err := jetstream.Ensure(testContext(t), conn, jetstream.DefaultSetupOptions())
	must(t, err)
	signal := func(s syscall.Signal) { must(t, syscall.Kill(server.PID(), s)) }
	err = jetstream.Publish(testContext(t), conn, bodies(10_000, func(i int) {
		if i == 0 {
			signal(syscall.SIGSTOP)
			time.AfterFunc(time.Second, func() { signal(syscall.SIGCONT) })
		}
	}))
	must(t, err)
}
