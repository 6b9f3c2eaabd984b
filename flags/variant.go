package flags

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// FlagKey is the flag that says which stage is wanted for a tenant.
const FlagKey = "ingest-source"

// Variant is the stage that somebody wishes for a tenant. The strings are the
// flag's variants in every flag service and in the database: never rename them.
type Variant string

// The four variants, in the order in which the controller walks.
const (
	MQTT      Variant = "mqtt"
	Shadow    Variant = "shadow"
	Live      Variant = "live"
	JetStream Variant = "jetstream"
)

// Variants returns all variants, in the order in which the controller walks.
func Variants() []Variant { return []Variant{MQTT, Shadow, Live, JetStream} }

// Valid reports whether v is one of the four variants.
func (v Variant) Valid() bool {
	switch v {
	case MQTT, Shadow, Live, JetStream:
		return true
	}
	return false
}

// String returns the variant as it is stored.
func (v Variant) String() string { return string(v) }

// ParseVariant reads a variant. Case and surrounding space count: a flag service
// that says "MQTT " has not said mqtt. The error lists what is allowed.
func ParseVariant(s string) (Variant, error) {
	if v := Variant(s); v.Valid() {
		return v, nil
	}
	allowed := make([]string, 0, 4)
	for _, v := range Variants() {
		allowed = append(allowed, string(v))
	}
	return "", fmt.Errorf("unknown variant %q: use one of %s", clip(s, 64), strings.Join(allowed, ", "))
}

// Limits on names, in characters; the tables have the same as constraints.
const (
	maxTenantLength = 256
	maxByLength     = 128
	maxReasonLength = 512
)

// checkText reports why s cannot be stored as what: too long, or a text that
// PostgreSQL refuses.
func checkText(what, s string, limit int) error {
	switch {
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return fmt.Errorf("%s %q is no valid UTF-8 text without NUL", what, clip(s, 64))
	case utf8.RuneCountInString(s) > limit:
		return fmt.Errorf("%s %q… has %d characters: use at most %d", what, clip(s, 32), utf8.RuneCountInString(s), limit)
	}
	return nil
}

func checkTenant(tenant string) error {
	if tenant == "" {
		return fmt.Errorf("tenant is empty: name a tenant")
	}
	return checkText("tenant", tenant, maxTenantLength)
}

// clip keeps a stranger's text from filling a log line.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
