package process_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/process"
)

// TestOneOutcomeInAnyOrder (promises P2 and P3): both copies of every message, and
// some of them again, go to one Processor in any order and any batches. Each
// message has one outcome: one ledger row, and one row or quarantine row.
func TestOneOutcomeInAnyOrder(t *testing.T) {
	r := newAgreeRig(t, func(o *process.Options) {
		agreeOptions[0](o)
		o.BatchSize, o.RecentIDs = 7, 10
	})
	checks := 0
	rapid.Check(t, func(t *rapid.T) {
		checks++
		f := drawScene(t, fmt.Sprintf("o%d", checks))
		r.registerScene(f)
		type copied struct {
			pipeline.Delivery
			at time.Time
		}
		var copies []copied
		sent := newSent()
		for _, messages := range f.messages {
			for _, w := range messages {
				for _, d := range []pipeline.Delivery{w.overMQTT(), w.overJetStream()} {
					sent.add(d, w.at)
					for range rapid.SampledFrom([]int{1, 1, 2, 3}).Draw(t, "deliveries") {
						late := time.Duration(rapid.IntRange(0, 29).Draw(t, "late")) * time.Second
						copies = append(copies, copied{d, w.at.Add(late)})
					}
				}
			}
		}
		for i, at := range rapid.Permutation(copies).Draw(t, "order") {
			r.deliverAt(at.Delivery, at.at)
			if i%50 == 49 {
				r.drain()
			}
		}
		r.drain()
		r.checkOutcomes(t, f, sent)
		r.forget()
	})
}

// sent are the messages that were sent, by every ID that they may have.
type sent struct {
	messages map[*sentMessage]bool
	byID     map[pipeline.ID]*sentMessage
	decoder  *pipeline.Decoder
}

type sentMessage struct {
	kind   pipeline.Kind
	bodies [][]byte
}

func newSent() *sent {
	return &sent{map[*sentMessage]bool{}, map[pipeline.ID]*sentMessage{}, pipeline.NewDecoder(pipeline.DefaultMessageIDMember)}
}

// add notes a copy. An anonymous message may be known by the ID of a late copy.
func (s *sent) add(d pipeline.Delivery, at time.Time) {
	var m pipeline.Message
	d.Receipt = dated{nil, at}
	if s.decoder.Decode(&m, &d); m.Kind == pipeline.KindDownlink {
		return
	}
	known, ok := s.byID[m.ID]
	if !ok {
		known = &sentMessage{kind: m.Kind}
		s.messages[known] = true
	}
	known.bodies = append(known.bodies, d.Body)
	s.byID[m.ID] = known
	if m.Anonymous {
		for _, id := range m.ID.Neighbours() {
			s.byID[id] = known
		}
	}
}

// checkOutcomes holds the database against the messages that were sent.
func (r *rig) checkOutcomes(t *rapid.T, f *scene, s *sent) {
	var id [16]byte
	var outcome int16
	written := 0
	r.each(`SELECT message_id, outcome FROM crossfade_ledger`, []any{&id, &outcome}, func() {
		switch m := s.byID[id]; {
		case m == nil:
			t.Errorf("the ledger holds %x, which nobody sent", id)
		case outcome == 1 && m.kind == pipeline.KindTelemetry:
			written++
		}
	})
	for what, c := range map[string]struct {
		want int
		sql  string
	}{
		"ledger rows":                            {len(s.messages), `SELECT count(*) FROM crossfade_ledger WHERE $1 <> ''`},
		"telemetry rows":                         {written, `SELECT count(*) FROM telemetry WHERE device_id LIKE $1 || '-%'`},
		"quarantine rows not in ledger":          {0, `SELECT count(*) FROM quarantine_events AS q LEFT JOIN crossfade_ledger AS l USING (message_id) WHERE l.outcome IS DISTINCT FROM 2 AND $1 <> ''`},
		"outbox rows of one route for a message": {0, `SELECT count(*) - count(DISTINCT (route_id, message_id)) FROM crossfade_outbox WHERE $1 <> ''`},
		"refused without quarantine":             {0, `SELECT count(*) FROM crossfade_ledger AS l LEFT JOIN quarantine_events AS q USING (message_id) WHERE l.outcome = 2 AND q.id IS NULL AND $1 <> ''`},
		"second quarantine rows":                 {0, `SELECT count(*) - count(DISTINCT message_id) FROM quarantine_events WHERE $1 <> ''`},
		"uncounted quarantine rows":              {0, `SELECT (SELECT count(*) FROM quarantine_events) - (SELECT coalesce(sum(cnt), 0) FROM quarantine_counters_minute)::int WHERE $1 <> ''`},
	} {
		if got := r.count(c.sql, f.prefix); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
	var raw []byte
	r.each(`SELECT message_id, raw FROM quarantine_events`, []any{&id, &raw}, func() {
		if m := s.byID[id]; m == nil || !slices.ContainsFunc(m.bodies, func(b []byte) bool { return bytes.Equal(b, raw) }) {
			t.Errorf("nobody sent the raw bytes %.200q of %x in quarantine", raw, id)
		}
	})
	if t.Failed() {
		t.Logf("messages:\n%s", f.named(strings.Join(slices.Collect(maps.Keys(f.messages)), " ")))
	}
}
