package pipeline_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline"
)

// TestForget: one huge message does not keep its memory for those that come after it.
func TestForget(t *testing.T) {
	dec := pipeline.NewDecoder(pipeline.DefaultMessageIDMember)
	messages := make([]pipeline.Message, 50)
	decode := func(body string) {
		for i := range messages {
			d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: []byte(body), Receipt: fuzzReceipt{}}
			dec.Decode(&messages[i], &d)
			messages[i].Metrics()
			messages[i].Forget()
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // the first may only have begun to sweep
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	decode(`{"metrics":{"a":1}}`)
	before := heap()
	decode(`{"metrics":{"a":[` + strings.Repeat(`"\u00e9",`, 300_000) + `1]}}`)
	if after := heap(); after > before+16<<20 {
		t.Errorf("%d MiB are kept after %d messages of 3 MB each", (after-before)>>20, len(messages))
	}
	runtime.KeepAlive(messages)
}
