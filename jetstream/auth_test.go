package jetstream_test

import (
	"context"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

// login is one way to log in: what the server demands and what we show.
type login struct {
	guard   func(*server.Options)
	config  func(*jetstream.Config)
	inURL   string // user part of the URL
	secrets []string
}

// connect starts the login's server and connects to it as the login says.
func (l login) connect(t *testing.T) (*guarded, *client) {
	t.Helper()
	g := startGuarded(t, l.guard)
	cfg := jetstream.DefaultConfig()
	cfg.URLs = []string{"nats://" + l.inURL + g.address()}
	if l.config != nil {
		l.config(&cfg)
	}
	return g, open(t, cfg, l.secrets...)
}

const goodPassword, wrongPassword = "g00d,p:w/1", "wr0ng-p4ssw0rd"

func passwordGuard(o *server.Options) { o.Username, o.Password = "crossfade", goodPassword }
func tokenGuard(o *server.Options)    { o.Authorization = goodPassword }

// authority is a new one, with its files in a directory of their own.
func authority(t *testing.T) *devstack.Authority {
	t.Helper()
	a, err := devstack.NewAuthority(t.TempDir())
	must(t, err)
	return a
}

func issue(t *testing.T, a *devstack.Authority, c devstack.Certificate) (certFile, keyFile string) {
	t.Helper()
	certFile, keyFile, err := a.Issue(c)
	must(t, err)
	return certFile, keyFile
}

// logins are the ways that must work.
func logins(t *testing.T) map[string]login {
	ca := authority(t)
	cert, key := issue(t, ca, devstack.Certificate{Name: "server", Hosts: []string{"127.0.0.1"}})
	namedCert, namedKey := issue(t, ca, devstack.Certificate{Name: "named", Hosts: []string{"nats.test"}})
	clientCert, clientKey := issue(t, ca, devstack.Certificate{Name: "client"})
	seed, public, seedText := seedFile(t)
	op := newOperator(t)
	credentials := filepath.Join(t.TempDir(), "user.creds")
	_, credentialSecrets := op.user(credentials, time.Time{})
	secret := []string{goodPassword, "g00d", "p%3Aw"}
	return map[string]login{
		"user and password": {guard: passwordGuard, secrets: secret,
			config: func(c *jetstream.Config) { c.User, c.Password = "crossfade", goodPassword }},
		"user and password in the URL": {guard: passwordGuard, secrets: secret, inURL: "crossfade:g00d,p%3Aw%2F1@"},
		"token":                        {guard: tokenGuard, secrets: secret, config: func(c *jetstream.Config) { c.Token = goodPassword }},
		"token in the URL":             {guard: tokenGuard, secrets: secret, inURL: "g00d,p%3Aw%2F1@"},
		"NKey seed file": {secrets: []string{seedText},
			guard:  func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} },
			config: func(c *jetstream.Config) { c.NKeySeedFile = seed }},
		"credentials file": {guard: op.guard, secrets: credentialSecrets,
			config: func(c *jetstream.Config) { c.CredentialsFile = credentials }},
		"TLS with a private authority": {guard: tlsGuard(t, cert, key, nil),
			config: func(c *jetstream.Config) { c.TLSCAFile = ca.File() }},
		"TLS with another name": {guard: tlsGuard(t, namedCert, namedKey, nil),
			config: func(c *jetstream.Config) { c.TLSCAFile, c.TLSServerName = ca.File(), "nats.test" }},
		"TLS with a client certificate": {guard: tlsGuard(t, cert, key, ca),
			config: func(c *jetstream.Config) {
				c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = ca.File(), clientCert, clientKey
			}},
		"TLS and a password": {secrets: secret,
			guard: func(o *server.Options) { tlsGuard(t, cert, key, nil)(o); passwordGuard(o) },
			config: func(c *jetstream.Config) {
				c.TLSCAFile, c.User, c.Password = ca.File(), "crossfade", goodPassword
			}},
	}
}

// Every way to log in is good for set-up, pulling, publishing, and again after
// the server was away.
func TestLogins(t *testing.T) {
	for name, l := range logins(t) {
		t.Run(name, func(t *testing.T) {
			g, c := l.connect(t)
			c.awaitHealth()
			if _, err := jetstream.Ensure(testContext(t), c.Conn, jetstream.DefaultSetupOptions()); err != nil {
				t.Fatalf("Ensure = %v", err)
			}
			source, err := jetstream.NewSource(c.Conn, jetstream.DefaultSourceConfig(), c.log)
			must(t, err)
			k := &taker{auto: true}
			ctx, cancel := context.WithCancel(testContext(t))
			ended := make(chan error, 1)
			go func() { ended <- source.Run(ctx, k.deliver) }()

			c.publish("before")
			devstack.Await(t, "a message", func() bool { return k.has([]string{"before"}) })
			g.stop()
			c.awaitHealth("not connected")
			g.start(l.guard)
			c.awaitHealth()
			c.publish("after")
			devstack.Await(t, "a message after the server was away", func() bool { return k.has([]string{"after"}) })
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run = %v", err)
			}
			if err := source.Close(testContext(t)); err != nil {
				t.Errorf("Close = %v", err)
			}
		})
	}
}

// publish stores one message through the connection under test.
func (c *client) publish(id string) {
	c.t.Helper()
	var one iter.Seq2[string, []byte] = func(yield func(string, []byte) bool) { yield("telemetry.t1", []byte(id)) }
	devstack.Await(c.t, "publish of "+id, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		return jetstream.Publish(ctx, c.Conn, one) == nil
	})
}

// refusals are logins that must fail, and the words that tell what to do.
func refusals(t *testing.T) map[string]struct {
	login
	words []string
} {
	ca, stranger := authority(t), authority(t)
	cert, key := issue(t, ca, devstack.Certificate{Name: "server", Hosts: []string{"127.0.0.1"}})
	past := time.Now().Add(-time.Hour)
	expiredCert, expiredKey := issue(t, ca, devstack.Certificate{Name: "expired", Hosts: []string{"127.0.0.1"}, Expires: past})
	strangeCert, strangeKey := issue(t, stranger, devstack.Certificate{Name: "client"})
	seed, public, seedText := seedFile(t)
	otherSeed, _, otherText := seedFile(t)
	op, other := newOperator(t), newOperator(t)
	file := func(name string) string { return filepath.Join(t.TempDir(), name) }
	expired, foreign := file("expired.creds"), file("foreign.creds")
	_, expiredSecrets := op.user(expired, past)
	_, foreignSecrets := other.user(foreign, time.Time{})
	secret := []string{wrongPassword, goodPassword}
	type refusal = struct {
		login
		words []string
	}
	mutual := func(certFile, keyFile string) func(*jetstream.Config) {
		return func(c *jetstream.Config) {
			c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = ca.File(), certFile, keyFile
		}
	}
	nkeyGuard := func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} }
	return map[string]refusal{
		"no login": {login{guard: passwordGuard}, []string{"refused the login", "CredentialsFile, NKeySeedFile, Token, or User and Password"}},
		"wrong password": {login{guard: passwordGuard, secrets: secret,
			config: func(c *jetstream.Config) { c.User, c.Password = "crossfade", wrongPassword }}, []string{"refused the login", "check User and Password"}},
		"wrong password in the URL": {login{guard: passwordGuard, secrets: secret, inURL: "crossfade:" + wrongPassword + "@"},
			[]string{"refused the login", "check the user in URLs"}},
		"wrong token": {login{guard: tokenGuard, secrets: secret, config: func(c *jetstream.Config) { c.Token = wrongPassword }},
			[]string{"refused the login", "check Token"}},
		"unknown NKey": {login{guard: nkeyGuard, secrets: []string{seedText, otherText}, config: func(c *jetstream.Config) { c.NKeySeedFile = otherSeed }},
			[]string{"refused the login", "check NKeySeedFile"}},
		"NKey where none is known": {login{guard: passwordGuard, secrets: []string{otherText}, config: func(c *jetstream.Config) { c.NKeySeedFile = otherSeed }},
			[]string{"NKeySeedFile", "another way to log in"}},
		"expired credentials": {login{guard: op.guard, secrets: expiredSecrets, config: func(c *jetstream.Config) { c.CredentialsFile = expired }},
			[]string{"CredentialsFile"}},
		"credentials of another operator": {login{guard: op.guard, secrets: foreignSecrets, config: func(c *jetstream.Config) { c.CredentialsFile = foreign }},
			[]string{"refused the login", "check CredentialsFile"}},
		"seed with TLS wanted": {login{guard: nkeyGuard, config: func(c *jetstream.Config) { c.NKeySeedFile, c.TLSCAFile = seed, ca.File() }},
			[]string{"offers no TLS", "remove the TLS settings"}},
		"authority not known": {login{guard: tlsGuard(t, cert, key, nil)}, []string{"unknown authority", "TLSCAFile"}},
		"other authority": {login{guard: tlsGuard(t, cert, key, nil), config: func(c *jetstream.Config) { c.TLSCAFile = stranger.File() }},
			[]string{"unknown authority", "TLSCAFile"}},
		"other name": {login{guard: tlsGuard(t, cert, key, nil), config: func(c *jetstream.Config) { c.TLSCAFile, c.TLSServerName = ca.File(), "nats.test" }},
			[]string{"nats.test", "TLSServerName"}},
		"expired server certificate": {login{guard: tlsGuard(t, expiredCert, expiredKey, nil), config: func(c *jetstream.Config) { c.TLSCAFile = ca.File() }},
			[]string{"expired", "renew the server's certificate"}},
		"no client certificate": {login{guard: tlsGuard(t, cert, key, ca), config: func(c *jetstream.Config) { c.TLSCAFile = ca.File() }},
			[]string{"set TLSCertFile, TLSKeyFile"}},
		"expired client certificate":         {login{guard: tlsGuard(t, cert, key, ca), config: mutual(expiredCert, expiredKey)}, []string{"check TLSCertFile"}},
		"client certificate of a stranger's": {login{guard: tlsGuard(t, cert, key, ca), config: mutual(strangeCert, strangeKey)}, []string{"check TLSCertFile"}},
	}
}

// A refused login is tried for ever; Health and the log name what to do, and
// show no secret.
func TestRefusedLogins(t *testing.T) {
	for name, r := range refusals(t) {
		t.Run(name, func(t *testing.T) {
			_, c := r.connect(t)
			c.awaitHealth(append(slices.Clone(r.words), "not connected")...)
			devstack.Await(t, "a line in the log", func() bool {
				return contains(c.logged.String(), r.words)
			})
		})
	}
}

// The server was away at the start, or was well before, and refuses us then:
// what Health says must be the newest reason, not the first.
func TestRefusedLater(t *testing.T) {
	ca, stranger := authority(t), authority(t)
	cert, key := issue(t, ca, devstack.Certificate{Name: "server", Hosts: []string{"127.0.0.1"}})
	strangeCert, strangeKey := issue(t, stranger, devstack.Certificate{Name: "server", Hosts: []string{"127.0.0.1"}})
	for name, wellBefore := range map[string]bool{"away at the start": false, "well before": true} {
		t.Run(name, func(t *testing.T) {
			good := func(o *server.Options) { tlsGuard(t, cert, key, nil)(o); passwordGuard(o) }
			g := startGuarded(t, good)
			if !wellBefore {
				g.stop()
			}
			cfg := jetstream.DefaultConfig()
			cfg.URLs = []string{"nats://" + g.address()}
			cfg.TLSCAFile, cfg.User, cfg.Password = ca.File(), "crossfade", goodPassword
			c := open(t, cfg, goodPassword)
			if wellBefore {
				c.awaitHealth()
				g.stop()
			}
			c.awaitHealth("refused")
			g.start(func(o *server.Options) { tlsGuard(t, strangeCert, strangeKey, nil)(o); passwordGuard(o) })
			c.awaitHealth("unknown authority", "TLSCAFile")
			g.stop()
			g.start(func(o *server.Options) {
				tlsGuard(t, cert, key, nil)(o)
				o.Username, o.Password = "crossfade", "changed"
			})
			c.awaitHealth("refused the login", "check User and Password")
			g.stop()
			g.start(good)
			c.awaitHealth()
		})
	}
}

// Credentials that are exchanged while the program runs count from the next
// connection on.
func TestCredentialsAreReadAgain(t *testing.T) {
	op := newOperator(t)
	file := filepath.Join(t.TempDir(), "user.creds")
	public, first := op.user(file, time.Time{})
	g, c := login{guard: op.guard, config: func(c *jetstream.Config) { c.CredentialsFile = file }, secrets: first}.connect(t)
	c.awaitHealth()

	g.stop()
	op.account.Revoke(public)
	g.start(op.guard)
	c.awaitHealth("refused the login", "check CredentialsFile")
	must(t, os.WriteFile(file, []byte("half a file"), 0o600))
	c.awaitHealth("check CredentialsFile")
	_, second := op.user(file, time.Time{})
	c.secrets = append(c.secrets, second...)
	c.awaitHealth()
}

// A running connection ends when its JWT does.
func TestCredentialsExpire(t *testing.T) {
	op := newOperator(t)
	file := filepath.Join(t.TempDir(), "user.creds")
	_, first := op.user(file, time.Now().Add(2*time.Second))
	_, c := login{guard: op.guard, config: func(c *jetstream.Config) { c.CredentialsFile = file }, secrets: first}.connect(t)
	c.awaitHealth("CredentialsFile")
	_, second := op.user(file, time.Time{})
	c.secrets = append(c.secrets, second...)
	c.awaitHealth()
}

// So do certificates.
func TestCertificatesAreReadAgain(t *testing.T) {
	ca := authority(t)
	cert, key := issue(t, ca, devstack.Certificate{Name: "server", Hosts: []string{"127.0.0.1"}})
	clientCert, clientKey := issue(t, ca, devstack.Certificate{Name: "client", Expires: time.Now().Add(-time.Hour)})
	guard := tlsGuard(t, cert, key, ca)
	g, c := login{guard: guard, config: func(c *jetstream.Config) {
		c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = ca.File(), clientCert, clientKey
	}}.connect(t)
	c.awaitHealth("check TLSCertFile")
	issue(t, ca, devstack.Certificate{Name: "client"})
	c.awaitHealth()

	// The authority is replaced as well.
	next := authority(t)
	nextCert, nextKey := issue(t, next, devstack.Certificate{Name: "server", Hosts: []string{"127.0.0.1"}})
	g.stop()
	g.start(tlsGuard(t, nextCert, nextKey, ca))
	c.awaitHealth("TLSCAFile")
	pem, err := os.ReadFile(next.File())
	must(t, err)
	must(t, os.WriteFile(ca.File(), pem, 0o600))
	c.awaitHealth()
}
