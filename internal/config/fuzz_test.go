package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/internal/config"
)

// FuzzEndpoint: whatever stands before the @ of a URL is not shown.
func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"mqtt://u:", "mqtt://", "", "u:", "://", "mqtt://u:p/", "mqtt://%zz:", "mqtt://[::1", "?", "#", "a@b:", "mqtt://u:1/"} {
		f.Add(s, "", "h:1883")
		f.Add(s, "/x?y#", "h")
	}
	f.Fuzz(func(t *testing.T, before, between, host string) {
		const secret = "S3cr3tP4ss"
		e := config.Endpoint(before + secret + between + "@" + host)
		text, err := e.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		for _, shown := range []string{e.String(), fmt.Sprint(e), fmt.Sprintf("%q %v %+v %#v %x %d", e, e, e, e, e, e), e.LogValue().String(), string(text)} {
			if strings.Contains(strings.ToLower(shown), strings.ToLower(secret)) {
				t.Fatalf("%q is shown as %q", string(e), shown)
			}
		}
	})
}
