package sourcetest

import (
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

// Network is a TCP path to a server that a test can cut and restore. An Env
// puts its source's connections through one.
type Network struct {
	proxy *toxiproxy.Proxy
}

// NewNetwork opens a path to the server at upstream (host:port), which need
// not be running yet. It is closed when t ends.
func NewNetwork(t testing.TB, upstream string) *Network {
	t.Helper()
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	n := &Network{proxy: toxiproxy.NewProxy(api, t.Name(), "127.0.0.1:0", upstream)}
	n.Restore(t)
	t.Cleanup(n.proxy.Stop)
	return n
}

// Addr is where the path begins, as host:port. It stays the same when the path
// is cut and restored.
func (n *Network) Addr() string { return n.proxy.Listen }

// Cut closes every connection and refuses new ones until Restore.
func (n *Network) Cut(testing.TB) { n.proxy.Stop() }

// Restore accepts connections again.
func (n *Network) Restore(t testing.TB) {
	t.Helper()
	if err := n.proxy.Start(); err != nil {
		t.Fatalf("open the path to %s: %v", n.proxy.Upstream, err)
	}
}

// LeftByProxy excuses a goroutine that toxiproxy 2.5 leaves behind now and then when a
// link is closed while it hands on its last bytes.
func LeftByProxy() goleak.Option {
	return goleak.IgnoreTopFunction("github.com/Shopify/toxiproxy/v2/toxics.(*NoopToxic).Pipe")
}
