package flags

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
)

// Buckets is the number of buckets that Bucket deals tenants into: one bucket
// is a hundredth of a percent of the tenants.
const Buckets = 10_000

// Bucket returns the bucket, 0 to Buckets-1, of a tenant under a flag: the first
// four bytes, big-endian, of SHA-256 over the flag key, a zero byte and the
// tenant ID, modulo Buckets. A tenant is within p percent when its bucket is
// less than 100·p. So raising the percentage never moves a tenant out, and
// lowering it never moves one in.
//
// The formula is a promise: changing it would move tenants. In SQL:
//
//	('x' || encode(substr(sha256(convert_to(flag_key, 'UTF8') || '\x00'::bytea
//	  || convert_to(tenant_id, 'UTF8')), 1, 4), 'hex'))::bit(32)::bigint % 10000
func Bucket(flagKey, tenant string) int {
	b := make([]byte, 0, len(flagKey)+1+len(tenant))
	b = append(b, flagKey...)
	b = append(b, 0)
	b = append(b, tenant...)
	sum := sha256.Sum256(b)
	return int(binary.BigEndian.Uint32(sum[:4]) % Buckets)
}

// threshold is the first bucket outside of percent. Percentages have two
// decimals, so rounding only undoes what binary floating point did to them.
func threshold(percent float64) int { return int(math.Round(percent * Buckets / 100)) }
