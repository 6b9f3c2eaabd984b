package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// TestNotify: listeners learn the tenants of a batch's fresh telemetry, in as many
// payloads as PostgreSQL's bound makes necessary.
func TestNotify(tt *testing.T) {
	t := newStoreTest(tt)
	conn := schemaConn(tt, t.url)
	schemaExec(tt, conn, `LISTEN telemetry_inserted`)
	at := func(tenant, payload string) store.Entry {
		return entryOf(copyOf("tenant/"+tenant+"/device/d1/telemetry", payload, noon))
	}
	// next returns what is told of one batch; a sentinel tenant ends it.
	next := func() (tenants []string, payloads int) {
		t.commit(at("~end", fmt.Sprintf(`{"ts":%q}`, time.Now().Format(time.RFC3339Nano))))
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			n, err := conn.WaitForNotification(ctx)
			cancel()
			t.must(err)
			var list []string
			t.must(json.Unmarshal([]byte(n.Payload), &list))
			if n.Channel != "telemetry_inserted" || len(n.Payload) >= 8000 {
				t.Fatalf("%d bytes on %s", len(n.Payload), n.Channel)
			}
			if slices.Equal(list, []string{"~end"}) {
				return tenants, payloads
			}
			tenants, payloads = append(tenants, list...), payloads+1
		}
	}
	batch := []store.Entry{at("t2", `{"seq":1}`), at(`t"é\`, `{"seq":1}`), at("t2", `{"seq":2}`), refuse(at("t3", `{"seq":1}`), pipeline.TokenInvalid),
		entryOf(copyOf("tenant/t4/device/d1/shadow/reported", `{"reported":{}}`, noon)), at("t1", `{"seq":1}`)}
	t.commit(batch...)
	if got, n := next(); n != 1 || !slices.Equal(got, []string{`t"é\`, "t1", "t2"}) {
		t.Errorf("%d payloads: %q", n, got)
	}
	t.commit(batch...)
	if got, _ := next(); got != nil {
		t.Errorf("copies that are not fresh: %q", got)
	}
	batch = nil
	for i := range 300 {
		batch = append(batch, at(fmt.Sprintf("%04d%s", i, strings.Repeat("x", 60)), `{"seq":1}`))
	}
	t.commit(batch...)
	if got, n := next(); n != 3 || len(got) != 300 || !slices.IsSorted(got) {
		t.Errorf("%d payloads with %d tenants", n, len(got))
	}
}
