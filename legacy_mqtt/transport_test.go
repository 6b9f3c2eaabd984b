package legacy_mqtt_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// startBroker starts a broker with lines of its own in the configuration.
func startBroker(t *testing.T, extra ...string) *devstack.Mosquitto {
	t.Helper()
	broker, err := devstack.StartMosquitto(bounded(t), devstack.MosquittoOptions{Extra: extra})
	must(t, err)
	t.Cleanup(func() { must(t, broker.Close()) })
	return broker
}

func baseConfig(t *testing.T, broker *devstack.Mosquitto, url string) legacy_mqtt.Config {
	e := env{broker: broker, adjust: func(*legacy_mqtt.Config) {}}
	return e.configFor(t, url, 10)
}

// TestTransports: mqtts checks the broker against the CA file and shows the client
// certificate; wss carries the same inside WebSocket messages, ws in clear.
func TestTransports(t *testing.T) {
	dir := t.TempDir()
	writeCertificates(t, dir)
	file := func(name string) string { return filepath.Join(dir, name) }
	tlsPort, wsPort, wssPort := freePort(t), freePort(t), freePort(t)
	certificates := []string{"cafile " + file("ca.pem"), "certfile " + file("server.pem"), "keyfile " + file("server.key")}
	lines := []string{fmt.Sprintf("listener %d 127.0.0.1", tlsPort)}
	lines = append(append(lines, certificates...), "require_certificate true")
	lines = append(lines, fmt.Sprintf("listener %d", wsPort), "protocol websockets")
	lines = append(lines, fmt.Sprintf("listener %d", wssPort), "protocol websockets")
	broker := startBroker(t, append(lines, certificates...)...)

	ca := legacy_mqtt.TLSConfig{CAFile: file("ca.pem"), ServerName: "broker.test"}
	mutual := ca
	mutual.CertFile, mutual.KeyFile = file("client.pem"), file("client.key")
	for _, tc := range []struct {
		url string
		tls legacy_mqtt.TLSConfig
	}{
		{fmt.Sprintf("mqtts://127.0.0.1:%d", tlsPort), mutual},
		{fmt.Sprintf("ws://127.0.0.1:%d/mqtt", wsPort), legacy_mqtt.TLSConfig{}},
		{fmt.Sprintf("wss://127.0.0.1:%d/mqtt", wssPort), ca},
	} {
		t.Run(strings.SplitN(tc.url, ":", 2)[0], func(t *testing.T) {
			cfg := baseConfig(t, broker, tc.url)
			cfg.TLS = tc.tls
			roundTrip(t, cfg, broker)
		})
	}
	for name, wrong := range map[string]legacy_mqtt.TLSConfig{
		"unknown authority":     {ServerName: "broker.test", CertFile: mutual.CertFile, KeyFile: mutual.KeyFile},
		"other name":            {CAFile: ca.CAFile, ServerName: "other.test", CertFile: mutual.CertFile, KeyFile: mutual.KeyFile},
		"no client certificate": ca,
	} {
		t.Run(name, func(t *testing.T) {
			cfg := baseConfig(t, broker, fmt.Sprintf("mqtts://127.0.0.1:%d", tlsPort))
			cfg.TLS = wrong
			r := run(t, cfg)
			eventually(t, "Health to name the cause", func() bool {
				err := r.Health()
				return err != nil && strings.Contains(err.Error(), "cannot connect")
			})
		})
	}
}

// roundTrip settles messages and finds them settled at the next session.
func roundTrip(t *testing.T, cfg legacy_mqtt.Config, broker *devstack.Mosquitto) {
	t.Helper()
	first := run(t, cfg)
	first.awaitHealthy(t)
	publish(t, broker, 1, deviceTopic, nil, "a", "b", "c")
	for range 3 {
		must(t, first.next(t).Receipt.Ack())
	}
	first.end()

	again := run(t, cfg)
	again.awaitHealthy(t)
	publish(t, broker, 1, deviceTopic, nil, "d")
	if d := again.next(t); idOf(d) != "d" {
		t.Errorf("%s came again although it was acknowledged", idOf(d))
	} else {
		must(t, d.Receipt.Ack())
	}
}

// TestRefusedSubscription: filters that the broker refuses are named. The
// broker's own dynamic security plugin does the refusing.
func TestRefusedSubscription(t *testing.T) {
	ctl, plugin := findPlugin(t)
	conf := filepath.Join(t.TempDir(), "security.json")
	must(t, exec.CommandContext(bounded(t), ctl, "dynsec", "init", conf, "limited", "limited-password").Run())
	forbidEverything(t, conf)
	broker := startBroker(t, "plugin "+plugin, "plugin_opt_config_file "+conf)
	cfg := baseConfig(t, broker, broker.URL())
	cfg.Username, cfg.Password = "limited", "limited-password"
	r := run(t, cfg)
	eventually(t, "Health to name the filters", func() bool {
		err := r.Health()
		return err != nil && strings.Contains(err.Error(), "tenant/+/device/+/+: not authorized")
	})
}

// forbidEverything takes all rights from the roles in a dynamic security file.
func forbidEverything(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	var conf map[string]any
	must(t, json.Unmarshal(raw, &conf))
	conf["roles"] = []map[string]any{{"rolename": "admin", "acls": []any{}}}
	raw, err = json.Marshal(conf)
	must(t, err)
	must(t, os.WriteFile(path, raw, 0o600))
}

func findPlugin(t *testing.T) (ctl, plugin string) {
	t.Helper()
	ctl, err := exec.LookPath("mosquitto_ctrl")
	must(t, err)
	found, err := filepath.Glob("/usr/lib/*/mosquitto_dynamic_security.so")
	must(t, err)
	if len(found) == 0 {
		t.Fatal("mosquitto_dynamic_security.so is missing: install it with `apt-get install mosquitto`")
	}
	return ctl, found[0]
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// writeCertificates makes a CA and, signed by it, a server's and a client's
// certificate with their keys.
func writeCertificates(t *testing.T, dir string) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(t, err)
	writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", der)
	for serial, name := range []string{"server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(int64(serial) + 2), Subject: pkix.Name{CommonName: name},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
			DNSNames:    []string{"broker.test"},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
		must(t, err)
		writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", der)
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		must(t, err)
		writePEM(t, filepath.Join(dir, name+".key"), "PRIVATE KEY", keyDER)
	}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}
