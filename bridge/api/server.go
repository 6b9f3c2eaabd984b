package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
)

// Server is the HTTP API of one instance. Make it with New, Start it once the
// database's tables are there, Stop it before what it publishes to is closed.
type Server struct {
	config    Config
	pool      *pgxpool.Pool
	publisher Publisher
	auth      *Auth
	log       *slog.Logger
	mux       *http.ServeMux
	huma      huma.API
	slots     chan struct{}

	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
	trouble  trouble

	mu     sync.Mutex
	state  serverState
	http   *http.Server
	served chan error // has Serve's error, and is closed
	bound  atomic.Pointer[string]
}

type serverState int

const (
	stateNew serverState = iota
	stateServing
	stateStopped
)

// New makes a server that listens nowhere yet.
func New(c Config, p Parts) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("API configuration: %w", err)
	}
	if p.Pool == nil || p.Registry == nil || p.Logger == nil {
		return nil, errors.New("API: Pool, Registry and Logger must be set")
	}
	s := &Server{
		config: c, pool: p.Pool, publisher: p.Publisher, log: p.Logger, mux: http.NewServeMux(),
		auth: newAuth(p.Pool, &c, time.Now, p.Logger), slots: make(chan struct{}, c.MaxRequests), served: make(chan error, 1),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crossfade_api_requests_total",
			Help: "Requests to the HTTP API by route and status."}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "crossfade_api_request_seconds",
			Help: "How long requests to the HTTP API took, by route.", Buckets: []float64{.001, .003, .01, .03, .1, .3, 1, 3, 10}}, []string{"route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "crossfade_api_requests_in_flight",
			Help: "Requests to the HTTP API that are being worked at."}),
	}
	s.huma = humago.New(s.mux, document(c.Version))
	s.registerBackend()
	s.registerDevice()
	for _, mount := range p.Mount {
		if err := mount(s.huma, s.auth); err != nil {
			return nil, fmt.Errorf("API: %w", err)
		}
	}
	if err := s.serveDocument(); err != nil {
		return nil, err
	}
	for _, collector := range []prometheus.Collector{s.requests, s.seconds, s.inFlight} {
		if err := p.Registry.Register(collector); err != nil {
			return nil, fmt.Errorf("API: register metrics: %w", err)
		}
	}
	return s, nil
}

// Start listens. It returns once the address is bound; requests are then served
// until Stop.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != stateNew {
		return errors.New("API: Start was called before, or after Stop; make a new server with New")
	}
	listener, err := net.Listen("tcp", s.config.Listen)
	if err != nil {
		return fmt.Errorf("listen for the API on %s (choose another with --api-listen): %w", s.config.Listen, err)
	}
	address := listener.Addr().String()
	listener = netutil.LimitListener(listener, s.config.MaxConnections)
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      s.config.RequestTimeout + 15*time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // what clients do to their connections
	}
	if s.config.CertFile != "" {
		certs := &certificates{cert: s.config.CertFile, key: s.config.KeyFile, log: s.log}
		if err := certs.load(); err != nil {
			_ = listener.Close()
			return fmt.Errorf("API: %w", err)
		}
		s.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certs.get}
	}
	s.bound.Store(&address)
	s.state = stateServing
	go s.serve(listener)
	s.log.Info("the API is served", "address", address, "tls", s.config.CertFile != "")
	return nil
}

func (s *Server) serve(l net.Listener) {
	var err error
	if s.config.CertFile != "" {
		err = s.http.ServeTLS(l, "", "")
	} else {
		err = s.http.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	} else {
		s.log.Error("the API is served no more", "error", err)
		s.trouble.ended.Store(&err)
	}
	s.served <- err
	close(s.served)
}

// Stop lets requests finish, for as long as ctx lasts, and closes what is left then.
// It may be called at any time, and more than once.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	serving := s.state == stateServing
	s.state = stateStopped
	s.mu.Unlock()
	if !serving {
		return nil
	}
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = fmt.Errorf("API: requests were cut off: %w", errors.Join(err, s.http.Close()))
	}
	return errors.Join(err, <-s.served)
}

// Address is where the API is served, once it is; "" before.
func (s *Server) Address() string {
	if a := s.bound.Load(); a != nil {
		return *a
	}
	return ""
}

// Auth is what decides who may do what.
func (s *Server) Auth() *Auth { return s.auth }

// Health is nil while the API is served and requests do not fail on our side.
func (s *Server) Health() error {
	if s.Address() == "" {
		return errors.New("the API is not served yet")
	}
	return s.trouble.err()
}

// trouble remembers the last failure that was ours, until a request succeeds.
type trouble struct {
	ended, last atomic.Pointer[error]
}

func (t *trouble) note(err error) {
	switch {
	case err != nil:
		t.last.Store(&err)
	case t.last.Load() != nil:
		t.last.Store(nil)
	}
}

func (t *trouble) err() error {
	if e := t.ended.Load(); e != nil {
		return fmt.Errorf("the API is served no more: %w", *e)
	}
	if e := t.last.Load(); e != nil {
		return fmt.Errorf("the last request that failed on our side: %w", *e)
	}
	return nil
}

// certificateBeat is how often the certificate's files are looked at.
const certificateBeat = time.Minute

// certificates serves a certificate that may be renewed while we run: files that
// have changed are read again. If they cannot be used, the old one goes on.
type certificates struct {
	cert, key string
	log       *slog.Logger
	mu        sync.Mutex
	current   *tls.Certificate
	looked    time.Time
	stamp     [2]time.Time
}

func (c *certificates) load() error {
	stamp, err := c.stamps()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("certificate %s and its key cannot be used: %w", c.cert, err)
	}
	c.current, c.stamp, c.looked = &pair, stamp, time.Now()
	return nil
}

func (c *certificates) stamps() (stamp [2]time.Time, err error) {
	for i, file := range []string{c.cert, c.key} {
		info, err := os.Stat(file)
		if err != nil {
			return stamp, fmt.Errorf("certificate's file: %w", err)
		}
		stamp[i] = info.ModTime()
	}
	return stamp, nil
}

func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < certificateBeat {
		return c.current, nil
	}
	c.looked = time.Now()
	if stamp, err := c.stamps(); err == nil && stamp == c.stamp {
		return c.current, nil
	}
	if err := c.load(); err != nil {
		c.log.Warn("the API's certificate was replaced and cannot be used; the old one goes on", "error", err)
	} else {
		c.log.Info("the API's certificate was replaced")
	}
	return c.current, nil
}
