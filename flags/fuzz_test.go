package flags_test

import (
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/crossfade-io/crossfade/flags"
)

// FuzzParseVariant: only the four variants are read, letter by letter, and what is
// said of others is text of bounded length.
func FuzzParseVariant(f *testing.F) {
	for _, s := range []string{"mqtt", "shadow", "live", "jetstream", "", "MQTT", "mqtt ", "mqtt\x00", "\xff", "ｍｑｔｔ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := flags.ParseVariant(s)
		if known := slices.Contains(flags.Variants(), flags.Variant(s)); known != (err == nil) || known && string(v) != s || !known && v != "" {
			t.Fatalf("%q is read as %q, %v", s, v, err)
		}
		if err != nil && (len(err.Error()) > 500 || !utf8.ValidString(err.Error())) {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

// FuzzBucket: every tenant has a bucket, the same each time.
func FuzzBucket(f *testing.F) {
	f.Add("ingest-source", "t1")
	f.Add("", "\x00\xff")
	f.Fuzz(func(t *testing.T, key, tenant string) {
		if b := flags.Bucket(key, tenant); b < 0 || b >= flags.Buckets || b != flags.Bucket(key, tenant) {
			t.Fatalf("bucket %d", b)
		}
	})
}
