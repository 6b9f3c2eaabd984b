package flags_test

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/devstack"
)

func wishFor(percent float64, tenant string) (flags.Variant, flags.Reason) {
	w := flags.Wishes{Rule: &flags.Rule{Default: flags.MQTT, Percent: percent, PercentVariant: flags.JetStream}}
	v, reason, _ := w.For(tenant)
	return v, reason
}

func TestRaisingThePercentageMovesNobodyOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenant := rapid.StringN(1, 64, 256).Draw(t, "tenant")
		// All the way up, in steps of a drawn size, from 0 to 100 percent.
		step, since := rapid.IntRange(1, 100).Draw(t, "step"), -1
		for hundredths := 0; hundredths <= 10_000; hundredths += step {
			switch v, _ := wishFor(float64(hundredths)/100, tenant); {
			case v == flags.JetStream && since < 0:
				since = hundredths
			case v != flags.JetStream && since >= 0:
				t.Fatalf("tenant %q is in at %d hundredths of a percent and out at %d", tenant, since, hundredths)
			}
		}
		if v, reason := wishFor(0, tenant); v != flags.MQTT || reason != flags.ReasonDefault {
			t.Fatalf("tenant %q is in at 0 percent", tenant)
		}
		if v, reason := wishFor(100, tenant); v != flags.JetStream || reason != flags.ReasonPercent {
			t.Fatalf("tenant %q is out at 100 percent", tenant)
		}
	})
}

// The boundary is exact for every percentage that can be typed: a tenant in
// bucket b comes in at (b+1)/100 percent, whatever binary floating point makes of it.
func TestPercentageBoundaryIsExact(t *testing.T) {
	for i := range 5_000 {
		tenant := fmt.Sprintf("tenant-%d", i)
		b := flags.Bucket(flags.FlagKey, tenant)
		if v, _ := wishFor(float64(b)/100, tenant); v != flags.MQTT {
			t.Fatalf("bucket %d is in at %g percent", b, float64(b)/100)
		}
		if v, _ := wishFor(float64(b+1)/100, tenant); v != flags.JetStream {
			t.Fatalf("bucket %d is out at %g percent", b, float64(b+1)/100)
		}
	}
}

// Tenants named as people name them spread evenly: chi-squared over 100 groups
// of buckets stays below 180 (99 degrees of freedom; by chance once in a million).
func TestBucketsAreNearUniform(t *testing.T) {
	names := map[string]func(int) string{
		"counted": func(i int) string { return fmt.Sprintf("t%d", i) },
		"padded":  func(i int) string { return fmt.Sprintf("customer-%08d", i) },
		"suffix":  func(i int) string { return fmt.Sprintf("%d.example.org", i) },
	}
	for name, tenant := range names {
		t.Run(name, func(t *testing.T) {
			const tenants, groups = 100_000, 100
			var count [groups]float64
			for i := range tenants {
				count[flags.Bucket(flags.FlagKey, tenant(i))*groups/flags.Buckets]++
			}
			chi := 0.0
			for _, n := range count {
				chi += math.Pow(n-tenants/groups, 2) / (tenants / groups)
			}
			if chi > 180 {
				t.Fatalf("chi-squared is %g", chi)
			}
		})
	}
}

// Two flags must not pick the same tenants.
func TestBucketDependsOnTheFlag(t *testing.T) {
	same := 0
	for i := range 10_000 {
		tenant := fmt.Sprintf("t%d", i)
		if flags.Bucket("a", tenant) < 5_000 == (flags.Bucket("b", tenant) < 5_000) {
			same++
		}
	}
	if same < 4_500 || same > 5_500 {
		t.Fatalf("%d of 10000 tenants are on the same side under both flags", same)
	}
}

// The formula is a promise: known values, and PostgreSQL as a second implementation.
func TestBucketAgreesWithItsDocumentation(t *testing.T) {
	pool := openPool(t, devstack.TestDatabase(t))
	for _, tenant := range []string{"t1", "t2", "acme", "Zürich ☂", "", "a/b"} {
		var want int
		err := pool.QueryRow(t.Context(), `SELECT (('x' || encode(substr(sha256(convert_to($1, 'UTF8') || '\x00'::bytea
			|| convert_to($2, 'UTF8')), 1, 4), 'hex'))::bit(32)::bigint % 10000)::int`, flags.FlagKey, tenant).Scan(&want)
		if err != nil {
			t.Fatal(err)
		}
		if got := flags.Bucket(flags.FlagKey, tenant); got != want {
			t.Errorf("bucket of %q is %d, in SQL %d", tenant, got, want)
		}
	}
	if got := flags.Bucket(flags.FlagKey, "t1"); got != 876 {
		t.Errorf("bucket of t1 is %d and was 876 in the first release: tenants would move", got)
	}
}
