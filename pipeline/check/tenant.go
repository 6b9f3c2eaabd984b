package check

import "github.com/crossfade-io/crossfade/pipeline"

// payloadTenant holds a tenant that the payload claims against the topic's.
func payloadTenant(in Input) (pipeline.Reason, string) {
	v := in.Fields.TenantID
	if v.IsNull() {
		return pipeline.Accepted, ""
	}
	if s, ok := v.Text(); !ok || s != in.Tenant {
		return pipeline.TenantMismatchPayload, "the payload's tenant_id is not the topic's tenant"
	}
	return pipeline.Accepted, ""
}
