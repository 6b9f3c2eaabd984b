package legacy_mqtt

import (
	"bytes"
	"slices"
	"testing"

	"github.com/eclipse/paho.golang/packets"
	"pgregory.net/rapid"
)

// TestFramesAreFollowed through packets of all lengths, in whatever pieces they are read.
func TestFramesAreFollowed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var wire bytes.Buffer
		var want []int64
		for range rapid.IntRange(1, 8).Draw(t, "packets") {
			if rapid.Bool().Draw(t, "publish") {
				p := &packets.Publish{Topic: "t", QoS: 1, PacketID: 7, Properties: &packets.Properties{}}
				p.Payload = make([]byte, rapid.OneOf(rapid.IntRange(0, 300), rapid.SampledFrom([]int{
					127 - 6, 128 - 6, 16383 - 6, 16384 - 6, 2097151 - 6, 2097152 - 6})).Draw(t, "payload"))
				before := wire.Len()
				if _, err := p.WriteTo(&wire); err != nil {
					t.Fatal(err)
				}
				n := wire.Len() - before
				for _, digits := range []int{1, 2, 3, 4} { // of the length
					if body := n - 1 - digits; body>>(7*digits) == 0 && body>>(7*(digits-1)) > 0 {
						want = append(want, int64(body))
					}
				}
			} else if _, err := (&packets.Pingresp{}).WriteTo(&wire); err != nil {
				t.Fatal(err)
			}
		}
		f := newInflow(func(int64) bool { return false })
		for rest := wire.Bytes(); len(rest) > 0; {
			n := min(rapid.OneOf(rapid.IntRange(1, 3), rapid.IntRange(1, 1<<22)).Draw(t, "piece"), len(rest))
			f.read(rest[:n])
			rest = rest[n:]
		}
		if !slices.Equal(f.sizes, want) {
			t.Fatalf("sizes %v, want %v", f.sizes, want)
		}
		if f.frame.part != atStart {
			t.Fatal("no packet is over at the end")
		}
	})
}
