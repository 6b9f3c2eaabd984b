package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// tokenPrefix makes a token that has got into the wrong hands, or into a repository,
// easy to find.
const tokenPrefix = "crossfade_"

// NewToken says what a token is to be good for.
type NewToken struct {
	Name    string        // for people, 1 to 128 characters
	Tenant  string        // "" is every tenant
	Scopes  []string      // one or more of Scopes
	Expires time.Duration // from now, by the database's clock; 0 is never
	By      string        // who makes it, for the record
}

// Validate names the field that cannot be and the remedy.
func (n *NewToken) Validate() error {
	if l := utf8.RuneCountInString(n.Name); l < 1 || l > 128 || !utf8.ValidString(n.Name) || strings.ContainsFunc(n.Name, unicode.IsControl) {
		return errors.New("field Name: must be 1 to 128 characters that can be shown; name who uses the token")
	}
	if n.Tenant != "" && !storable(n.Tenant) {
		return fmt.Errorf("field Tenant: is no tenant's name; use up to %d bytes of UTF-8", maxName)
	}
	if len(n.Scopes) == 0 {
		return fmt.Errorf("field Scopes: is empty, so the token would be good for nothing; name some of %s", strings.Join(Scopes(), ", "))
	}
	for _, s := range n.Scopes {
		if !slices.Contains(Scopes(), s) {
			return fmt.Errorf("field Scopes: %q is none; use some of %s", s, strings.Join(Scopes(), ", "))
		}
	}
	if n.Expires < 0 || n.Expires > 100*365*24*time.Hour {
		return fmt.Errorf("field Expires: %s is out of range; use up to a hundred years, or 0 for never", n.Expires)
	}
	return nil
}

// Token is what is known of a token; the secret itself is not.
type Token struct {
	ID      int64      `json:"id"`
	Name    string     `json:"name"`
	Tenant  string     `json:"tenant"` // "" is every tenant
	Scopes  []string   `json:"scopes"`
	By      string     `json:"created_by"`
	Created time.Time  `json:"created_at"`
	Expires *time.Time `json:"expires_at"`
	Revoked *time.Time `json:"revoked_at"`
	Used    *time.Time `json:"last_used_at"` // up to an hour behind
	Valid   bool       `json:"valid"`        // neither expired nor revoked, by the database's clock
}

const tokenColumns = `id, name, tenant_id, scopes, created_by, created_at, expires_at, revoked_at, last_used_at,
       revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())`

func scanToken(row pgx.CollectableRow) (t Token, err error) {
	err = row.Scan(&t.ID, &t.Name, &t.Tenant, &t.Scopes, &t.By, &t.Created, &t.Expires, &t.Revoked, &t.Used, &t.Valid)
	return t, err
}

// CreateToken makes a token of 256 random bits and returns it: this is the only time
// that anybody sees it.
func CreateToken(ctx context.Context, pool *pgxpool.Pool, n NewToken) (secret string, t Token, err error) {
	if err := n.Validate(); err != nil {
		return "", Token{}, err
	}
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails
	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(random)
	sum := sha256.Sum256([]byte(secret))
	scopes := slices.Compact(slices.Sorted(slices.Values(n.Scopes)))
	rows, err := pool.Query(ctx, `
INSERT INTO crossfade_api_tokens (name, sha256, tenant_id, scopes, created_by, expires_at)
VALUES ($1, $2, $3, $4, $5, now() + nullif($6::float8, 0) * interval '1 second')
RETURNING `+tokenColumns, n.Name, sum[:], n.Tenant, scopes, n.By, n.Expires.Seconds())
	if err == nil {
		t, err = pgx.CollectExactlyOneRow(rows, scanToken)
	}
	if err != nil {
		return "", Token{}, fmt.Errorf("create an API token: %w", err)
	}
	return secret, t, nil
}

// Tokens lists tokens, newest first; those that are revoked or expired only with all.
func Tokens(ctx context.Context, pool *pgxpool.Pool, all bool) ([]Token, error) {
	rows, err := pool.Query(ctx, `
SELECT `+tokenColumns+`
  FROM crossfade_api_tokens
 WHERE $1 OR revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
 ORDER BY id DESC`, all)
	var tokens []Token
	if err == nil {
		tokens, err = pgx.CollectRows(rows, scanToken)
	}
	if err != nil {
		return nil, fmt.Errorf("list API tokens: %w", err)
	}
	return tokens, nil
}

// ErrNoToken: there is no token of that ID that is not revoked already.
var ErrNoToken = errors.New("there is no such token, or it is revoked already")

// RevokeToken ends a token for good. Running instances believe in it for as long as
// Config.AuthTTL at most.
func RevokeToken(ctx context.Context, pool *pgxpool.Pool, id int64) (Token, error) {
	rows, err := pool.Query(ctx, `
UPDATE crossfade_api_tokens SET revoked_at = now()
 WHERE id = $1 AND revoked_at IS NULL
RETURNING `+tokenColumns, id)
	var t Token
	if err == nil {
		t, err = pgx.CollectExactlyOneRow(rows, scanToken)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return Token{}, fmt.Errorf("token %d: %w", id, ErrNoToken)
	}
	if err != nil {
		return Token{}, fmt.Errorf("revoke API token %d: %w", id, err)
	}
	return t, nil
}
