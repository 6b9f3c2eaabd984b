package control

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Seal makes the nonces of sentinels, and tells them from what others have made up:
// whoever may publish can send as many of those as he likes, and they must take no room
// from real ones. All instances have the same seal, from the database.
//
// A nonce is of 41 letters and digits: when it was made, in milliseconds, then random
// bits, then a code over both and the tenant. The later of two is hence the greater
// string. Who has seen one may send it again; that
// is a sentinel sent later, and proves no more than it did.
type Seal struct{ key []byte }

const (
	sealTime   = 9  // digits to the base 32: they suffice until the year 3084
	sealRandom = 16 // letters, of 5 bits each; and so long is the code
)

var sealText = base32.HexEncoding.WithPadding(base32.NoPadding)

// Nonce returns a new nonce for a sentinel of a tenant's.
func (s *Seal) Nonce(tenant string) string {
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails
	when := strconv.FormatInt(time.Now().UnixMilli(), 32)
	for len(when) < sealTime {
		when = "0" + when // a clock that is far behind
	}
	text := when + sealText.EncodeToString(random[:])
	return text + s.code(tenant, text)
}

// Genuine reports whether a nonce was made with this seal, for that tenant.
func (s *Seal) Genuine(tenant, nonce string) bool {
	if len(nonce) != sealTime+2*sealRandom {
		return false
	}
	text, code := nonce[:sealTime+sealRandom], nonce[sealTime+sealRandom:]
	return hmac.Equal([]byte(code), []byte(s.code(tenant, text)))
}

func (s *Seal) code(tenant, text string) string {
	mac := hmac.New(sha256.New, s.key)
	_, _ = mac.Write([]byte(text + tenant)) // text is of a fixed length
	return sealText.EncodeToString(mac.Sum(nil)[:10])
}

// OpenSeal reads the seal of an installation, and makes one if it has none.
func OpenSeal(ctx context.Context, pool *pgxpool.Pool) (*Seal, error) {
	fresh := make([]byte, 32)
	_, _ = rand.Read(fresh) // never fails
	var key []byte
	err := pool.QueryRow(ctx, `
WITH made AS (
    INSERT INTO crossfade_seal (key) SELECT $1 WHERE NOT EXISTS (SELECT FROM crossfade_seal)
        ON CONFLICT (one) DO UPDATE SET one = true -- returns the key of who was faster
 RETURNING key
)
SELECT key FROM crossfade_seal UNION ALL SELECT key FROM made LIMIT 1`, fresh).Scan(&key)
	if err != nil {
		return nil, fmt.Errorf("read the seal of sentinels from crossfade_seal: %w", err)
	}
	return &Seal{key}, nil
}

// readSeal opens the seal, and again now and then: somebody may have emptied the table.
func (c *Control) readSeal(ctx context.Context) error {
	seal, err := OpenSeal(ctx, c.o.Pool)
	if err == nil {
		c.seal.Store(seal)
	}
	return err
}

// Genuine reports whether a sentinel of a tenant's was sent by a leader, rather than by
// somebody who has made it up. It does no I/O. Before SignOn none is.
func (c *Control) Genuine(tenant, nonce string) bool {
	seal := c.seal.Load()
	return seal != nil && seal.Genuine(tenant, nonce)
}
