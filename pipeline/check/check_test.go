package check_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/check"
	"github.com/crossfade-io/crossfade/pipeline/pipelinetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type receipt struct{}

func (receipt) Ack() error          { return nil }
func (receipt) Release() error      { return nil }
func (receipt) Occurred() time.Time { return time.Unix(1795435200, 0) }

// sent is one message and what the registry and the operator say about it.
type sent struct {
	topic    string // "": telemetry of d1
	subject  string // not empty: that of an envelope, which has no MQTT copy
	envelope string // not empty: its body, in place of one around the payload
	members  map[string]string
	device   *pipeline.Device
	settings check.Settings
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// good passes every check.
func good() sent {
	return sent{
		members: map[string]string{
			"ts": `"2026-11-23T12:00:00Z"`, "site_id": `"s1"`, "seq": `1`, "tenant_id": `"t1"`, "provision_token": `"tok"`, "version": `"1"`,
			"metrics":  `{"temp_c":22.5}`,
			"reported": `{"on":true}`, "command_id": `"c1"`, "details": `{}`,
		},
		device:   &pipeline.Device{Site: "s1", Status: "ACTIVE", TokenHash: hashOf("tok")},
		settings: check.DefaultSettings(),
	}
}

func (s sent) payload() string {
	var parts []string
	for name, value := range s.members {
		parts = append(parts, fmt.Sprintf("%q:%s", name, value))
	}
	slices.Sort(parts)
	return "{" + strings.Join(parts, ",") + "}"
}

// verdict is that on the message by MQTT and in a producer's envelope, which must be one.
func (s sent) verdict() pipeline.Reason {
	reason, _ := s.judge()
	return reason
}

// judge is verdict, and tells whether the message got past the place of the rate limit.
func (s sent) judge() (reason pipeline.Reason, metered bool) {
	topic := cmp.Or(s.topic, "tenant/t1/device/d1/telemetry")
	stream := pipeline.Delivery{Path: pipeline.PathJetStream, Subject: cmp.Or(s.subject, "telemetry.t1"), Body: []byte(s.envelope), Receipt: receipt{}}
	if s.envelope == "" {
		stream.Body = pipelinetest.Mirror(topic, []byte(s.payload()), receipt{}.Occurred())
	}
	reason, metered = s.judgeCopy(stream)
	if s.envelope != "" || s.subject != "" {
		return reason, metered // no MQTT copy can be like that
	}
	r, m := s.judgeCopy(pipeline.Delivery{Path: pipeline.PathMQTT, Topic: topic, Body: []byte(s.payload()), Receipt: receipt{}})
	if r != reason || m != metered {
		return pipeline.Reason(fmt.Sprintf("%q metered=%v by MQTT, %q metered=%v by JetStream", r, m, reason, metered)), false
	}
	return reason, metered
}

func (s sent) judgeCopy(d pipeline.Delivery) (pipeline.Reason, bool) {
	var m pipeline.Message
	pipeline.NewDecoder(pipeline.DefaultMessageIDMember).Decode(&m, &d)
	in := check.Input{Message: &m, Device: s.device, Settings: &s.settings}
	v := check.Content(in)
	if v.Reason == pipeline.Accepted {
		v = check.Registry(in)
	}
	return v.Reason, v.Metered
}

// with returns a flaw that sets a member of the payload.
func with(name, value string) func(*sent) { return func(s *sent) { s.members[name] = value } }

func without(name string) func(*sent) { return func(s *sent) { delete(s.members, name) } }

func on(msgType string) func(*sent) {
	return func(s *sent) {
		s.topic = "tenant/t1/device/d1/" + msgType
		if msgType == "shadow/reported" {
			s.members["version"] = `3`
		}
	}
}

func all(changes ...func(*sent)) func(*sent) {
	return func(s *sent) {
		for _, change := range changes {
			change(s)
		}
	}
}

func keys(n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf(`"k%d":%d`, i, i)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func key(name string) string { return `{"` + name + `":1}` }

func TestVerdicts(t *testing.T) {
	shadow, ack := on("shadow/reported"), on("commands/ack")
	long := func(n int) string { return `"` + strings.Repeat("x", n) + `"` }
	for _, c := range []struct {
		name string
		flaw func(*sent)
		want pipeline.Reason
	}{
		{"good", func(*sent) {}, pipeline.Accepted},
		{"heartbeat", on("heartbeat"), pipeline.Accepted},
		{"only a site, tokens not required", func(s *sent) {
			s.members = map[string]string{"site_id": `"s1"`}
			s.settings.RequireToken = false
			s.device.TokenHash = ""
		}, pipeline.Accepted},

		{"broken", with("a", `x`), pipeline.InvalidJSON},
		{"bad topic", func(s *sent) { s.topic = "tenant/t1/device/d1" }, pipeline.BadTopicFormat},
		{"envelope", func(s *sent) { s.envelope = `{"topic":"tenant/t2/device/d1/telemetry","payload":{}}` }, pipeline.TenantMismatchEnvelope},

		{"version absent", without("version"), pipeline.Accepted},
		{"version null", with("version", `null`), pipeline.Accepted},
		{"version as a number", with("version", `1.0`), pipeline.Accepted},
		{"version 2", with("version", `"2"`), pipeline.UnsupportedVersion},
		{"version 1.1", with("version", `1.1`), pipeline.UnsupportedVersion},
		{"version empty", with("version", `""`), pipeline.UnsupportedVersion},
		{"version true", with("version", `true`), pipeline.UnsupportedVersion},
		{"version of a heartbeat", all(on("heartbeat"), with("version", `"2"`)), pipeline.UnsupportedVersion},

		{"size at the limit", func(s *sent) { s.settings.MaxPayloadBytes = len(s.payload()) }, pipeline.Accepted},
		{"size over the limit", func(s *sent) { s.settings.MaxPayloadBytes = len(s.payload()) - 1 }, pipeline.PayloadTooLarge},
		{"size without white space", func(s *sent) {
			s.settings.MaxPayloadBytes = len(s.payload())
			s.members["seq"] = strings.Repeat(" ", 100) + "1"
		}, pipeline.Accepted},
		{"size by default", with("pad", long(8192)), pipeline.PayloadTooLarge},
		{"size of a shadow report", all(shadow, with("pad", long(8192))), pipeline.PayloadTooLarge},

		{"metrics absent", without("metrics"), pipeline.Accepted},
		{"metrics null", with("metrics", `null`), pipeline.Accepted},
		{"metrics empty", with("metrics", `{}`), pipeline.Accepted},
		{"metrics of an array", with("metrics", `[]`), pipeline.MetricsInvalid},
		{"metrics of text", with("metrics", `"{}"`), pipeline.MetricsInvalid},
		{"metrics false", with("metrics", `false`), pipeline.MetricsInvalid},
		{"50 metrics", with("metrics", keys(50)), pipeline.Accepted},
		{"51 metrics", with("metrics", keys(51)), pipeline.TooManyMetrics},
		{"50 metrics, one of them twice", with("metrics", `{"k0":1,`+keys(50)[1:]), pipeline.Accepted},
		{"key of 128", with("metrics", key(strings.Repeat("x", 128))), pipeline.Accepted},
		{"key of 129", with("metrics", key(strings.Repeat("x", 129))), pipeline.MetricKeyTooLong},
		{"key of 128, two bytes each", with("metrics", key(strings.Repeat("ü", 128))), pipeline.Accepted},
		{"key of 129, two bytes each", with("metrics", key(strings.Repeat("ü", 129))), pipeline.MetricKeyTooLong},
		{"key of 128, four bytes each", with("metrics", key(strings.Repeat("😀", 128))), pipeline.Accepted},
		{"key of 128, as escapes", with("metrics", key(strings.Repeat(`\u00fc`, 128))), pipeline.Accepted},
		{"key empty", with("metrics", key("")), pipeline.Accepted},
		{"key with a tab", with("metrics", key(`a\tb`)), pipeline.MetricKeyInvalid},
		{"key with U+0000", with("metrics", key(`a\u0000`)), pipeline.MetricKeyInvalid},
		{"key with DEL", with("metrics", key("a\x7f")), pipeline.MetricKeyInvalid},
		{"key with U+0085", with("metrics", key(`a\u0085`)), pipeline.MetricKeyInvalid},
		{"key with a lone surrogate", with("metrics", key(`a\ud800`)), pipeline.MetricKeyInvalid},
		{"value U+0000", with("metrics", `{"a":"x\u0000"}`), pipeline.MetricValueInvalid},
		{"value lone high surrogate", with("metrics", `{"a":"\ud83d"}`), pipeline.MetricValueInvalid},
		{"value lone low surrogate", with("metrics", `{"a":["\ude00"]}`), pipeline.MetricValueInvalid},
		{"value surrogates swapped", with("metrics", `{"a":"\ude00\ud83d"}`), pipeline.MetricValueInvalid},
		{"value surrogate pair", with("metrics", `{"a":"\ud83d\ude00"}`), pipeline.Accepted},
		{"value out of range", with("metrics", `{"a":1e400000}`), pipeline.MetricValueInvalid},
		{"value out of range below", with("metrics", `{"a":{"b":-1e309}}`), pipeline.MetricValueInvalid},
		{"value at the range's end", with("metrics", `{"a":1.7976931348623157e308,"b":5e-324,"c":1e-400}`), pipeline.Accepted},
		{"value shadowed by a good one", with("metrics", `{"a":"\u0000","a":1}`), pipeline.Accepted},
		{"value key inside", with("metrics", `{"a":{"\u0000":1}}`), pipeline.MetricValueInvalid},
		{"what jsonb can't hold, outside the metrics", with("other", `"\u0000\ud800"`), pipeline.Accepted},

		{"seq absent", without("seq"), pipeline.Accepted},
		{"seq null", with("seq", `null`), pipeline.Accepted},
		{"seq with a fraction", with("seq", `1.9`), pipeline.Accepted},
		{"seq beyond 64 bits", with("seq", `9223372036854775808`), pipeline.SeqInvalid},
		{"seq text", with("seq", `"1"`), pipeline.SeqInvalid},

		{"seq of a shadow report", all(shadow, with("seq", `"1"`)), pipeline.Accepted},
		{"seq of an ack", all(ack, with("seq", `"1"`)), pipeline.Accepted},
		{"metrics of a shadow report", all(shadow, with("metrics", `[]`)), pipeline.Accepted},
		{"metrics of an ack", all(ack, with("metrics", `[]`)), pipeline.Accepted},
		{"version of an ack", all(ack, with("version", `"2"`)), pipeline.Accepted},
		{"reported of telemetry", with("reported", `1`), pipeline.Accepted},
		{"command of telemetry", all(without("command_id"), with("details", `1`)), pipeline.Accepted},

		{"reported absent", all(shadow, without("reported")), pipeline.ShadowInvalid},
		{"reported null", all(shadow, with("reported", `null`)), pipeline.ShadowInvalid},
		{"reported text", all(shadow, with("reported", `"{}"`)), pipeline.ShadowInvalid},
		{"reported empty", all(shadow, with("reported", `{}`)), pipeline.Accepted},
		{"reported that jsonb can't hold", all(shadow, with("reported", `{"a":"\u0000"}`)), pipeline.ShadowInvalid},
		{"reported version absent", all(shadow, without("version")), pipeline.Accepted},
		{"reported version 2", all(shadow, with("version", `2`)), pipeline.Accepted},
		{"reported version text", all(shadow, with("version", `"2"`)), pipeline.ShadowInvalid},
		{"reported version too large", all(shadow, with("version", `1e19`)), pipeline.ShadowInvalid},

		{"command absent", all(ack, without("command_id")), pipeline.CommandAckInvalid},
		{"command empty", all(ack, with("command_id", `""`)), pipeline.CommandAckInvalid},
		{"command a number", all(ack, with("command_id", `1`)), pipeline.CommandAckInvalid},
		{"command with U+0000", all(ack, with("command_id", `"a\u0000"`)), pipeline.CommandAckInvalid},
		{"details absent", all(ack, without("details")), pipeline.Accepted},
		{"details null", all(ack, with("details", `null`)), pipeline.Accepted},
		{"details text", all(ack, with("details", `"x"`)), pipeline.CommandAckInvalid},
		{"details that jsonb can't hold", all(ack, with("details", `{"a":1e999}`)), pipeline.CommandAckInvalid},

		{"tenant absent", without("tenant_id"), pipeline.Accepted},
		{"tenant null", with("tenant_id", `null`), pipeline.Accepted},
		{"tenant of another", with("tenant_id", `"t2"`), pipeline.TenantMismatchPayload},
		{"tenant empty", with("tenant_id", `""`), pipeline.TenantMismatchPayload},
		{"tenant a number", with("tenant_id", `1`), pipeline.TenantMismatchPayload},
		{"tenant of a shadow report", all(shadow, with("tenant_id", `"t2"`)), pipeline.TenantMismatchPayload},
		{"tenant of an ack", all(ack, with("tenant_id", `"t2"`)), pipeline.TenantMismatchPayload},

		{"site absent", without("site_id"), pipeline.MissingSiteID},
		{"site null", with("site_id", `null`), pipeline.MissingSiteID},
		{"site empty", with("site_id", `""`), pipeline.MissingSiteID},
		{"site a number", with("site_id", `1`), pipeline.MissingSiteID},
		{"site of a shadow report", all(shadow, without("site_id")), pipeline.Accepted},
		{"site of an ack", all(ack, without("site_id")), pipeline.Accepted},

		{"unregistered", func(s *sent) { s.device = nil }, pipeline.UnregisteredDevice},
		{"unregistered, shadow", all(shadow, func(s *sent) { s.device = nil }), pipeline.UnregisteredDevice},
		{"unregistered, ack", all(ack, func(s *sent) { s.device = nil }), pipeline.UnregisteredDevice},
		{"no room", func(s *sent) { s.device = pipeline.NoRoom }, pipeline.NoSubscriptionCapacity},
		{"unreadable", func(s *sent) { s.device = &pipeline.Device{Site: "s1", Status: "ACTIVE", Unreadable: "by noon"} }, pipeline.UnregisteredDevice},
		{"no room, shadow", all(shadow, func(s *sent) { s.device = pipeline.NoRoom }), pipeline.UnregisteredDevice},
		{"no room, ack", all(ack, func(s *sent) { s.device = pipeline.NoRoom }), pipeline.UnregisteredDevice},
		{"subscription active", func(s *sent) { s.device.Subscription = "ACTIVE" }, pipeline.Accepted},
		{"subscription of another word", func(s *sent) { s.device.Subscription = "TRIAL" }, pipeline.Accepted},
		{"subscription suspended, shadow", all(shadow, func(s *sent) { s.device.Subscription = "SUSPENDED" }), pipeline.SubscriptionSuspended},
		{"subscription expired, ack", all(ack, func(s *sent) { s.device.Subscription = "EXPIRED" }), pipeline.SubscriptionExpired},
		{"revoked", func(s *sent) { s.device.Status = "REVOKED" }, pipeline.DeviceRevoked},
		{"status empty", func(s *sent) { s.device.Status = "" }, pipeline.DeviceRevoked},
		{"revoked, ack", all(ack, func(s *sent) { s.device.Status = "REVOKED" }), pipeline.DeviceRevoked},
		{"revoked, shadow", all(shadow, func(s *sent) { s.device.Status = "REVOKED" }), pipeline.DeviceRevoked},
		{"site of the registry", func(s *sent) { s.device.Site = "s2" }, pipeline.SiteMismatch},
		{"site of the registry, shadow", all(shadow, func(s *sent) { s.device.Site = "s2" }), pipeline.Accepted},

		{"token not set", func(s *sent) { s.device.TokenHash = "" }, pipeline.TokenNotSet},
		{"token absent", without("provision_token"), pipeline.TokenMissing},
		{"token null", with("provision_token", `null`), pipeline.TokenMissing},
		{"token empty", with("provision_token", `""`), pipeline.TokenMissing},
		{"token a number", with("provision_token", `7`), pipeline.TokenMissing},
		{"token wrong", with("provision_token", `"tok2"`), pipeline.TokenInvalid},
		{"token's hash for the token", func(s *sent) { s.members["provision_token"] = `"` + s.device.TokenHash + `"` }, pipeline.TokenInvalid},
		{"token, hash cut short", func(s *sent) { s.device.TokenHash = s.device.TokenHash[:63] }, pipeline.TokenInvalid},
		{"token, hash with more", func(s *sent) { s.device.TokenHash += "0" }, pipeline.TokenInvalid},
		{"token as escapes", with("provision_token", `"\u0074ok"`), pipeline.Accepted},
		{"token not required", all(without("provision_token"), func(s *sent) { s.settings.RequireToken = false }), pipeline.Accepted},
		{"token of a shadow report", all(shadow, without("provision_token")), pipeline.Accepted},
		{"token of an ack", all(ack, without("provision_token")), pipeline.Accepted},
	} {
		s := good()
		c.flaw(&s)
		if got := s.verdict(); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// flaw is what makes a message fail for a reason.
type flaw struct {
	reason pipeline.Reason
	apply  func(*sent)
	group  string // two flaws of one group need the same member
}

// inOrder sends messages of a type with every two of the flaws, which are in the order
// of the checks, by both paths, and returns how many pairs there are. RATE_LIMITED is
// no flaw, but a place: what fails before it is not charged, what fails after it is.
func inOrder(t *testing.T, msgType string, flaws []flaw) (pairs int) {
	t.Helper()
	place := slices.IndexFunc(flaws, func(f flaw) bool { return f.reason == pipeline.RateLimited })
	for i, first := range flaws {
		for _, second := range flaws[i+1:] {
			if first.group != "" && first.group == second.group || i == place {
				continue
			}
			s := good()
			if msgType != "" {
				on(msgType)(&s)
			}
			second.apply(&s)
			first.apply(&s)
			got, metered := s.judge()
			if got != first.reason || metered != (i > place) {
				t.Errorf("%s and %s of %q: %q, charged is %v", first.reason, second.reason, msgType, got, metered)
			}
			pairs++
		}
	}
	return pairs
}

// TestFirstFailingCheckWins: of every two flaws that a message can have at once,
// the one that CONTRACT.md ("Validation") names first is the reason, on both paths.
func TestFirstFailingCheckWins(t *testing.T) {
	metrics := func(s *sent, m string) { s.members["metrics"] = m }
	tooLong := `"` + strings.Repeat("x", 129) + `":1`
	flaws := []flaw{
		{pipeline.InvalidJSON, with("broken", "x"), ""},
		{pipeline.BadTopicFormat, func(s *sent) { s.topic = "tenant/t1/device/d1/" }, ""},
		{pipeline.TenantMismatchEnvelope, func(s *sent) { s.subject = "telemetry.t2" }, ""},
		{pipeline.UnsupportedVersion, with("version", `"9"`), ""},
		{pipeline.PayloadTooLarge, func(s *sent) { s.settings.MaxPayloadBytes = 10 }, ""},
		{pipeline.MetricsInvalid, func(s *sent) { metrics(s, `[]`) }, "metrics"},
		{pipeline.TooManyMetrics, func(s *sent) { metrics(s, keys(51)) }, "metrics"},
		{pipeline.MetricKeyTooLong, func(s *sent) { metrics(s, `{`+tooLong+`}`) }, "metrics"},
		{pipeline.MetricKeyInvalid, func(s *sent) { metrics(s, `{"\n":1}`) }, "metrics"},
		{pipeline.MetricValueInvalid, func(s *sent) { metrics(s, `{"a":1e999}`) }, "metrics"},
		{pipeline.SeqInvalid, with("seq", `"x"`), ""},
		{pipeline.RateLimited, func(*sent) {}, ""},
		{pipeline.TenantMismatchPayload, with("tenant_id", `"t2"`), ""},
		{pipeline.MissingSiteID, without("site_id"), "site"},
		{pipeline.UnregisteredDevice, func(s *sent) { s.device = nil }, "device"},
		{pipeline.NoSubscriptionCapacity, func(s *sent) { s.device = pipeline.NoRoom }, "device"},
		{pipeline.SubscriptionSuspended, func(s *sent) { s.device.Subscription = "SUSPENDED" }, "subscription"},
		{pipeline.SubscriptionExpired, func(s *sent) { s.device.Subscription = "EXPIRED" }, "subscription"},
		{pipeline.DeviceRevoked, func(s *sent) { s.device.Status = "REVOKED" }, "device"},
		{pipeline.SiteMismatch, func(s *sent) { s.members["site_id"] = `"s2"` }, "site"},
		{pipeline.TokenNotSet, func(s *sent) { s.device.TokenHash = "" }, ""},
		{pipeline.TokenMissing, without("provision_token"), "token"},
		{pipeline.TokenInvalid, with("provision_token", `"x"`), "token"},
	}
	if pairs := inOrder(t, "", flaws); pairs < 200 {
		t.Errorf("only %d pairs", pairs)
	}
	elsewhere := func(own flaw) (list []flaw) {
		for _, f := range flaws {
			switch f.reason {
			case pipeline.SeqInvalid:
				list = append(list, own)
			case pipeline.InvalidJSON, pipeline.BadTopicFormat, pipeline.TenantMismatchEnvelope, pipeline.PayloadTooLarge, pipeline.RateLimited, pipeline.TenantMismatchPayload,
				pipeline.UnregisteredDevice, pipeline.SubscriptionSuspended, pipeline.SubscriptionExpired, pipeline.DeviceRevoked:
				list = append(list, f)
			}
		}
		return list
	}
	inOrder(t, "shadow/reported", elsewhere(flaw{pipeline.ShadowInvalid, with("reported", `1`), ""}))
	inOrder(t, "commands/ack", elsewhere(flaw{pipeline.CommandAckInvalid, with("details", `1`), ""}))
	// Flaws of one member, each text holding two.
	many := strings.TrimSuffix(keys(50), "}")
	for text, want := range map[string]pipeline.Reason{
		many + `,` + tooLong + `}`:       pipeline.TooManyMetrics,
		many + `,"\n":1}`:                pipeline.TooManyMetrics,
		many + `,"a":1e999}`:             pipeline.TooManyMetrics,
		`{"\n":1,` + tooLong + `}`:       pipeline.MetricKeyTooLong,
		`{` + tooLong + `,"\u0085":1}`:   pipeline.MetricKeyTooLong,
		`{` + tooLong + `,"a":"\u0000"}`: pipeline.MetricKeyTooLong,
		`{"a":"\u0000","b\n":1}`:         pipeline.MetricKeyInvalid,
	} {
		s := good()
		metrics(&s, text)
		if got := s.verdict(); got != want {
			t.Errorf("metrics %.60s…: %q, want %q", text, got, want)
		}
	}
}
