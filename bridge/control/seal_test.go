package control

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// TestSeal: what one instance makes another takes for genuine, for that tenant, and
// nothing else; later nonces are greater, and can travel as a sentinel's.
func TestSeal(t *testing.T) {
	pool := migrated(t)
	seals := make([]*Seal, 8)
	var parts sync.WaitGroup
	for i := range seals { // all at once, in a new installation
		parts.Go(func() {
			var err error
			if seals[i], err = OpenSeal(t.Context(), pool); err != nil {
				t.Error(err)
			}
		})
	}
	parts.Wait()
	if t.Failed() {
		return
	}
	before := ""
	for i := range 200 {
		nonce := seals[i%len(seals)].Nonce("t")
		other := seals[(i+1)%len(seals)]
		if !other.Genuine("t", nonce) {
			t.Fatalf("%s is not genuine to another instance", nonce)
		}
		flip := func(at int) string {
			b := []byte(nonce)
			b[at] ^= 1
			return string(b)
		}
		for what, forged := range map[string]string{
			"of another tenant": "", "empty": "", "cut": nonce[1:], "longer": nonce + "0", "of another time": flip(8),
			"of other bits": flip(sealTime), "with another code": flip(len(nonce) - 1),
		} {
			tenant := "t"
			if what == "of another tenant" {
				tenant, forged = "t2", nonce
			}
			if other.Genuine(tenant, forged) {
				t.Errorf("genuine: %s", what)
			}
		}
		if nonce[:sealTime] < before {
			t.Errorf("%s comes after %s", nonce, before)
		}
		before = nonce[:sealTime]
	}
	d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: pipeline.SentinelTopic("t", pipeline.SentinelTelemetry),
		Body: pipeline.SentinelPayload(seals[0].Nonce("t")), Receipt: noReceipt{}}
	if s, ok := pipeline.SentinelOf(&d); !ok || !seals[1].Genuine(s.Tenant, s.Nonce) {
		t.Errorf("after its travels: %+v, %v", s, ok)
	}
}

type noReceipt struct{}

func (noReceipt) Ack() error          { return nil }
func (noReceipt) Release() error      { return nil }
func (noReceipt) Occurred() time.Time { return time.Now() }

// TestSealIsReadAgain: somebody has emptied the table; the installation agrees on another
// key without a restart.
func TestSealIsReadAgain(t *testing.T) {
	pool := migrated(t)
	n := start(t, brisk(t, pool, "a", newOracle(stage.MQTT), nil))
	if n.Genuine("t", "") || n.Genuine("t", strings.Repeat("0", sealTime+2*sealRandom)) {
		t.Error("anything is genuine")
	}
	execute(t, pool, `TRUNCATE crossfade_seal`)
	seal, err := OpenSeal(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	devstack.Await(t, "the new key is known", func() bool { return n.Genuine("t", seal.Nonce("t")) })
}

// TestExpiry: sentinels that measure do not pile up in sessions that are away; those for
// a proof are kept for as long as anybody counts on them.
func TestExpiry(t *testing.T) {
	pool := migrated(t)
	register(t, pool, "t")
	p := &courier{mute: map[pipeline.Path]bool{}}
	options := brisk(t, pool, "a", newOracle(stage.Shadow), p)
	options.BeatEvery, options.Missing = 100*time.Millisecond, 10*time.Second
	o := options.Wishes.(*oracle)
	n := start(t, options)
	p.set(func(p *courier) { p.carriers = []*Control{n.Control} })
	sent := func(expiry time.Duration) func() bool {
		return func() (found bool) {
			p.set(func(p *courier) {
				found = slices.ContainsFunc(p.sent, func(s Sentinel) bool { return s.Tenant == "t" && s.Expiry == expiry })
			})
			return found
		}
	}
	devstack.Await(t, "a beat was sent", sent(20*time.Second))
	o.wish(stage.MQTT)
	devstack.Await(t, "one was sent for a proof", sent(proofExpiry))
}
