package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzTags: whatever stands in If-Match or If-None-Match, a version that matches was
// named as our entity tags are written, and our own tags are always read.
func FuzzTags(f *testing.F) {
	for _, s := range []string{`"7"`, `*`, `W/"7", "8"`, `,"7" ,`, `"7`, `"7""8"`, `"-1"`, `7`, "\"\x00\"", `W/*`, `"007"`} {
		f.Add(s, int64(7))
	}
	f.Fuzz(func(t *testing.T, s string, version int64) {
		match, err := ifMatch(s)
		for _, v := range match {
			if err != nil || !strings.Contains(strings.ReplaceAll(s, "W/"+etag(v), ""), etag(v)) {
				t.Errorf("%q matches %d, error %v", s, v, err)
			}
		}
		if err == nil && match == nil && strings.Trim(s, " \t") != "" && strings.Trim(s, " \t") != "*" {
			t.Errorf("%q is no condition", s)
		}
		if noneMatch(s, version) && !strings.Contains(s, etag(version)) && strings.Trim(s, " \t") != "*" {
			t.Errorf("%q names %d", s, version)
		}
		if err == nil && match != nil {
			if more, err := ifMatch(s + ", " + etag(version)); err != nil || len(more) != len(match)+1 || !noneMatch(s+","+etag(version), version) {
				t.Errorf("%q and %d: %v, %v", s, version, more, err)
			}
		}
	})
}

// FuzzCommand: a body that is taken is a command that can be stored, and says the same
// when it is written down again.
func FuzzCommand(f *testing.F) {
	for _, s := range []string{`{"type":"x"}`, `{"type":"x","params":{"a":[1,2.5e3,"\u00e9"]},"command_id":"c-1","ttl_seconds":60}`, `{"type":"x","expires_at":"2999-01-01T00:00:00Z"}`,
		`{"type":"x","type":"y"}`, `{"type":"\ud800"}`, `{"type":"x","ttl_seconds":1e2}`, `[]`, `{"TYPE":"x"}`, `{"type":"x","command_id":"a/b"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		n, err := readCommand(raw)
		if err != nil {
			return
		}
		var params map[string]any
		if !commandID.MatchString(n.id) || n.kind == "" || len(n.kind) > maxType || !utf8.ValidString(n.kind) || strings.ContainsRune(n.kind, 0) || json.Unmarshal([]byte(n.params), &params) != nil {
			t.Fatalf("%q: %+v", raw, n)
		}
		if strings.Contains(n.params, `\u0000`) && !strings.Contains(n.params, `\\u0000`) {
			t.Fatalf("%q: U+0000", raw)
		}
		again := map[string]any{"command_id": n.id, "type": n.kind, "params": json.RawMessage(n.params)}
		if n.ttl != nil {
			again["ttl_seconds"] = *n.ttl
		}
		if n.expires != nil {
			again["expires_at"] = n.expires.Format(time.RFC3339Nano)
		}
		text, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		m, err := readCommand(text)
		if err != nil || m.id != n.id || m.kind != n.kind || (m.ttl == nil) != (n.ttl == nil) || m.ttl != nil && *m.ttl != *n.ttl ||
			(m.expires == nil) != (n.expires == nil) || m.expires != nil && !m.expires.Equal(*n.expires) {
			t.Fatalf("%q: %+v, again %+v, %v", raw, n, m, err)
		}
	})
}

// FuzzBearer: a secret is part of the header, without white space around it.
func FuzzBearer(f *testing.F) {
	for _, s := range []string{"Bearer x", "bearer  x ", "Basic eA==", "Bearer", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		secret := bearerSecret(s)
		if secret != strings.TrimSpace(secret) || !strings.Contains(s, secret) || secret != "" && !strings.EqualFold(s[:7], "bearer ") {
			t.Errorf("%q: %q", s, secret)
		}
	})
}
