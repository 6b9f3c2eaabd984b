package bridge

import (
	"testing"

	"github.com/crossfade-io/crossfade/pipeline/check"
)

// FuzzAppSetting: whatever operators write into app_settings, what is taken is
// within its range.
func FuzzAppSetting(f *testing.F) {
	for _, s := range []string{"5", "0", "-0", "-1", "1e6", "1e7", "NaN", "Inf", "0x10", "1_000", "5.5", "", " 5", "\"5\"", "9223372036854775808", "1e400", "5e-324", "8192", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		for _, row := range appSettingRows {
			s := check.DefaultSettings()
			if !row.set(&s, value) {
				continue
			}
			if !(s.RateLimit >= 0 && s.RateLimit <= 1e6) || s.RateBurst < 1 || s.RateBurst > 1e6 || s.MaxPayloadBytes < 64 || s.MaxPayloadBytes > 1<<20 {
				t.Fatalf("%s is %q: taken as %+v", row.key, value, s)
			}
		}
	})
}
