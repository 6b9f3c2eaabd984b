package canonical_test

import (
	"math"
	"testing"

	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// TestMinusZeroIsZero: a serializer may write -0 as 0 (Python does, of an integer),
// and what is stored of both copies must be the same.
func TestMinusZeroIsZero(t *testing.T) {
	for _, literal := range []string{"-0", "-0.0", "-0e5", "-1e-400"} {
		var d canonical.Doc
		if err := d.Parse([]byte(literal)); err != nil {
			t.Fatal(err)
		}
		if f, ok := d.Root().Float(); !ok || f != 0 || math.Signbit(f) {
			t.Errorf("%s is read as %g", literal, f)
		}
	}
}
