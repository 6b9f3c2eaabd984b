package flags_test

import (
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/flags"
)

// TestRemoteTLS: with the right authority it works, on another's word it does not.
func TestRemoteTLS(t *testing.T) {
	for name, d := range dialects {
		t.Run(name, func(t *testing.T) {
			s := &service{dialect: d, ended: make(chan struct{})}
			s.answer(`"live"`, "STATIC")
			server := httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
			server.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains of those whom it must not please
			server.StartTLS()
			t.Cleanup(func() { close(s.ended); server.Close() })
			ca := filepath.Join(t.TempDir(), "ca.pem")
			must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
			for _, c := range []struct {
				change func(*flags.RemoteOptions)
				good   func(flags.Variant, error) bool
			}{
				{func(o *flags.RemoteOptions) { o.CAFile = ca }, is(flags.Live)},
				{func(o *flags.RemoteOptions) { o.CAFile, o.ServerName = ca, "example.com" }, is(flags.Live)},
				{func(o *flags.RemoteOptions) { o.CAFile, o.ServerName = ca, "other.test" }, fails(flags.CauseNotReady)},
				{func(o *flags.RemoteOptions) {}, fails(flags.CauseNotReady)},
			} {
				o := remoteOptions(server.URL)
				o.Timeout = 5 * time.Second
				c.change(&o)
				p, err := d.provider(o)
				must(t, err)
				await(t, clientOf(t, p), "a", c.good)
			}
		})
	}
}

func TestRemoteOptionsNameTheField(t *testing.T) {
	for field, change := range map[string]func(*flags.RemoteOptions){
		"URL is not":     func(o *flags.RemoteOptions) { o.URL = "f:8013" },
		"URL holds cred": func(o *flags.RemoteOptions) { o.URL = "http://u:hunter2@f" },
		"URL holds a":    func(o *flags.RemoteOptions) { o.URL = "http://f/?x" },
		"TokenHeader":    func(o *flags.RemoteOptions) { o.Token, o.TokenHeader = func() (string, error) { return "", nil }, "" },
		"CertFile":       func(o *flags.RemoteOptions) { o.CertFile = "x" },
		"Timeout":        func(o *flags.RemoteOptions) { o.Timeout = 0 },
		"MaxBody":        func(o *flags.RemoteOptions) { o.MaxBody = 0 },
		"GiveUpAfter":    func(o *flags.RemoteOptions) { o.GiveUpAfter = 0 },
		"RetryMin":       func(o *flags.RemoteOptions) { o.RetryMax = 0 },
		"StreamIdle":     func(o *flags.RemoteOptions) { o.StreamIdle = 0 },
		"read CAFile":    func(o *flags.RemoteOptions) { o.CAFile = "/nonexistent" },
		"load CertFile":  func(o *flags.RemoteOptions) { o.CertFile, o.KeyFile = "/nonexistent", "/nonexistent" },
	} {
		o := remoteOptions("http://127.0.0.1:1")
		change(&o)
		for name, d := range dialects {
			if _, err := d.provider(o); err == nil || !strings.Contains(err.Error(), field) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s, %s: %v", name, field, err)
			}
		}
	}
	for field, change := range map[string]func(*flags.FileOptions){
		"Path":     func(o *flags.FileOptions) { o.Path = "" },
		"Poll":     func(o *flags.FileOptions) { o.Poll = 0 },
		"Grace":    func(o *flags.FileOptions) { o.Grace = o.Poll },
		"MaxBytes": func(o *flags.FileOptions) { o.MaxBytes = 0 },
	} {
		o := flags.DefaultFileOptions()
		o.Path = "x"
		must(t, o.Validate())
		change(&o)
		if _, err := flags.NewFileProvider(o); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestProvidersStopWhateverStateTheyAreIn: before Init, twice, and while the service hangs.
func TestProvidersStopWhateverStateTheyAreIn(t *testing.T) {
	eachDialect(t, func(t *testing.T, s *service) {
		s.do(s.hang)
		for range 20 {
			p, err := s.provider(remoteOptions(s.URL))
			must(t, err)
			stop := p.(interface{ Shutdown() })
			stop.Shutdown()
			stop.Shutdown()
			if err := p.(interface{ Health() error }).Health(); err == nil {
				t.Error("healthy after Shutdown")
			}
		}
		s.client(t, func(o *flags.RemoteOptions) { o.Timeout = time.Hour }, func(o *flags.Options) { o.InitTimeout = time.Millisecond })
	})
}
