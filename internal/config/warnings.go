package config

import (
	"fmt"
	"net/url"
	"strings"
)

// Warnings returns what works but should be known: one sentence each, with the
// setting's names and a remedy, never with a secret. It expects a configuration
// that Validate found good, but does no harm to another.
func (r *Run) Warnings() []string {
	w := &warnings{}
	if r.MQTT.Enabled || r.Mirror.Enabled || r.Downlink.Enabled {
		if r.MQTT.Password != "" || r.MQTT.PasswordFile != "" {
			w.plaintext("mqtt-url", r.MQTT.URL, "mqtt", "use mqtts://")
		}
	}
	if r.NATS.Enabled {
		r.NATS.warnings(w)
	}
	r.Flags.warnings(w)
	r.throughputWarnings(w)
	r.stageWarnings(w)
	r.apiWarnings(w)
	if r.Mirror.Enabled && r.MQTT.Group != "" && r.Mirror.Group == "" {
		w.add("mirror-group", "is empty while --mqtt-group is set: with several instances every one mirrors every message",
			"set it; JetStream's duplicate window and the ledger take the extra copies meanwhile")
	}
	if r.HTTP.AllowRemote && !loopback(hostOf(r.HTTP.Listen)) {
		w.add("http-listen", "is reachable from other hosts, without a password", "keep it behind a firewall")
	}
	if !r.Pipeline.RequireToken {
		w.add("pipeline-require-token", "is off: whoever may publish for a device may write for it", "switch it on unless the broker authenticates every device")
	}
	r.certificateWarnings(w)
	return w.list
}

func (r *Run) certificateWarnings(w *warnings) {
	p := &r.Pipeline
	switch {
	case p.CertTrustTopic && !p.CertAuthEnabled:
		w.add("pipeline-cert-trust-topic", "has no effect without --pipeline-cert-auth-enabled", "set both or neither")
	case p.CertAuthEnabled && !p.CertTrustTopic && r.MQTT.Enabled && r.MQTT.UsernameProperty == "":
		w.add("pipeline-cert-auth-enabled", "is on, but MQTT messages carry no user name: of one message the MQTT copy is quarantined where the JetStream copy would pass",
			"have the broker tell it in a user property and set --mqtt-username-property, or, where the broker ties topics to certificates, set --pipeline-cert-trust-topic")
	}
	if p.AutoProvision && !p.RequireToken {
		w.add("pipeline-auto-provision", "is on without --pipeline-require-token: whoever may publish for a tenant may write for devices that he invents", "switch tokens on unless the broker authenticates every device")
	}
}

func (n *NATS) warnings(w *warnings) {
	// An NKey or a JWT only signs a challenge; these two go over the wire.
	if n.Token != "" || n.TokenFile != "" || n.User != "" {
		for _, u := range n.URLs {
			if !n.TLS.Set() {
				w.plaintext("nats-url", u, "nats", "use tls://")
			}
		}
	}
	if n.Replicas%2 == 0 {
		w.add("nats-replicas", fmt.Sprintf("%d is even and survives no more failures than one fewer", n.Replicas), "use 1, 3 or 5")
	}
}

// throughputWarnings names limits that leave workers idle: a source that may
// hand over less than the workers collect makes every batch wait for its linger.
func (r *Run) throughputWarnings(w *warnings) {
	inHand := r.Pipeline.BatchSize * r.Pipeline.Workers
	if r.NATS.Enabled && r.NATS.Window < inHand {
		w.add("nats-window", fmt.Sprintf("%d is less than batch size × workers (%d), so batches wait for --pipeline-linger", r.NATS.Window, inHand), "raise it or lower those")
	}
	if r.MQTT.Enabled && r.MQTT.ReceiveMaximum < inHand {
		w.add("mqtt-receive-maximum", fmt.Sprintf("%d is less than batch size × workers (%d), so batches wait for --pipeline-linger", r.MQTT.ReceiveMaximum, inHand), "raise it or lower those")
	}
	if r.Database.MaxConns < r.Pipeline.Workers+2 {
		w.add("database-max-conns", fmt.Sprintf("%d is less than --pipeline-workers and two more, so workers wait for each other", r.Database.MaxConns), fmt.Sprintf("use at least %d", r.Pipeline.Workers+2))
	}
}

type warnings struct{ list []string }

func (w *warnings) add(flag, what, remedy string) {
	w.list = append(w.list, names(flag)+": "+what+"; "+remedy)
}

// plaintext warns of a password that crosses a network unencrypted.
func (w *warnings) plaintext(flag string, e Endpoint, scheme, remedy string) {
	u, err := url.Parse(string(e))
	if err != nil || u.Scheme != scheme || loopback(u.Hostname()) {
		return
	}
	w.add(flag, "sends the password unencrypted to "+u.Hostname(), remedy+" unless that network is private")
}

func hostOf(address string) string {
	host, _, found := strings.Cut(address, ":")
	if strings.HasPrefix(address, "[") {
		host, _, found = strings.Cut(address[1:], "]")
	}
	if !found {
		return address
	}
	return host
}

// UnknownEnvironment returns a warning for each variable of environ (as from
// os.Environ) that begins with CROSSFADE_ and is no setting's: a misspelt one
// would otherwise be without effect and without a word. Values are not shown.
func UnknownEnvironment(environ []string) []string {
	known := map[string]bool{}
	var all []string
	for _, s := range Settings() {
		for _, name := range s.Env {
			known[name] = true
			all = append(all, name)
		}
	}
	var unknown []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "CROSSFADE_") || known[name] {
			continue
		}
		remedy := "see docs/configuration.md for the names"
		if near := nearest(name, all); near != "" {
			remedy = "did you mean " + near + "?"
		}
		unknown = append(unknown, name+": no setting has this environment variable; "+remedy)
	}
	return unknown
}
