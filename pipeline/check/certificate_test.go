package check_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
)

// TestCertificateLogins: who passes without a token, of messages that have none.
func TestCertificateLogins(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	valid := pipeline.Certificate{CommonName: "t1/d1", NotAfter: now.Add(time.Second)}
	expired := pipeline.Certificate{CommonName: "t1/d1", NotAfter: now}
	for _, c := range []struct {
		name         string
		username     string
		on, topic    bool // CertAuth, CertTrustTopic
		certificates []pipeline.Certificate
		passes       bool
	}{
		{"valid", "t1/d1", true, false, []pipeline.Certificate{valid}, true},
		{"switched off", "t1/d1", false, true, []pipeline.Certificate{valid}, false},
		{"without an end", "t1/d1", true, false, []pipeline.Certificate{{CommonName: "t1/d1"}}, true},
		{"without a certificate", "t1/d1", true, true, nil, false},
		{"expired", "t1/d1", true, true, []pipeline.Certificate{expired}, false},
		{"one of two expired", "t1/d1", true, false, []pipeline.Certificate{expired, valid}, true},
		{"in another's name", "t1/d1", true, false, []pipeline.Certificate{{CommonName: "t1/d2"}, {CommonName: "t1/d1x"}, {CommonName: "t1d1"}, {CommonName: ""}}, false},

		{"empty", "", true, false, []pipeline.Certificate{valid}, false},
		{"empty, topics trusted", "", true, true, []pipeline.Certificate{valid}, true},
		{"empty, topics trusted, expired", "", true, true, []pipeline.Certificate{expired}, false},
		{"empty, topics trusted, another's", "", true, true, []pipeline.Certificate{{CommonName: "t2/d1"}}, false},

		{"another device", "t1/d2", true, true, []pipeline.Certificate{valid, {CommonName: "t1/d2"}}, false},
		{"another tenant", "t2/d1", true, true, []pipeline.Certificate{valid, {CommonName: "t2/d1"}}, false},
		{"the device alone", "d1", true, true, []pipeline.Certificate{valid}, false},
		{"the tenant alone", "t1", true, true, []pipeline.Certificate{valid}, false},
		{"cut short", "t1/d", true, true, []pipeline.Certificate{valid}, false},
		{"with more", "t1/d1/", true, true, []pipeline.Certificate{valid}, false},
		{"another case", "T1/d1", true, true, []pipeline.Certificate{valid}, false},
		{"another sign between", "t1-d1", true, true, []pipeline.Certificate{valid, {CommonName: "t1-d1"}}, false},
		{"two names", "t1/d1\x00t1/d1x", true, true, []pipeline.Certificate{valid}, false},
		{"space around", " t1/d1", true, true, []pipeline.Certificate{valid}, false},
	} {
		s := good()
		delete(s.members, "provision_token")
		s.settings.CertAuth, s.settings.CertTrustTopic = c.on, c.topic
		s.device.Certificates = c.certificates
		want := pipeline.TokenMissing
		if c.passes {
			want = pipeline.Accepted
		}
		for _, how := range []string{"an envelope's", "a transport's", "HTTP's"} {
			d := pipeline.Delivery{Path: pipeline.PathMQTT, Topic: "tenant/t1/device/d1/telemetry", Username: c.username, Body: []byte(s.payload()), Receipt: receipt{}}
			if how != "a transport's" {
				username, err := json.Marshal(c.username)
				if err != nil {
					t.Fatal(err)
				}
				body := fmt.Sprintf(`{"topic":"tenant/t1/device/d1/telemetry","username":%s,"payload":%s}`, username, s.payload())
				d = pipeline.Delivery{Path: pipeline.PathJetStream, Subject: "telemetry.t1", Body: []byte(body), Receipt: receipt{}}
			}
			if how == "HTTP's" {
				if d.Origin = pipeline.OriginHTTP; c.username == "" {
					want = pipeline.TokenMissing // no broker ties a gateway to a topic
				}
			}
			var m pipeline.Message
			pipeline.NewDecoder("").Decode(&m, &d)
			if got := check.Registry(check.Input{Message: &m, Device: s.device, Settings: &s.settings, Now: now}).Reason; got != want {
				t.Errorf("%s, %s user name: %q, want %q", c.name, how, got, want)
			}
		}
	}
}

// TestCertificatesLeaveTheRestToTheToken: what does not pass by certificate may pass
// by token, and a certificate does not get a message past the earlier checks.
func TestCertificatesLeaveTheRestToTheToken(t *testing.T) {
	s := good()
	s.settings.CertAuth = true
	if got := s.verdict(); got != pipeline.Accepted {
		t.Errorf("a good token without a certificate: %q", got)
	}
	s.members["provision_token"] = `"x"`
	if got := s.verdict(); got != pipeline.TokenInvalid {
		t.Errorf("a bad token without a certificate: %q", got)
	}
	s.settings.CertTrustTopic = true
	s.device.Certificates = []pipeline.Certificate{{CommonName: "t1/d1"}}
	if got := s.verdict(); got != pipeline.Accepted {
		t.Errorf("a bad token with a certificate: %q", got)
	}
	s.device.Certificates[0].NotAfter = time.Unix(1e10, 0)
	if got := s.verdict(); got != pipeline.TokenInvalid {
		t.Errorf("a certificate that ends, judged at no time: %q", got)
	}
	s.device.Status = "REVOKED"
	if got := s.verdict(); got != pipeline.DeviceRevoked {
		t.Errorf("a revoked device with a certificate: %q", got)
	}
}
