package main

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// FuzzMoment: what is read of --since and --until is a time, and "ago" is never ahead.
func FuzzMoment(f *testing.F) {
	for _, s := range []string{"", "2026-11-23", "2026-11-23T09:00:00Z", "90m", "7d", "-1h", "0d", "200000d", "9223372036854775807d", "106752d", "213504d", "999999999d", "d", "1e9d", "2540400h", "\x00"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		at, err := parseMoment("--since", s, now)
		if err != nil {
			if !at.IsZero() {
				t.Fatalf("%q is refused and read as %v", s, at)
			}
			return
		}
		if s != "" && (s[len(s)-1] == 'd' || s[len(s)-1] == 'm' || s[len(s)-1] == 'h') && at.After(now) {
			t.Fatalf("%q ago is %v", s, at)
		}
		var days int64
		for i := range len(s) {
			if c := s[i]; c >= '0' && c <= '9' && days < 1e12 {
				days = 10*days + int64(c-'0')
			} else if i == len(s)-1 && c == 'd' {
				if got := int64(now.Sub(at) / (24 * time.Hour)); got != days {
					t.Fatalf("%q ago is %v, %d days", s, at, got)
				}
			} else {
				return
			}
		}
	})
}

// FuzzExpected: a revision that is expected is one of a tenant that was named, as it stands.
func FuzzExpected(f *testing.F) {
	for _, s := range []string{"7", "t1=7", "t1=-1", "t=2=7", "=7", "9223372036854775808", "t1=", "t1=+7", "\x00=1"} {
		f.Add(s, "t1", "t=2")
	}
	f.Fuzz(func(t *testing.T, value, one, other string) {
		for _, tenants := range [][]string{{one}, {one, other}} {
			expected, err := parseExpected([]string{value}, tenants)
			if err != nil {
				continue
			}
			for tenant, revision := range expected {
				digits := value[strings.LastIndexByte(value, '=')+1:]
				if n, err := strconv.ParseInt(digits, 10, 64); err != nil || n != revision || revision < 0 || !slices.Contains(tenants, tenant) || len(expected) != 1 {
					t.Fatalf("%q of %q is read as %v", value, tenants, expected)
				}
			}
		}
	})
}
