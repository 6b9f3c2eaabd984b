package check

import (
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// version accepts payload version "1", which is also the default. Serializers in
// the field turn the string into a number, so 1 is the same.
func version(in Input) (pipeline.Reason, string) {
	v := in.Fields.Version
	if v.IsNull() {
		return pipeline.Accepted, ""
	}
	if s, ok := v.Text(); ok && s == "1" {
		return pipeline.Accepted, ""
	}
	if f, ok := v.Float(); ok && v.Kind() == canonical.KindNumber && f == 1 {
		return pipeline.Accepted, ""
	}
	return pipeline.UnsupportedVersion, `version is not "1"`
}
