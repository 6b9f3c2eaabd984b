package check

import "github.com/crossfade-io/crossfade/pipeline"

// registered: the registry knows the device.
func registered(in Input) (pipeline.Reason, string) {
	if in.Device == nil {
		return pipeline.UnregisteredDevice, "the registry has no such device"
	}
	return pipeline.Accepted, ""
}

// active: the device has not been revoked.
func active(in Input) (pipeline.Reason, string) {
	if in.Device.Status != "ACTIVE" {
		return pipeline.DeviceRevoked, "the device's status is not ACTIVE"
	}
	return pipeline.Accepted, ""
}
