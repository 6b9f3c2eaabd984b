package ingest

import (
	"errors"
	"strings"
	"testing"
)

// TestReadBatchMemory: a body of 1 MiB that is full of messages costs no more than the
// messages that a batch may have.
func TestReadBatchMemory(t *testing.T) {
	const limit = 500
	for _, unit := range []string{`{},`, `{"":0},`, `[],`} {
		raw := []byte(`{"messages":[` + strings.Repeat(unit, (1<<20)/len(unit)) + `{}]}`)
		allocations := testing.AllocsPerRun(3, func() {
			if items, err := readBatch(raw, limit); !errors.Is(err, errTooMany) || items != nil {
				t.Fatalf("%d items, %v", len(items), err)
			}
		})
		if allocations > 20*limit {
			t.Errorf("%q: %v allocations for %d messages", unit, allocations, limit)
		}
	}
}
