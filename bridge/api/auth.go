package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/crossfade-io/crossfade/pipeline"
)

// Scopes of a back end's token. Each but the last covers reading what it may change.
const (
	ScopeShadow   = "shadow"   // desired states
	ScopeCommands = "commands" // commands
	ScopeIngest   = "ingest"   // messages in the name of any device of the tenant
	ScopeRead     = "read"     // shadows and commands, without changing them
)

// Scopes are all of them.
func Scopes() []string { return []string{ScopeShadow, ScopeCommands, ScopeIngest, ScopeRead} }

// Bounds of what Auth remembers. What is not there is kept apart, so that guessing
// does not drive out what is.
const (
	maxKnown   = 50_000
	maxUnknown = 10_000
	maxSecret  = 512 // bytes of a token; longer ones are wrong without looking
	maxName    = 512 // bytes of a tenant or device
)

// Auth tells who may do what. Its errors are ready to be returned from a huma
// handler: they carry a status (401 wrong or missing secret, 403 not for this, 429
// too often, 503 PostgreSQL cannot be asked) and the headers that belong to it. It
// is safe for concurrent use; its methods block for a query at most.
type Auth struct {
	pool *pgxpool.Pool
	now  func() time.Time
	log  *slog.Logger

	tokens     *cache[[sha256.Size]byte, *token]
	noTokens   *cache[[sha256.Size]byte, struct{}]
	devices    *cache[pipeline.DeviceKey, device]
	noDevices  *cache[pipeline.DeviceKey, struct{}]
	tokenRate  *rates[int64]
	deviceRate *rates[pipeline.DeviceKey]
}

// token is a row of crossfade_api_tokens that is not revoked.
type token struct {
	id      int64
	name    string
	tenant  string // "" is every tenant
	scopes  []string
	expires time.Time // zero: never
}

// over reports whether the token has expired.
func (t *token) over(now time.Time) bool { return !t.expires.IsZero() && !now.Before(t.expires) }

// device is what the registry says of a device's secret.
type device struct {
	hash   string // of its token, in hex; "" for none
	active bool
}

func newAuth(pool *pgxpool.Pool, c *Config, now func() time.Time, log *slog.Logger) *Auth {
	return &Auth{
		pool: pool, now: now, log: log,
		tokens:     newCache[[sha256.Size]byte, *token](maxKnown, c.AuthTTL),
		noTokens:   newCache[[sha256.Size]byte, struct{}](maxUnknown, c.AuthTTL),
		devices:    newCache[pipeline.DeviceKey, device](maxKnown, c.AuthTTL),
		noDevices:  newCache[pipeline.DeviceKey, struct{}](maxUnknown, c.AuthTTL),
		tokenRate:  newRates[int64](c.TokenRate),
		deviceRate: newRates[pipeline.DeviceKey](c.DeviceRate),
	}
}

// Bearer returns nil if a back end's token may do what scope says for the tenant.
// What it answers depends on the token and on the tenant's name, not on whether
// there is such a tenant.
func (a *Auth) Bearer(ctx context.Context, secret, scope, tenant string) error {
	_, err := a.bearer(ctx, secret, tenant, scope)
	return err
}

// Gateway is Bearer before anything is known of the tenants: it returns the one that
// the token is for, "" for all. It counts as one message.
func (a *Auth) Gateway(ctx context.Context, secret, scope string) (tenant string, err error) {
	t, err := a.validToken(ctx, secret)
	if err == nil {
		err = a.admit(t, scope)
	}
	if err != nil {
		return "", err
	}
	return t.tenant, nil
}

// MoreOfGateway counts n messages more of whom Gateway let in. It returns how many of
// them may come now, and what to answer to the others.
func (a *Auth) MoreOfGateway(ctx context.Context, secret string, n int) (int, error) {
	t, err := a.validToken(ctx, secret)
	if err != nil {
		return 0, err
	}
	taken, wait := a.tokenRate.take(t.id, n, a.now())
	return taken, short(taken, n, wait)
}

// MoreOfDevice is MoreOfGateway for a device that Device let in.
func (a *Auth) MoreOfDevice(tenant, dev string, n int) (int, error) {
	taken, wait := a.deviceRate.take(pipeline.DeviceKey{Tenant: tenant, Device: dev}, n, a.now())
	return taken, short(taken, n, wait)
}

// short is nil if all n were taken.
func short(taken, n int, wait time.Duration) error {
	if taken < n {
		return tooMany(wait)
	}
	return nil
}

// bearer is Bearer for a token that has any of the scopes, and returns it.
func (a *Auth) bearer(ctx context.Context, secret, tenant string, scopes ...string) (*token, error) {
	t, err := a.validToken(ctx, secret)
	if err != nil {
		return nil, err
	}
	if t.tenant != "" && t.tenant != tenant {
		return nil, problem(http.StatusForbidden, "the token is not for this tenant")
	}
	if err := a.admit(t, scopes...); err != nil {
		return nil, err
	}
	return t, nil
}

// validToken returns a token that there is, and that has not expired.
func (a *Auth) validToken(ctx context.Context, secret string) (*token, error) {
	t, err := a.findToken(ctx, secret)
	if err != nil {
		return nil, unavailable(ctx, "look up an API token", err)
	}
	if t == nil || t.over(a.now()) {
		return nil, withHeader(problem(http.StatusUnauthorized, "a valid token is needed, as Authorization: Bearer …; this one is missing, unknown, expired or revoked"),
			"WWW-Authenticate", `Bearer realm="crossfade"`)
	}
	return t, nil
}

// admit asks for one of the scopes, and counts a request.
func (a *Auth) admit(t *token, scopes ...string) error {
	if !slices.ContainsFunc(scopes, func(s string) bool { return slices.Contains(t.scopes, s) }) {
		return withHeader(problem(http.StatusForbidden, "the token lacks the scope %s", strings.Join(scopes, " or ")),
			"WWW-Authenticate", `Bearer realm="crossfade", error="insufficient_scope", scope="`+scopes[0]+`"`)
	}
	if wait, ok := a.tokenRate.allow(t.id, a.now()); !ok {
		return tooMany(wait)
	}
	return nil
}

// Device returns nil if the token is the device's own, as the registry has it, and
// the device is ACTIVE. To whoever lacks the token, a device that has none, and one
// that does not exist, look the same as any other.
func (a *Auth) Device(ctx context.Context, tenant, dev, secret string) error {
	key := pipeline.DeviceKey{Tenant: tenant, Device: dev}
	var d device
	if secret != "" { // else no device is worth a look
		var err error
		if d, err = a.findDevice(ctx, key); err != nil {
			return unavailable(ctx, "look up a device's token", err)
		}
	}
	// Something is compared in any case, so that the time tells nothing.
	want := d.hash
	if len(want) != 2*sha256.Size {
		want = strings.Repeat("-", 2*sha256.Size)
	}
	sum := sha256.Sum256([]byte(secret))
	same := subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(want))
	if same != 1 || secret == "" {
		return withHeader(problem(http.StatusUnauthorized, "X-Provision-Token is missing, or is not that of this device"),
			"WWW-Authenticate", `ProvisionToken realm="crossfade"`)
	}
	if !d.active {
		return problem(http.StatusForbidden, "the device is not active")
	}
	if wait, ok := a.deviceRate.allow(key, a.now()); !ok {
		return tooMany(wait)
	}
	return nil
}

const selectToken = `
SELECT id, name, sha256, tenant_id, scopes, coalesce(expires_at, 'infinity') = 'infinity', coalesce(nullif(expires_at, 'infinity'), 'epoch'),
       last_used_at IS NULL OR last_used_at < now() - interval '1 hour'
  FROM crossfade_api_tokens
 WHERE sha256 = $1 AND revoked_at IS NULL`

// findToken returns nil for a token that there is not.
func (a *Auth) findToken(ctx context.Context, secret string) (*token, error) {
	if secret == "" || len(secret) > maxSecret {
		return nil, nil
	}
	sum, began := sha256.Sum256([]byte(secret)), a.now()
	if t, ok := a.tokens.get(sum, began); ok {
		return t, nil
	}
	if _, ok := a.noTokens.get(sum, began); ok {
		return nil, nil
	}
	t, stored, never, stale := &token{}, []byte(nil), false, false
	err := a.pool.QueryRow(ctx, selectToken, sum[:]).Scan(&t.id, &t.name, &stored, &t.tenant, &t.scopes, &never, &t.expires, &stale)
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && subtle.ConstantTimeCompare(stored, sum[:]) != 1:
		a.noTokens.put(sum, struct{}{}, began)
		return nil, nil
	case err != nil:
		return nil, err
	}
	if never {
		t.expires = time.Time{}
	}
	if stale && !t.over(began) {
		a.used(ctx, t.id)
	}
	a.tokens.put(sum, t, began)
	return t, nil
}

// used notes that a token was used in this hour. That it cannot be noted keeps
// nobody from working.
func (a *Auth) used(ctx context.Context, id int64) {
	if _, err := a.pool.Exec(ctx, `UPDATE crossfade_api_tokens SET last_used_at = now() WHERE id = $1`, id); err != nil {
		a.log.Warn("the use of an API token cannot be noted", "token", id, "error", err)
	}
}

const selectDevice = `
SELECT coalesce(lower(provision_token_hash), ''), coalesce(status, '') = 'ACTIVE'
  FROM device_registry
 WHERE tenant_id = $1 AND device_id = $2`

// findDevice returns the zero device for one that there is not.
func (a *Auth) findDevice(ctx context.Context, key pipeline.DeviceKey) (d device, err error) {
	if !storable(key.Tenant) || !storable(key.Device) {
		return d, nil
	}
	began := a.now()
	if d, ok := a.devices.get(key, began); ok {
		return d, nil
	}
	if _, ok := a.noDevices.get(key, began); ok {
		return device{}, nil
	}
	err = a.pool.QueryRow(ctx, selectDevice, key.Tenant, key.Device).Scan(&d.hash, &d.active)
	switch {
	case errors.Is(err, pgx.ErrNoRows), dataError(err):
		a.noDevices.put(key, struct{}{}, began)
		return device{}, nil
	case err != nil:
		return device{}, err
	}
	a.devices.put(key, d, began)
	return d, nil
}

// storable reports whether a name can be a key in PostgreSQL at all.
func storable(name string) bool {
	return name != "" && len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsRune(name, 0)
}

// bearerSecret takes the token out of an Authorization header; "" where it has none.
func bearerSecret(header string) string {
	scheme, secret, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(secret)
}
