package legacy_mqtt

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestAcksKeepOrder holds the ledger against the rule it implements: PUBACKs
// are sent in order of arrival, each once, as soon as everything before it is
// acknowledged, and never from a released message on. Who waits for some of them is
// told once those are acknowledged, neither sooner nor later.
func TestAcksKeepOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			ledger  acks
			arrived []ackState // by sequence number
			open    []uint64
			sent    []uint16
			waits   []int // who waits for the first n messages
			told    []int // who was told that they are acknowledged
		)
		puback := func(id uint16) { sent = append(sent, id) }
		t.Repeat(map[string]func(*rapid.T){
			"arrive": func(t *rapid.T) {
				for range rapid.IntRange(1, 100).Draw(t, "messages") {
					seq := ledger.expect(uint16(len(arrived))+1, arrival{})
					if seq != uint64(len(arrived)) {
						t.Fatalf("sequence number %d, want %d", seq, len(arrived))
					}
					arrived = append(arrived, ackOpen)
					open = append(open, seq)
				}
			},
			"settle": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip("nothing is open")
				}
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				seq := open[i]
				open = slices.Delete(open, i, i+1)
				arrived[seq] = ackGiven
				if rapid.IntRange(0, 99).Draw(t, "release") == 0 {
					arrived[seq] = ackReleased
				}
				for _, f := range ledger.settle(seq, arrived[seq], puback) {
					f()
				}
			},
			"wait": func(t *rapid.T) {
				n := rapid.IntRange(0, len(arrived)).Draw(t, "for how many")
				if !ledger.after(uint64(n), func() { told = append(told, n) }) {
					told = append(told, n)
				}
				waits = append(waits, n)
			},
			"": func(t *rapid.T) {
				due := slices.IndexFunc(arrived, func(s ackState) bool { return s != ackGiven })
				if due < 0 {
					due = len(arrived)
				}
				if len(sent) != due {
					t.Fatalf("%d PUBACKs sent, want %d", len(sent), due)
				}
				for i, id := range sent {
					if id != uint16(i)+1 {
						t.Fatalf("PUBACK %d is for packet %d, want %d", i, id, i+1)
					}
				}
				slices.Sort(told)
				slices.Sort(waits)
				if n, _ := slices.BinarySearch(waits, due+1); !slices.Equal(told, waits[:n]) {
					t.Fatalf("of those who wait for %v messages, %v were told after %d PUBACKs", waits, told, due)
				}
				blocked := due < len(arrived) && arrived[due] == ackReleased
				if ledger.blocked() != blocked {
					t.Fatalf("blocked = %v, want %v", !blocked, blocked)
				}
			},
		})
	})
}
