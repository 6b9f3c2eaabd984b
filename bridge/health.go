package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// health gathers what the parts say of themselves.
type health struct {
	postgres atomic.Pointer[error]
	started  atomic.Bool
	stopping atomic.Bool
	checks   []dependency
}

// dependency is one line of /readyz. What is not required shows but does not
// make the instance unready.
type dependency struct {
	name     string
	required bool
	check    func() error
}

// Status is one dependency's state, as /readyz and the heartbeat show it.
type Status struct {
	OK       bool   `json:"ok"`
	Required bool   `json:"required"`
	Error    string `json:"error,omitempty"`
}

// Readiness is the body of /readyz.
type Readiness struct {
	Ready    bool              `json:"ready"`
	Instance string            `json:"instance"`
	Checks   map[string]Status `json:"checks"`
}

func newHealth() *health { return &health{} }

func (h *health) readiness(instance string) Readiness {
	r := Readiness{Ready: true, Instance: instance, Checks: make(map[string]Status, len(h.checks))}
	for _, d := range h.checks {
		s := Status{OK: true, Required: d.required}
		if err := d.check(); err != nil {
			s.OK, s.Error = false, err.Error()
			r.Ready = r.Ready && !d.required
		}
		r.Checks[d.name] = s
	}
	return r
}

func (b *Bridge) wireHealth() {
	h := b.health
	h.checks = []dependency{
		{"lifecycle", true, func() error {
			switch {
			case h.stopping.Load():
				return errors.New("stopping: what is in hand is being written")
			case !h.started.Load():
				return errors.New("starting: nothing is taken in yet")
			}
			return nil
		}},
		{"postgresql", true, func() error {
			if e := h.postgres.Load(); e != nil {
				return *e
			}
			return b.processor.Writing()
		}},
		{"set_aside", false, b.processor.SetAside},
		{"instance", true, b.control.Alone},
		{"stages", false, b.control.Health},
		{"flags", false, b.flags.Health},
	}
	for _, f := range b.feeds {
		h.checks = append(h.checks, dependency{f.label(), f.label() != "mirror", f.health})
	}
	if b.mirror != nil {
		h.checks = append(h.checks, dependency{"mirror_publisher", false, b.mirror.Health})
	}
	if b.outbox != nil {
		h.checks = append(h.checks, dependency{"routes", false, b.outbox.health})
	}
	if b.api != nil {
		h.checks = append(h.checks, dependency{"api", false, b.api.server.Health})
	}
	if b.downlink != nil {
		h.checks = append(h.checks, dependency{"downlink", false, b.downlink.Health})
	}
	if b.jetstream != nil {
		h.checks = append(h.checks, dependency{"jetstream_settings", false, b.settings.trouble.err})
	}
	b.http = newServer(b.config.Listen, b.routes())
}

// routes are read-only and hold no secrets: errors name hosts, never credentials.
func (b *Bridge) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "alive", "instance": b.config.Instance, "version": b.config.Version})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := b.health.readiness(b.config.Instance)
		code := http.StatusOK
		if !r.Ready {
			code = http.StatusServiceUnavailable
		}
		writeJSON(w, code, r)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(b.registry, promhttp.HandlerOpts{}))
	return mux
}

func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // a client that went away needs no answer
}

// server is the HTTP listener of one instance; with an empty address it is none.
type server struct {
	listen string
	http   *http.Server
	bound  atomic.Pointer[string] // the address, once it listens
	done   chan struct{}
}

func newServer(listen string, handler http.Handler) *server {
	return &server{listen: listen, done: make(chan struct{}), http: &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}}
}

func (s *server) start() error {
	if s.listen == "" {
		return nil
	}
	l, err := net.Listen("tcp", s.listen)
	if err != nil {
		return fmt.Errorf("listen for health and metrics on %s (choose another with --http-listen): %w", s.listen, err)
	}
	address := l.Addr().String()
	s.bound.Store(&address)
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l) // ends by stop
	}()
	return nil
}

func (s *server) address() string {
	if a := s.bound.Load(); a != nil {
		return *a
	}
	return ""
}

func (s *server) stop(ctx context.Context) error {
	if s.bound.Load() == nil {
		return nil
	}
	err := s.http.Shutdown(ctx)
	<-s.done
	return err
}

// Address is where health and metrics are served, once Run listens; "" before.
func (b *Bridge) Address() string { return b.http.address() }

// Ready is what /readyz answers.
func (b *Bridge) Ready() Readiness { return b.health.readiness(b.config.Instance) }
