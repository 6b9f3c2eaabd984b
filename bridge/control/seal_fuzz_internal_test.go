package control

import (
	"strings"
	"testing"
)

// FuzzGenuine: what a seal has made passes for its tenant and for nobody else, and no other
// text passes, whatever is changed of it.
func FuzzGenuine(f *testing.F) {
	f.Add("t1", "t2", "", 0)
	f.Add("t1", "1", "x", 40)
	f.Add("", "\x00", "00000000000000000000000000000000000000000", 7)
	f.Fuzz(func(t *testing.T, tenant, other, nonce string, at int) {
		ours, theirs := &Seal{[]byte("0123456789abcdef")}, &Seal{[]byte("0123456789abcdeg")}
		if ours.Genuine(tenant, nonce) {
			t.Fatalf("%q is genuine", nonce)
		}
		made := ours.Nonce(tenant)
		if !ours.Genuine(tenant, made) || theirs.Genuine(tenant, made) || other != tenant && ours.Genuine(other, made) {
			t.Fatalf("%q of %q", made, tenant)
		}
		at = max(at&0xff, 0) % len(made)
		for _, changed := range []string{made + nonce + "x", made[:at], made[:at] + "!" + made[at+1:], strings.ToLower(made[:at]) + "_" + made[at+1:]} {
			if ours.Genuine(tenant, changed) {
				t.Fatalf("%q passes for %q", changed, made)
			}
		}
	})
}
