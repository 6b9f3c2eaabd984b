package jetstream_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/jetstream"
)

func contains(text string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

// A server that takes the connection and then says nothing: whoever asks for
// the health gets an answer while the client still waits for the server's.
func TestHealthDoesNotWaitForTheServer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	go func() { (<-accepted).Close() }() // the attempt within Connect
	cfg := jetstream.DefaultConfig()
	cfg.URLs = []string{"nats://" + listener.Addr().String()}
	c := open(t, cfg)

	waiting := <-accepted
	gaveUp := make(chan struct{})
	go func() {
		defer close(gaveUp)
		_, _ = waiting.Read(make([]byte, 1)) // ends when the client hangs up
		_ = waiting.Close()
	}()
	health := make(chan error, 1)
	go func() { health <- c.Health() }()
	select {
	case err := <-health:
		if err == nil {
			t.Error("Health = nil")
		}
	case <-time.After(2 * time.Second): // the client waits for 5
		t.Error("Health waits for the server")
	}
	// Lets the client end without its own time limit.
	_ = waiting.Close()
	_ = listener.Close()
	for c := range accepted {
		_ = c.Close()
	}
	<-gaveUp
}
