package bridge_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge/parity"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// parity is what was counted for tenants since the stack began.
func (s *stack) parity(tenants ...string) []parity.Window {
	s.t.Helper()
	w, err := parity.Windows(s.t.Context(), s.pool, tenants, time.Now().Add(-time.Hour))
	if err != nil {
		s.t.Fatal(err)
	}
	return w
}

// stay wishes a stage in which a tenant may stay for ever, and waits until every
// instance decides by it.
func (s *stack) stay(wish stage.Stage, tenant string) {
	s.t.Helper()
	if _, err := flags.OpenStore(s.pool).SetTargets(s.t.Context(), []string{tenant}, flags.Variant(wish), s.t.Name(), ""); err != nil {
		s.t.Fatal(err)
	}
	devstack.Await(s.t, tenant+" is in stage "+string(wish), func() bool {
		return s.count(`SELECT count(*) FROM crossfade_stages WHERE tenant_id = $1 AND stage = $2`, tenant, string(wish)) == 1 &&
			s.count(`SELECT count(*) FROM crossfade_instances WHERE confirmed_revision < (SELECT max(epoch) FROM crossfade_stages)`) == 0
	})
}

// commitElsewhere writes an MQTT message of device d1, as another instance would.
func (s *stack) commitElsewhere(tenant, payload string) {
	s.t.Helper()
	st, err := store.Open(s.t.Context(), store.DefaultConfig(s.database))
	if err != nil {
		s.t.Fatal(err)
	}
	defer st.Close()
	d := &pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/" + tenant + "/device/d1/telemetry", Receipt: noReceipt{}, Body: []byte(payload)}
	entry := store.Entry{Msg: new(pipeline.Message), Device: &pipeline.Device{Site: "s"}}
	pipeline.NewDecoder("message_id").Decode(entry.Msg, d)
	if err := st.Commit(s.t.Context(), []store.Entry{entry}); err != nil {
		s.t.Fatal(err)
	}
}

// TestStandbyInASmallWindow: one tenant's copies stand by for an hour, since their
// siblings never come, among those of another that does not stand by, in a session
// of 20 unacknowledged messages. Nothing waits for the hour: neither the other's
// messages nor PUBACKs, but for the last few of the one (P6).
func TestStandbyInASmallWindow(t *testing.T) {
	for _, window := range []int{20, 2, 1} {
		t.Run(fmt.Sprint(window), func(t *testing.T) {
			s := newStack(t)
			c := s.config("a")
			c.Mirror, c.JetStream, c.NATS = nil, nil, nil
			c.StandbyWait = time.Hour
			c.MQTT.Window = window
			s.register("acme", "globex")
			i := s.start(c)
			s.stay(stage.Shadow, "acme")
			s.stay(stage.Live, "globex")
			two := some()
			two.Tenants, two.Devices, two.PerDevice = 2, 4, 25
			record := s.play(two)
			sound := 0
			for _, d := range record.Devices() {
				if d.Tenant == "acme" {
					sound += int(two.PerDevice)
				}
			}
			held := window / 2 // at most, with nothing more arriving
			const few = 10     // a loaded machine may let the lease lapse, and then nothing stands by for a while
			all := int(record.Counts().Acked)
			devstack.Await(t, "all but the last are written", func() bool {
				return s.count(`SELECT count(*) FROM crossfade_ledger`) >= all-held && s.count(`SELECT count(*) FROM telemetry WHERE tenant_id = 'acme'`)+
					s.count(`SELECT count(*) FROM quarantine_events WHERE tenant_id = 'acme'`)+
					s.count(`SELECT count(*) FROM device_state WHERE tenant_id = 'acme' AND reported_version > 0`) >= sound
			})
			if err := i.shutdown(); err != nil {
				t.Error(err)
			}
			w := s.parity("acme", "globex")
			if w[0].Total() != 0 || w[1].Matched != 0 || w[1].RescuedFull != w[1].Rescued || w[1].Rescued < few {
				t.Errorf("parity of %d messages, %d of them acme's: %+v", all, sound, w)
			}
			th := parity.DefaultThresholds()
			th.MinMessages = few
			if a, g := parity.Judge(w[0], th), parity.Judge(w[1], th); a.Verdict != parity.Inconclusive || g.Verdict != parity.Fail {
				t.Errorf("acme %+v, globex %+v", a, g)
			}
		})
	}
}

// TestParityIsSeen from both sources to the tables: a tenant whose paths agree, and one
// of whose messages says something else on the path that stands by.
func TestParityIsSeen(t *testing.T) {
	s := newStack(t)
	c := s.config("a")
	c.StandbyWait = time.Minute
	c.Pipeline.IDMember = "message_id"
	s.register("acme", "liar")
	i := s.start(c)
	few := some()
	few.Tenants, few.Devices, few.PerDevice = 1, 5, 40
	for _, tenant := range []string{"acme", "liar"} {
		s.stay(stage.Shadow, tenant) // JetStream stands by
	}
	record := s.play(few)
	s.reconcile(record)

	const payload = `{"message_id":"m-1","site_id":"s","provision_token":"tok","metrics":{"v":%d}}`
	s.commitElsewhere("liar", fmt.Sprintf(payload, 1))
	envelope := `{"topic":"tenant/liar/device/d1/telemetry","tenant_id":"liar","device_id":"d1","msg_type":"telemetry","payload":` + fmt.Sprintf(payload, 2) + `}`
	if _, err := s.jetstream().Publish(t.Context(), "telemetry.liar", []byte(envelope)); err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "parity is written while the instance runs", func() bool {
		w := s.parity("acme", "liar")
		return w[0].Matched > 0 && w[1].Mismatched > 0
	})
	if err := i.shutdown(); err != nil {
		t.Error(err)
	}
	w := s.parity("acme", "liar")
	if w[0].Matched < record.Counts().Acked || w[0].Rescued != 0 || w[0].Mismatched != 0 || w[0].Skew.Count() != w[0].Matched {
		t.Errorf("of %d messages: %+v", record.Counts().Acked, w[0])
	}
	if got := parity.Judge(w[0], parity.DefaultThresholds()); got.Verdict != parity.Pass {
		t.Errorf("acme: %+v", got)
	}
	if got := parity.Judge(w[1], parity.DefaultThresholds()); got.Verdict != parity.Fail || w[1].Total() != 1 {
		t.Errorf("liar: %+v, %+v", got, w[1].Counts)
	}
	samples, err := parity.Samples(t.Context(), s.pool, "liar", 10)
	if err != nil || len(samples) != 1 {
		t.Fatal(samples, err)
	}
	if x := samples[0]; x.Path != pipeline.PathJetStream || x.Digest == x.Other || !strings.Contains(x.Payload, `"v":2`) || strings.Contains(x.Payload, "tok\"") {
		t.Errorf("the sample is %+v", x)
	}
	if n := s.count(`SELECT count(*) FROM telemetry WHERE tenant_id = 'liar' AND (metrics->>'v')::int = 1`); n != 1 {
		t.Errorf("%d rows of what came first", n)
	}
}
