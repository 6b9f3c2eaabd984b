package check_test

import (
	"strings"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/pipelinetest"
)

// FuzzVerdict: no message, token or user name makes a check panic, and telemetry
// passes only from an active device, at its site, with its token or its certificate.
func FuzzVerdict(f *testing.F) {
	f.Add("telemetry", "t1/d1", "tok", []byte(good().payload()))
	f.Add("shadow/reported", "", "", []byte(`{"reported":{},"version":1}`))
	for _, c := range pipelinetest.HostileCases() {
		if len(c.Payload) < 10_000 {
			f.Add(c.MsgType, "t1/d1", "tok", []byte(c.Payload))
		}
	}
	settings := check.DefaultSettings()
	settings.CertAuth = true
	now := time.Unix(1795435200, 0)
	f.Fuzz(func(t *testing.T, msgType, username, token string, payload []byte) {
		d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/" + msgType, Username: username, Body: payload, Receipt: receipt{}}
		var m pipeline.Message
		pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(&m, &d)
		in := check.Input{Message: &m, Settings: &settings, Now: now}
		v := check.Content(in)
		if v.Reason != pipeline.Accepted {
			return
		}
		if check.Registry(in).Reason != pipeline.UnregisteredDevice {
			t.Fatal("a device that is not registered is let in")
		}
		in.Device = &pipeline.Device{Site: "s1", Status: "ACTIVE", TokenHash: hashOf(token),
			Certificates: []pipeline.Certificate{{CommonName: "t1/d1", NotAfter: now.Add(time.Hour)}, {CommonName: username, NotAfter: now.Add(-1)}}}
		if check.Registry(in).Reason != pipeline.Accepted || m.Kind != pipeline.KindTelemetry {
			return
		}
		site, _ := m.Fields.SiteID.Text()
		given, _ := m.Fields.Token.Text()
		if site != "s1" || username != "t1/d1" && (given != token || token == "") {
			t.Fatalf("site %q, token %q of %q, user %q: let in", site, given, token, username)
		}
		for _, status := range []string{"REVOKED", "", "active", strings.ToLower(site)} {
			in.Device.Status = status
			if check.Registry(in).Reason != pipeline.DeviceRevoked {
				t.Fatalf("a device of status %q is let in", status)
			}
		}
	})
}
