package check

import "github.com/crossfade-io/crossfade/pipeline"

// registered: the registry knows the device. Where devices are provisioned, the
// look-up for telemetry has tried to: only a message that got this far has it done,
// and only one that names a site.
func registered(in Input) (pipeline.Reason, string) {
	if in.Device == pipeline.NoRoom && in.Kind == pipeline.KindTelemetry {
		return pipeline.NoSubscriptionCapacity, "the registry has no such device, and the tenant no active MAIN subscription with room for one more"
	}
	if in.Device == nil || in.Device == pipeline.NoRoom {
		return pipeline.UnregisteredDevice, "the registry has no such device"
	}
	if why := in.Device.Unreadable; why != "" {
		return pipeline.UnregisteredDevice, "what the registry says of the device cannot be read: " + why
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
