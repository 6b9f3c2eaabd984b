package check

import "github.com/crossfade-io/crossfade/pipeline"

// seq must be a 64-bit integer where it is given.
func seq(in Input) (pipeline.Reason, string) {
	if _, _, ok := in.Seq(); !ok {
		return pipeline.SeqInvalid, "seq is no 64-bit integer"
	}
	return pipeline.Accepted, ""
}
