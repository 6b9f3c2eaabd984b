package pipeline

// DeviceKey names a device.
type DeviceKey struct{ Tenant, Device string }

// Device is what the registry says of a device, as far as the checks need it.
type Device struct {
	Site   string
	Status string // ACTIVE or anything else
	// TokenHash is the SHA-256 of the device's provisioning token in lower-case
	// hexadecimal; empty where none is set.
	TokenHash string
}
