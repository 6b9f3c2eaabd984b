package fleet

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Device is one simulated device.
type Device struct {
	Tenant string
	ID     string // unique within its tenant only: every tenant has a dev-0001
	Site   string
	Token  string // the provision_token that it sends
	// Seed decides its layout (member order, number and time formats) and values.
	Seed uint64
}

// TokenHash is the lower-case hex SHA-256 of the token, as device_registry
// stores it.
func (d Device) TokenHash() string {
	sum := sha256.Sum256([]byte(d.Token))
	return hex.EncodeToString(sum[:])
}

// String is tenant/device.
func (d Device) String() string { return d.Tenant + "/" + d.ID }

// TenantName is the name of tenant i, counted from 0.
func TenantName(i int) string {
	if known := [...]string{"acme", "globex", "initech"}; i < len(known) {
		return known[i]
	}
	return fmt.Sprintf("tenant-%02d", i+1)
}

// TenantNames are the names of the configured tenants.
func TenantNames(cfg Config) []string {
	names := make([]string, cfg.Tenants)
	for i := range names {
		names[i] = TenantName(i)
	}
	return names
}

// Devices are the devices of a fleet, tenants taking turns, so that any run of
// consecutive devices is a mixture. It depends on Tenants, Devices and Seed
// only; it is empty when there are no tenants.
func Devices(cfg Config) []Device {
	if cfg.Tenants < 1 || cfg.Devices < 1 {
		return nil
	}
	devices := make([]Device, cfg.Devices)
	for i := range devices {
		tenant, number := TenantName(i%cfg.Tenants), i/cfg.Tenants+1
		id := fmt.Sprintf("dev-%04d", number)
		// NUL cannot occur in names: no two devices share the digest's input.
		sum := sha256.Sum256(fmt.Appendf(nil, "%d\x00%s\x00%s", cfg.Seed, tenant, id))
		devices[i] = Device{
			Tenant: tenant,
			ID:     id,
			Site:   fmt.Sprintf("%s-site-%d", tenant, (number-1)%4+1),
			Token:  "tok-" + hex.EncodeToString(sum[:10]),
			Seed:   binary.BigEndian.Uint64(sum[10:]),
		}
	}
	return devices
}

// Topic is the MQTT topic on which the device publishes messages of a kind.
func Topic(d Device, kind Kind) string {
	return "tenant/" + d.Tenant + "/device/" + d.ID + "/" + kind.MsgType()
}

// SubjectFor is the NATS subject on which a mirror publishes the envelope of
// such a message.
func SubjectFor(d Device, kind Kind) string {
	if kind == KindShadow {
		return "shadow." + d.Tenant
	}
	return "telemetry." + d.Tenant
}

// mix spreads seed and n over 64 bits (SplitMix64's finalizer), so that
// content varies without any state.
func mix(seed uint64, n int64) uint64 {
	z := seed + uint64(n)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
