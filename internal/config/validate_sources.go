package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

func (m *MQTT) validate(p *problems, files bool) {
	if m.URL == "" {
		p.add("mqtt-url", "no broker is given", "set it to mqtt://host:1883 or mqtts://host:8883, or set --no-mqtt (and neither --mirror nor --downlink)")
	} else if u := endpoint(p, "mqtt-url", m.URL, []string{"mqtt", "mqtts"}); u != nil && u.Scheme == "mqtt" && m.TLS.Set() {
		p.add("mqtt-url", "is mqtt://, but TLS settings are given that would have no effect", "use mqtts://, or remove the --mqtt-tls-… settings")
	}
	if m.Enabled {
		clientID(p, "mqtt-client-id", m.ClientID)
		shareGroup(p, "mqtt-group", m.Group)
	}
	onePassword(p, "mqtt", m.User, m.Password, m.PasswordFile, files)
	m.TLS.validate(p, "mqtt", files)
	wholeSeconds(p, "mqtt-session-expiry", m.SessionExpiry)
	wholeSeconds(p, "mqtt-keepalive", m.Keepalive)
	if len(m.Filters) == 0 {
		p.add("mqtt-filters", "is empty, so nothing would be received", "leave it out for the default, or name at least one topic filter")
	}
	for i, filter := range m.Filters {
		if wrong := filterFault(filter); wrong != "" {
			p.add("mqtt-filters", fmt.Sprintf("%q %s", filter, wrong), "write a topic filter such as tenant/+/device/+/+")
		} else if slices.Contains(m.Filters[:i], filter) {
			p.add("mqtt-filters", fmt.Sprintf("%q is given twice", filter), "keep one")
		}
	}
	if !carriable(m.UsernameProperty) {
		p.add("mqtt-username-property", "is not a name that MQTT can carry", "use UTF-8 of at most 65535 bytes")
	}
}

func (n *NATS) validate(p *problems, files bool) {
	if len(n.URLs) == 0 {
		p.add("nats-url", "no server is given", "set it to nats://host:4222, or set --no-nats")
	}
	for _, u := range n.URLs {
		endpoint(p, "nats-url", u, []string{"nats", "tls"})
	}
	var ways []string
	for _, way := range []struct {
		flag string
		set  bool
	}{
		{"--nats-credentials-file", n.Credentials != ""},
		{"--nats-nkey-seed-file", n.NKeySeed != ""},
		{"--nats-token", n.Token != "" || n.TokenFile != ""},
		{"--nats-user", n.User != ""},
	} {
		if way.set {
			ways = append(ways, way.flag)
		}
	}
	if len(ways) > 1 {
		p.add(strings.TrimPrefix(ways[0], "--"), "is set together with "+strings.Join(ways[1:], " and "), "choose one way to authenticate")
	}
	onePassword(p, "nats", n.User, n.Password, n.PasswordFile, files)
	if n.User != "" && n.Password == "" && n.PasswordFile == "" {
		p.add("nats-user", "has no password", "set --nats-password-file")
	}
	if n.Token != "" && n.TokenFile != "" {
		p.add("nats-token-file", "is set together with --nats-token", "keep one of them")
	}
	n.TLS.validate(p, "nats", files)
	if files {
		secretFile(p, "nats-credentials-file", n.Credentials)
		secretFile(p, "nats-nkey-seed-file", n.NKeySeed)
		secretFile(p, "nats-token-file", n.TokenFile)
	}
}

func (t *TLS) validate(p *problems, prefix string, files bool) {
	switch {
	case t.Cert != "" && t.Key == "":
		p.add(prefix+"-tls-cert", "has no key", fmt.Sprintf("set --%s-tls-key to the file of its private key", prefix))
	case t.Key != "" && t.Cert == "":
		p.add(prefix+"-tls-key", "has no certificate", fmt.Sprintf("set --%s-tls-cert to the file of its certificate", prefix))
	}
	if !files {
		return
	}
	if t.CA != "" {
		content, err := readBounded(t.CA)
		if err != nil {
			p.add(prefix+"-tls-ca", "cannot be read: "+err.Error(), "name a readable PEM file")
		} else if !x509.NewCertPool().AppendCertsFromPEM(content) {
			p.add(prefix+"-tls-ca", "holds no certificate in PEM form", "name the PEM file of the certificate authority")
		}
	}
	if t.Cert != "" && t.Key != "" {
		keyPair(p, prefix+"-tls-cert", t.Cert, t.Key)
	}
}

func keyPair(p *problems, flag, cert, key string) {
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		// crypto/tls never puts key material into its errors.
		p.add(flag, "certificate and key cannot be used: "+err.Error(), "name readable PEM files that belong together")
	}
}

// endpoint checks a server's URL and returns it parsed, or nil after noting what
// is wrong. Messages hold no part of the URL beyond scheme and host.
func endpoint(p *problems, flag string, e Endpoint, schemes []string) *url.URL {
	forms := strings.Join(schemes, "://host:port or ") + "://host:port"
	u, err := url.Parse(string(e))
	if err != nil || u.Host == "" {
		p.add(flag, "is not a URL with a host", "write "+forms)
		return nil
	}
	if !slices.Contains(schemes, u.Scheme) {
		p.add(flag, fmt.Sprintf("scheme %q is not supported", u.Scheme), "write "+forms)
		return nil
	}
	if u.User != nil {
		p.add(flag, "holds credentials, and URLs end up in logs and process lists",
			fmt.Sprintf("remove them and set --%[1]s-user and --%[1]s-password-file", strings.TrimSuffix(flag, "-url")))
	}
	if u.Hostname() == "" {
		p.add(flag, "names no host", "write "+forms)
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		p.add(flag, "holds more than scheme, host and port", "write "+forms)
	}
	return u
}

func onePassword(p *problems, prefix, user string, password Secret, file string, files bool) {
	if password != "" && file != "" {
		p.add(prefix+"-password-file", fmt.Sprintf("is set together with --%s-password", prefix), "keep one of them")
	}
	if user == "" && (password != "" || file != "") {
		p.add(prefix+"-user", "is empty, but a password is given", "set it, or remove the password")
	}
	if files {
		secretFile(p, prefix+"-password-file", file)
	}
}

func secretFile(p *problems, flag, path string) {
	if path == "" {
		return
	}
	if _, err := readSecret(path); err != nil {
		p.add(flag, "cannot be read: "+err.Error(), "name a readable file that holds the secret")
	}
}

// carriable reports whether a text can be an MQTT string (MQTT 5, section 1.5.4).
func carriable(text string) bool {
	return len(text) <= 65535 && utf8.ValidString(text) && !strings.ContainsRune(text, 0)
}

func clientID(p *problems, flag, id string) {
	switch {
	case id == "":
		p.add(flag, "is empty", "set it, or --bridge-instance from which it follows")
	case !carriable(id):
		p.add(flag, "is not an ID that MQTT can carry", "use UTF-8 of at most 65535 bytes")
	}
}

func shareGroup(p *problems, flag, group string) {
	if strings.ContainsAny(group, "/+#") || !carriable(group) {
		p.add(flag, "holds a character that a shared subscription's name may not hold", "leave out /, + and #")
	}
}

// filterFault says what is wrong with a topic filter (MQTT 5, section 4.7), or
// returns "".
func filterFault(filter string) string {
	switch {
	case filter == "":
		return "is empty"
	case !carriable(filter):
		return "is not text that MQTT can carry"
	case strings.HasPrefix(filter, "$share/"):
		return "is a shared subscription: the group belongs in --mqtt-group"
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		if strings.Contains(level, "#") && (level != "#" || i != len(levels)-1) {
			return "has a # that is not the whole last level"
		}
		if strings.Contains(level, "+") && level != "+" {
			return "has a + that is not a whole level"
		}
	}
	return ""
}

func wholeSeconds(p *problems, flag string, d time.Duration) {
	if d%time.Second != 0 {
		p.add(flag, d.String()+" is not whole seconds, which is all that MQTT knows", "round it")
	}
}
