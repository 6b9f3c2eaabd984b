package check

import "github.com/crossfade-io/crossfade/pipeline"

// readable objects to what the decoder could not make sense of: INVALID_JSON,
// BAD_TOPIC_FORMAT, TENANT_MISMATCH_TOPIC_VS_ENVELOPE, in that order.
func readable(in Input) (pipeline.Reason, string) {
	return in.Failed, in.Detail
}
