package check

import (
	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// shadow reports must hold an object, as jsonb can store it.
func shadow(in Input) (pipeline.Reason, string) {
	if in.Fields.Reported.Kind() != canonical.KindObject {
		return pipeline.ShadowInvalid, "reported is not an object"
	}
	if _, ok := in.Fields.Reported.AppendStorable(nil); !ok {
		return pipeline.ShadowInvalid, "reported holds what jsonb can't"
	}
	if v := in.Fields.Version; !v.IsNull() {
		if _, ok := v.Int(); !ok {
			return pipeline.ShadowInvalid, "version is no 64-bit integer"
		}
	}
	return pipeline.Accepted, ""
}

// commandAck must name a command, and its details, where given, be an object.
func commandAck(in Input) (pipeline.Reason, string) {
	if id, ok := in.Fields.CommandID.Text(); !ok || id == "" {
		return pipeline.CommandAckInvalid, "command_id is missing"
	}
	if _, ok := in.Fields.CommandID.AppendStorable(nil); !ok {
		return pipeline.CommandAckInvalid, "command_id is no text"
	}
	if d := in.Fields.Details; !d.IsNull() {
		if d.Kind() != canonical.KindObject {
			return pipeline.CommandAckInvalid, "details is not an object"
		}
		if _, ok := d.AppendStorable(nil); !ok {
			return pipeline.CommandAckInvalid, "details holds what jsonb can't"
		}
	}
	return pipeline.Accepted, ""
}
