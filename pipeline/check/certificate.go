package check

import (
	"strings"

	"github.com/crossfade-io/crossfade/pipeline"
)

// authentic: a certificate login, or else the device's token.
func authentic(in Input) (pipeline.Reason, string) {
	if certified(in) {
		return pipeline.Accepted, ""
	}
	return token(in)
}

// certified reports whether the broker has seen the device's certificate. An empty
// user name proves nothing, unless the operator says that the broker ties topics to
// certificates (CertTrustTopic) and the message came by the broker: by HTTP a gateway may
// name any device. A name that is another's never passes.
//
// It is the one place where the clock counts: a certificate that was looked up is
// in memory when it expires. The beginning of its validity is the broker's business,
// as the signature is.
func certified(in Input) bool {
	switch {
	case !in.Settings.CertAuth:
		return false
	case in.Username != "":
		if !names(in.Username, in.Message) {
			return false
		}
	case !in.Settings.CertTrustTopic || in.Delivery.Origin == pipeline.OriginHTTP:
		return false
	}
	for _, c := range in.Device.Certificates {
		if names(c.CommonName, in.Message) && (c.NotAfter.IsZero() || !in.Now.IsZero() && in.Now.Before(c.NotAfter)) {
			return true
		}
	}
	return false
}

// names reports whether a user name or common name is {tenant}/{device}.
func names(name string, m *pipeline.Message) bool {
	rest, ok := strings.CutPrefix(name, m.Tenant)
	return ok && len(rest) == 1+len(m.Device) && rest[0] == '/' && rest[1:] == m.Device
}
