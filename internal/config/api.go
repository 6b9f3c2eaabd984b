package config

import (
	"fmt"
	"net"
	"strconv"
)

// API is the listener of the HTTP API for back ends and devices; off without an
// address.
type API struct {
	Listen         string  `name:"api-listen" env:"CROSSFADE_API_LISTEN" placeholder:"HOST:PORT" help:"Address of the HTTP API for back ends and devices, as 0.0.0.0:8443. Empty: no API. Port 0 takes a free one."`
	TLSCert        string  `name:"api-tls-cert" env:"CROSSFADE_API_TLS_CERT" type:"filename" placeholder:"FILE" help:"PEM file of the API's certificate, followed by its chain; needs the key too. A file that is replaced is read again within a minute."`
	TLSKey         string  `name:"api-tls-key" env:"CROSSFADE_API_TLS_KEY" type:"filename" placeholder:"FILE" help:"PEM file of that certificate's private key."`
	AllowPlaintext bool    `name:"api-allow-plaintext" env:"CROSSFADE_API_ALLOW_PLAINTEXT" default:"false" negatable:"" help:"Let --api-listen be other than loopback without a certificate: for a proxy that encrypts, on a network that nobody else can listen to. Every request carries a token."`
	DatabaseConns  int     `name:"api-database-conns" env:"CROSSFADE_API_DATABASE_CONNS" default:"4" range:"2..100" help:"Most connections to PostgreSQL for the API, besides those of --database-max-conns: a flood of requests takes none from ingest."`
	DeviceRate     float64 `name:"api-device-rate" env:"CROSSFADE_API_DEVICE_RATE" default:"10" range:"0..1000000" help:"Requests a second that a device may make of this instance in the long run, with four seconds' worth at once; what is above is answered 429. Each message of a batch counts. 0: no limit."`
	TokenRate      float64 `name:"api-token-rate" env:"CROSSFADE_API_TOKEN_RATE" default:"100" range:"0..1000000" help:"The same for each back end's token."`
}

// Enabled reports whether there is to be an API.
func (a API) Enabled() bool { return a.Listen != "" }

func (a *API) validate(p *problems, files bool, http HTTP) {
	if !a.Enabled() {
		return
	}
	switch {
	case a.TLSCert != "" && a.TLSKey == "":
		p.add("api-tls-cert", "has no key", "set --api-tls-key to the file of its private key")
	case a.TLSKey != "" && a.TLSCert == "":
		p.add("api-tls-key", "has no certificate", "set --api-tls-cert to the file of its certificate")
	case a.TLSCert != "" && files:
		keyPair(p, "api-tls-cert", a.TLSCert, a.TLSKey)
	}
	host, port, err := net.SplitHostPort(a.Listen)
	if err != nil {
		p.add("api-listen", "is not HOST:PORT", "write for example 127.0.0.1:8443, or leave it empty for no API")
		return
	}
	local := loopback(host)
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		p.add("api-listen", "the port is not a number from 0 to 65535", "write for example 127.0.0.1:8443")
	} else if n == 0 && !local {
		p.add("api-listen", "port 0 (any free one) makes no sense for remote callers", "choose a port")
	} else if n != 0 && a.Listen == http.Listen {
		p.add("api-listen", "is the same as --http-listen", "choose another port")
	}
	if !local && a.TLSCert == "" && !a.AllowPlaintext {
		p.add("api-listen", fmt.Sprintf("%q is not loopback, and every request carries a token", host),
			"set --api-tls-cert and --api-tls-key, or --api-allow-plaintext where a proxy in front of it encrypts")
	}
}

func (r *Run) apiWarnings(w *warnings) {
	a := &r.API
	if !a.Enabled() {
		if a.TLSCert != "" || a.TLSKey != "" || a.AllowPlaintext {
			w.add("api-listen", "is empty, so the other settings of the API have no effect", "set it, or remove them")
		}
		return
	}
	if !loopback(hostOf(a.Listen)) && a.TLSCert == "" {
		w.add("api-listen", "takes tokens unencrypted", "keep it behind a proxy that encrypts, on a network that nobody else can listen to, or set --api-tls-cert")
	}
	if !r.NATS.Enabled {
		w.add("api-listen", "takes nothing that devices say while NATS is not enabled: it answers them 503", "set --nats")
	}
}
