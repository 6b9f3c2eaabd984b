package main

import (
	"testing"

	"github.com/crossfade-io/crossfade/internal/config"
)

// TestAPISettings reach the API, which there is only with an address.
func TestAPISettings(t *testing.T) {
	if apiConfig(config.API{AllowPlaintext: true}) != nil {
		t.Error("without an address there is an API")
	}
	c := apiConfig(config.API{Listen: "127.0.0.1:0", AllowPlaintext: true, DatabaseConns: 7, DeviceRate: 3, TokenRate: 4})
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:0" || !c.AllowPlaintext || c.MaxConns != 7 || c.DeviceRate != 3 || c.TokenRate != 4 || c.Version != version {
		t.Errorf("%+v", c)
	}
	c = apiConfig(config.API{Listen: ":8443", TLSCert: "c.pem", TLSKey: "k.pem"})
	if c.CertFile != "c.pem" || c.KeyFile != "k.pem" {
		t.Errorf("%+v", c)
	}
}
