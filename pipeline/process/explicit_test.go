package process_test

import (
	"sync"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// TestTheContentThatCountsIsTold: two instances get the same ID with different content.
// The first counts, and the second does not take what it has itself for that.
func TestTheContentThatCountsIsTold(t *testing.T) {
	const first, second = `{"message_id":"m","site_id":"s1","metrics":{"v":1}}`, `{"message_id":"m","site_id":"s1","metrics":{"v":2}}`
	identity := func(body string) pipeline.Identity {
		d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Body: []byte(body), Receipt: new(receipt)}
		var m pipeline.Message
		pipeline.NewDecoder("message_id").Decode(&m, &d)
		return m.Identity
	}
	one, two := identity(first), identity(second)
	url := database(t)
	var mu sync.Mutex
	var told []pipeline.Identity
	a, b := newRig(t, url, nil), newRig(t, url, func(o *process.Options) {
		o.Committed = func(ids []pipeline.Identity) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, ids...)
		}
	})
	a.mqtt(first)
	a.drain()
	b.mqtt(second)
	b.drain()
	b.wantCount(1, `SELECT count(*) FROM telemetry WHERE metrics->>'v' = '1'`)
	b.wantCount(1, `SELECT count(*) FROM telemetry`)
	if k := a.Recent(&one); !k.Durable || k.Differs {
		t.Errorf("where it counted, the first: %+v", k)
	}
	if k := a.Recent(&two); !k.Durable || !k.Differs {
		t.Errorf("where it counted, the second: %+v", k)
	}
	if k := b.Recent(&one); k.Differs {
		t.Errorf("where it did not count, the first: %+v", k)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 0 {
		t.Errorf("the second is told as what counts: %+v", told)
	}
}
