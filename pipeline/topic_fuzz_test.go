package pipeline_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/pipelinetest"
)

// FuzzTopic: a topic that is read is the sum of its parts, all of which a text
// column can hold, and its tenant is the one that decides about the copy.
func FuzzTopic(f *testing.F) {
	for _, c := range pipelinetest.HostileCases() {
		if c.Elsewhere {
			f.Add(c.Topic)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		topic, ok := pipeline.ParseTopic(s)
		if !ok {
			if topic != (pipeline.Topic{}) {
				t.Fatalf("%q is refused and read as %+v", s, topic)
			}
			return
		}
		if s != "tenant/"+topic.Tenant+"/device/"+topic.Device+"/"+topic.MsgType {
			t.Fatalf("%q is read as %+v", s, topic)
		}
		if topic.Tenant == "" || topic.Device == "" || topic.MsgType == "" || strings.Contains(topic.Tenant+topic.Device, "/") {
			t.Fatalf("%q has the parts %+v", s, topic)
		}
		if len(s) > pipeline.MaxTopic || strings.ContainsAny(s, "+#\x00") || !utf8.ValidString(s) {
			t.Fatalf("%q is no topic's name", s)
		}
		if tenant := pipeline.TopicTenant(s); tenant != topic.Tenant {
			t.Fatalf("tenant %q decides about a message of %q", tenant, topic.Tenant)
		}
	})
}

// FuzzSubjectTenant: the tenant is all that follows the stream.
func FuzzSubjectTenant(f *testing.F) {
	for _, s := range []string{"telemetry.t1", "telemetry", "", ".", "telemetry..", "telemetry.t1.d1", "telemetry.\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tenant := pipeline.SubjectTenant(s)
		stream, _, found := strings.Cut(s, ".")
		if found && stream+"."+tenant != s || !found && tenant != "" {
			t.Fatalf("the tenant of %q is %q", s, tenant)
		}
	})
}
