package check

import (
	"fmt"

	"github.com/crossfade-io/crossfade/pipeline"
)

// size bounds the payload as measured in canonical form, so that white space and
// what a producer adds make no difference between the copies.
func size(in Input) (pipeline.Reason, string) {
	if in.Size > in.Settings.MaxPayloadBytes {
		return pipeline.PayloadTooLarge, fmt.Sprintf("%d bytes in canonical form, the limit is %d", in.Size, in.Settings.MaxPayloadBytes)
	}
	return pipeline.Accepted, ""
}
