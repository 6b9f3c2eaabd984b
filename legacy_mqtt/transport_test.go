package legacy_mqtt_test

import (
	"encoding/json"
	"fmt"
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
	authority, err := devstack.NewAuthority(t.TempDir())
	must(t, err)
	serverCert, serverKey, err := authority.Issue(devstack.Certificate{Name: "server", Hosts: []string{"broker.test"}})
	must(t, err)
	clientCert, clientKey, err := authority.Issue(devstack.Certificate{Name: "client"})
	must(t, err)
	tlsPort, wsPort, wssPort := freePort(t), freePort(t), freePort(t)
	certificates := []string{"cafile " + authority.File(), "certfile " + serverCert, "keyfile " + serverKey}
	lines := []string{fmt.Sprintf("listener %d 127.0.0.1", tlsPort)}
	lines = append(append(lines, certificates...), "require_certificate true")
	lines = append(lines, fmt.Sprintf("listener %d", wsPort), "protocol websockets")
	lines = append(lines, fmt.Sprintf("listener %d", wssPort), "protocol websockets")
	broker := startBroker(t, append(lines, certificates...)...)

	ca := legacy_mqtt.TLSConfig{CAFile: authority.File(), ServerName: "broker.test"}
	mutual := ca
	mutual.CertFile, mutual.KeyFile = clientCert, clientKey
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
	expiredCert, expiredKey, err := authority.Issue(devstack.Certificate{Name: "expired", Expires: time.Now().Add(-time.Hour)})
	must(t, err)
	for name, wrong := range map[string]struct {
		legacy_mqtt.TLSConfig
		remedy string
	}{
		"unknown authority":          {legacy_mqtt.TLSConfig{ServerName: "broker.test", CertFile: clientCert, KeyFile: clientKey}, "TLS.CAFile"},
		"other name":                 {legacy_mqtt.TLSConfig{CAFile: ca.CAFile, ServerName: "other.test", CertFile: clientCert, KeyFile: clientKey}, "TLS.ServerName"},
		"no client certificate":      {ca, "TLS.CertFile"},
		"expired client certificate": {legacy_mqtt.TLSConfig{CAFile: ca.CAFile, ServerName: "broker.test", CertFile: expiredCert, KeyFile: expiredKey}, "TLS.CertFile"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := baseConfig(t, broker, fmt.Sprintf("mqtts://127.0.0.1:%d", tlsPort))
			cfg.TLS = wrong.TLSConfig
			r := run(t, cfg)
			devstack.Await(t, "Health to name "+wrong.remedy, func() bool {
				err := r.Health()
				return err != nil && strings.Contains(err.Error(), "cannot connect") && strings.Contains(err.Error(), wrong.remedy)
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
	devstack.Await(t, "Health to name the filters", func() bool {
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
