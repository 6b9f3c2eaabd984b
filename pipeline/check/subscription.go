package check

import "github.com/crossfade-io/crossfade/pipeline"

// subscription: the one that the device belongs to is neither suspended nor
// expired. A device without one, or whose subscription has gone, passes.
func subscription(in Input) (pipeline.Reason, string) {
	switch in.Device.Subscription {
	case "SUSPENDED":
		return pipeline.SubscriptionSuspended, "the device's subscription is suspended"
	case "EXPIRED":
		return pipeline.SubscriptionExpired, "the device's subscription has expired"
	}
	return pipeline.Accepted, ""
}
