package pipeline_test

import (
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

func TestParseTimestamp(t *testing.T) {
	day := time.Date(2026, 2, 9, 0, 0, 0, 0, time.UTC)
	at := day.Add(9*time.Hour + 15*time.Minute + 23*time.Second)
	micros := func(n int) time.Time { return at.Add(time.Duration(n) * time.Microsecond) }
	for s, want := range map[string]time.Time{
		"2026-02-09T09:15:23Z":           at,
		"2026-02-09T09:15:23.045Z":       micros(45_000),
		"2026-02-09t09:15:23z":           at,
		"2026-02-09 09:15:23Z":           at,
		"2026-02-09 09:15:23":            at,
		"2026-02-09T09:15:23":            at,
		"2026-02-09 09:15:23.5 +01:00":   micros(500_000).Add(-time.Hour),
		"2026-02-09T11:15:23+02:00":      at,
		"2026-02-09T11:15:23+0200":       at,
		"2026-02-09T11:15:23+02":         at,
		"2026-02-09T03:45:23-05:30":      at,
		"2026-02-09T09:15:23-00:00":      at,
		"20260209T091523Z":               at,
		"20260209T091523":                at,
		"20260209T091523.000001Z":        micros(1),
		"20260209T111523+0200":           at,
		"20260209":                       day,
		"2026-02-09":                     day,
		"2026-02-09T09:15":               at.Truncate(time.Minute),
		"2026-02-09T09":                  at.Truncate(time.Hour),
		"2026-02-09T09:15:23.1Z":         micros(100_000),
		"2026-02-09T09:15:23,1Z":         micros(100_000),
		"2026-02-09T09:15:23.123456789Z": micros(123_456),
		"2026-02-09T09:15:23.9999999Z":   micros(999_999),
		"2026-02-09T09:15:23." + strings.Repeat("9", 5000) + "Z": micros(999_999),
		"2024-02-29":                  time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC),
		"0001-01-01T00:00:00Z":        time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC),
		"9999-12-31T23:59:59.999999Z": time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
		"2026-02-09T00:30:00+23:59":   day.Add(30*time.Minute - 23*time.Hour - 59*time.Minute),
		"1969-12-31T23:59:59.999Z":    time.Date(1969, 12, 31, 23, 59, 59, 999_000_000, time.UTC),
	} {
		got, ok := pipeline.ParseTimestamp(s)
		if !ok || !got.Equal(want) || got.Location() != time.UTC {
			t.Errorf("%.60q is %v, %v; want %v", s, got, ok, want)
		}
	}
}

func TestParseTimestampRefuses(t *testing.T) {
	for _, s := range []string{
		"", " ", "yesterday", "now", "1760000000", "1760000000.5", "1.76e9", "null",
		"2026", "2026-02", "2026-02-0", "2026-2-9", "26-02-09", "2026/02/09", "2026-0209", "202602-09", "2026-W07-1", "2026-040",
		"2026-00-09", "2026-13-09", "2026-02-00", "2026-02-30", "2025-02-29", "2100-02-29", "2026-04-31",
		"0000-01-01", "-001-01-01", "+2026-02-09", "10000-01-01", "99999-02-09",
		"2026-02-09T", "2026-02-09T9", "2026-02-09T24:00:00Z", "2026-02-09T09:60:00Z", "2026-02-09T09:15:60Z", "2026-02-09T09:15:23.Z", "2026-02-09T09:15:23.",
		"2026-02-09T09:15:23+24:00", "2026-02-09T09:15:23+02:60", "2026-02-09T09:15:23+", "2026-02-09T09:15:23+2", "2026-02-09T09:15:23ZZ", "2026-02-09T09:15:23Z ",
		"2026-02-09T09:15:23 CET", "2026-02-09T09:15:23Z[Europe/Berlin]", "2026-02-09Z", "2026-02-09T09:15:23\x00", "2026-02-09\x00", " 2026-02-09",
		"２０２６-02-09", "2026-02-09T-9:15:23", "2026-02-09T09:-5:23", "2026‐02‐09",
		"0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01",
	} {
		if got, ok := pipeline.ParseTimestamp(s); ok {
			t.Errorf("%q is %v, want none", s, got)
		}
	}
}

// FuzzParseTimestamp: whatever is accepted is a time that PostgreSQL and RFC 3339
// can hold, and reads the same when it is written as such.
func FuzzParseTimestamp(f *testing.F) {
	for _, s := range []string{"2026-02-09T09:15:23.045Z", "20260209T091523+0530", "2026-02-09 09:15:23", "0001-01-01", "9999-12-31T23:59:59-00:01", "2026-02-09T09:15:23,999999999 -01", "0001-01-01T0:00:00,0Z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := pipeline.ParseTimestamp(s)
		if !ok {
			if std, err := time.Parse(time.RFC3339Nano, s); err == nil && std.UTC().Year() >= 1 && std.UTC().Year() <= 9999 && len(s) >= 20 && s[4] == '-' && s[13] == ':' { // time.Parse takes hours of one digit, too
				t.Fatalf("%q is RFC 3339, but refused", s)
			}
			return
		}
		if y := got.Year(); y < 1 || y > 9999 || got.Nanosecond()%1000 != 0 || got.Location() != time.UTC {
			t.Fatalf("%q is %v", s, got)
		}
		if again, ok := pipeline.ParseTimestamp(got.Format(time.RFC3339Nano)); !ok || !again.Equal(got) {
			t.Fatalf("%q is %v, but written as RFC 3339 %v, %v", s, got, again, ok)
		}
		if std, err := time.Parse(time.RFC3339Nano, s); err == nil && !std.UTC().Truncate(time.Microsecond).Equal(got) {
			t.Fatalf("%q is %v, time.Parse says %v", s, got, std)
		}
	})
}
