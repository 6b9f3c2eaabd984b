package jetstream_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

// guarded is a NATS server with JetStream whose way to log in the test chooses,
// anew at every start.
type guarded struct {
	t      *testing.T
	dir    string
	port   int
	server *server.Server
}

// startGuarded starts a server. It keeps its port and its streams across start
// and stop.
func startGuarded(t *testing.T, guard func(*server.Options)) *guarded {
	t.Helper()
	g := &guarded{t: t, dir: t.TempDir(), port: server.RANDOM_PORT}
	g.start(guard)
	t.Cleanup(g.stop)
	return g
}

func (g *guarded) start(guard func(*server.Options)) {
	g.t.Helper()
	o := &server.Options{
		ServerName: "guarded", Host: "127.0.0.1", Port: g.port, JetStream: true, StoreDir: g.dir,
		NoSigs: true, NoLog: true,
	}
	guard(o)
	s, err := server.NewServer(o)
	must(g.t, err)
	s.Start()
	if !s.ReadyForConnections(patience) {
		g.t.Fatal("the server does not listen")
	}
	g.server = s
	_, port, _ := strings.Cut(s.Addr().String(), ":")
	g.port, err = strconv.Atoi(port)
	must(g.t, err)
}

func (g *guarded) stop() {
	g.server.Shutdown()
	g.server.WaitForShutdown()
}

func (g *guarded) address() string { return "127.0.0.1:" + strconv.Itoa(g.port) }

// tlsGuard makes the server demand TLS, and with clients a certificate that this
// authority has signed.
func tlsGuard(t *testing.T, certFile, keyFile string, clients *devstack.Authority) func(*server.Options) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	must(t, err)
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if clients != nil {
		pem, err := os.ReadFile(clients.File())
		must(t, err)
		conf.ClientCAs = x509.NewCertPool()
		conf.ClientCAs.AppendCertsFromPEM(pem)
		conf.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return func(o *server.Options) { o.TLSConfig, o.TLSVerify = conf, clients != nil }
}

// operator is a NATS operator with one account that may use JetStream.
type operator struct {
	t        *testing.T
	claims   *jwt.OperatorClaims
	signer   nkeys.KeyPair
	system   *jwt.AccountClaims
	account  *jwt.AccountClaims
	accounts nkeys.KeyPair // signs users
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	signer, public := keyPair(t, nkeys.CreateOperator)
	_, systemKey := keyPair(t, nkeys.CreateAccount)
	accounts, accountKey := keyPair(t, nkeys.CreateAccount)
	o := &operator{
		t: t, signer: signer, accounts: accounts,
		claims: jwt.NewOperatorClaims(public), system: jwt.NewAccountClaims(systemKey), account: jwt.NewAccountClaims(accountKey),
	}
	o.claims.SystemAccount = systemKey
	o.account.Limits.JetStreamLimits = jwt.JetStreamLimits{
		MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit,
	}
	return o
}

// guard makes the server trust the operator and know the accounts as they are now.
func (op *operator) guard(o *server.Options) {
	op.t.Helper()
	resolver := &server.MemAccResolver{}
	for _, account := range []*jwt.AccountClaims{op.system, op.account} {
		token, err := account.Encode(op.signer)
		must(op.t, err)
		must(op.t, resolver.Store(account.Subject, token))
	}
	o.TrustedOperators, o.AccountResolver, o.SystemAccount = []*jwt.OperatorClaims{op.claims}, resolver, op.system.Subject
}

// user writes a credentials file and returns the user's public key and what
// nobody else may see.
func (op *operator) user(path string, expires time.Time) (public string, secrets []string) {
	op.t.Helper()
	pair, public := keyPair(op.t, nkeys.CreateUser)
	claims := jwt.NewUserClaims(public)
	if !expires.IsZero() {
		claims.Expires = expires.Unix()
	}
	token, err := claims.Encode(op.accounts)
	must(op.t, err)
	seed, err := pair.Seed()
	must(op.t, err)
	file, err := jwt.FormatUserConfig(token, seed)
	must(op.t, err)
	must(op.t, os.WriteFile(path, file, 0o600))
	return public, []string{token, string(seed)}
}

func keyPair(t *testing.T, create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
	t.Helper()
	pair, err := create()
	must(t, err)
	public, err := pair.PublicKey()
	must(t, err)
	return pair, public
}

// seedFile writes a new user's NKey seed.
func seedFile(t *testing.T) (path, public, seed string) {
	t.Helper()
	pair, public := keyPair(t, nkeys.CreateUser)
	raw, err := pair.Seed()
	must(t, err)
	path = filepath.Join(t.TempDir(), "user.nk")
	must(t, os.WriteFile(path, append(raw, '\n'), 0o600))
	return path, public, string(raw)
}

// client is a connection under test with all that it logs.
type client struct {
	*jetstream.Conn
	t       *testing.T
	log     *slog.Logger
	logged  *devstack.Log
	secrets []string
}

// open connects; at the end nothing of the secrets may stand in the log.
func open(t *testing.T, cfg jetstream.Config, secrets ...string) *client {
	t.Helper()
	c := &client{t: t, secrets: secrets, logged: &devstack.Log{}}
	c.log = slog.New(slog.NewTextHandler(c.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	c.Conn, err = jetstream.Connect(cfg, c.log)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		must(t, c.Close(ctx))
		c.checkSecrets("log", c.logged.String())
	})
	return c
}

func (c *client) checkSecrets(where, text string) {
	c.t.Helper()
	for _, secret := range c.secrets {
		if strings.Contains(text, secret) {
			c.t.Errorf("%s shows the secret %q: %s", where, secret, text)
		}
	}
}

// awaitHealth waits until Health is nil, or with words holds all of them.
func (c *client) awaitHealth(words ...string) {
	c.t.Helper()
	defer func() {
		if c.t.Failed() {
			c.t.Logf("health: %v\nlog: %s", c.Health(), c.logged.String())
		}
	}()
	devstack.Await(c.t, "health "+strings.Join(words, ", "), func() bool {
		err := c.Health()
		if err == nil || len(words) == 0 {
			return err == nil && len(words) == 0
		}
		c.checkSecrets("Health", err.Error())
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				return false
			}
		}
		return true
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
