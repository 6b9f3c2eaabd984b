package jetstream

import (
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
)

// FuzzOrigin: whatever stands in the header, and whenever the stream stored the message,
// only what a mirror has signed for a time that is still ahead of that can be dropped; no
// text but one stands for HTTP.
func FuzzOrigin(f *testing.F) {
	for _, s := range []string{"", originHTTP, originUnproved, originAwaited, originAwaited + "1795435200000", originAwaited + "-1", originAwaited + "9223372036854775808", originAwaited + " 1", "HTTP", "mirror-until", "\x00\xff"} {
		f.Add(s, int64(1_795_435_200_000))
	}
	f.Fuzz(func(t *testing.T, origin string, ms int64) {
		at := time.UnixMilli(ms)
		alone := sole(origin, func() time.Time { return at })
		if http := producedBy(origin) == pipeline.OriginHTTP; http != (origin == originHTTP) || http && !alone {
			t.Fatalf("%q is taken for HTTP: %t, sole: %t", origin, http, alone)
		}
		awaited := len(origin) > len(originAwaited) && origin[:len(originAwaited)] == originAwaited
		if awaited && !alone && !sole(origin, func() time.Time { return time.Time{} }) {
			t.Fatalf("%q: a message that was stored nobody knows when may be dropped", origin)
		}
		if alone && !awaited && origin != originHTTP && origin != originUnproved && origin != originAwaited {
			t.Fatalf("%q makes a message the only copy", origin)
		}
		o := awaitedOrigin{}
		written := o.header(1, func() (uint64, time.Time) { return 1, at }).Get(headerOrigin)
		if !sole(written, func() time.Time { return at }) || !at.IsZero() && ms > 0 && sole(written, func() time.Time { return time.UnixMilli(ms - 1) }) {
			t.Fatalf("%q is not read as it was meant", written)
		}
	})
}
