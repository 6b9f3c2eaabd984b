package pipeline

import "time"

// DeviceKey names a device.
type DeviceKey struct{ Tenant, Device string }

// Device is what the registry says of a device, as far as checks and effects need
// it. It is shared by all who looked it up and never changed.
type Device struct {
	Site   string
	Status string // ACTIVE or anything else
	// TokenHash is the SHA-256 of the device's provisioning token in lower-case
	// hexadecimal; empty where none is set.
	TokenHash string

	// Subscription is the status of the device's subscription: ACTIVE, SUSPENDED or
	// EXPIRED; empty for a device without one.
	Subscription string
	// Certificates are the device's ACTIVE ones.
	Certificates []Certificate

	// SensorLimit is the most sensors that the device may have: its own limit, else
	// its tier's default, else DefaultSensorLimit.
	SensorLimit int
	// LocationPinned: an operator has set the location by hand; payloads don't move it.
	LocationPinned bool
	// KeyMap renames metric keys: the merged metric_key_map of the active modules.
	KeyMap map[string]string

	// Unreadable is why PostgreSQL can make nothing of what the registry says of the
	// device; nothing else is known of it then. Empty if it can.
	Unreadable string
}

// Certificate is a client certificate that the registry holds as ACTIVE.
type Certificate struct {
	CommonName string
	NotAfter   time.Time // zero for one that does not expire
}

// NoRoom stands in the place of a device that is not registered, and for which its
// tenant's subscription had no room when it was to be provisioned. It is told by
// its address.
var NoRoom = &Device{}

// DefaultSensorLimit is how many sensors a device may have of which neither its
// own entry nor its tier says more.
const DefaultSensorLimit = 20
