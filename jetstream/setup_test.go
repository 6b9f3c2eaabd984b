package jetstream_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/crossfade-io/crossfade/internal/devstack"
	"github.com/crossfade-io/crossfade/jetstream"
)

func TestEnsureCreatesTheContract(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	conn := connect(t, server, "")
	report, err := jetstream.Ensure(testContext(t), conn, jetstream.DefaultSetupOptions())
	if err != nil {
		t.Fatalf("Ensure = %v", err)
	}
	want := []string{
		"stream TELEMETRY", "consumer ingest-workers on TELEMETRY",
		"stream SHADOW", "consumer ingest-shadow on SHADOW",
		"stream COMMANDS", "consumer ingest-commands on COMMANDS",
		"stream ROUTES",
	}
	if !slices.Equal(report.Created, want) || len(report.Findings) != 0 {
		t.Errorf("report = %+v, want created %v and no findings", report, want)
	}
	for name, limits := range map[string]struct {
		subject    string
		retention  natsjs.RetentionPolicy
		age        time.Duration
		bytes      int64
		perSubject int64
	}{
		"TELEMETRY": {"telemetry.>", natsjs.LimitsPolicy, time.Hour, 1 << 30, 100_000},
		"SHADOW":    {"shadow.>", natsjs.LimitsPolicy, time.Hour, 256 << 20, -1},
		"COMMANDS":  {"commands.>", natsjs.LimitsPolicy, time.Hour, 256 << 20, -1},
		"ROUTES":    {"routes.>", natsjs.WorkQueuePolicy, 24 * time.Hour, 512 << 20, -1},
	} {
		stream, err := js.Stream(testContext(t), name)
		if err != nil {
			t.Fatal(err)
		}
		c := stream.CachedInfo().Config
		if !slices.Equal(c.Subjects, []string{limits.subject}) || c.Retention != limits.retention || c.MaxAge != limits.age ||
			c.MaxBytes != limits.bytes || c.MaxMsgsPerSubject != limits.perSubject || c.Storage != natsjs.FileStorage ||
			c.Discard != natsjs.DiscardOld || c.Duplicates != 2*time.Minute {
			t.Errorf("%s = %+v, want %+v", name, c, limits)
		}
	}
	// What we create is to our own liking, and creating is repeatable.
	report, err = jetstream.Ensure(testContext(t), conn, jetstream.DefaultSetupOptions())
	if err != nil || len(report.Created) != 0 || len(report.Findings) != 0 {
		t.Errorf("second Ensure = %+v, %v, want nothing to do", report, err)
	}
}

// goodStream and goodConsumer are what no finding is about.
func goodStream() natsjs.StreamConfig {
	return natsjs.StreamConfig{Name: "TELEMETRY", Subjects: []string{"telemetry.>"}, MaxMsgs: -1, MaxBytes: -1, MaxMsgsPerSubject: -1}
}

func goodConsumer() natsjs.ConsumerConfig {
	return natsjs.ConsumerConfig{
		Durable: jetstream.ConsumerTelemetry, AckPolicy: natsjs.AckExplicitPolicy,
		AckWait: time.Minute, MaxDeliver: -1, MaxAckPending: 20_000,
	}
}

func TestFindings(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	conn := connect(t, server, "")
	type stream = natsjs.StreamConfig
	type consumer = natsjs.ConsumerConfig
	for _, c := range []struct {
		setting  string // that is found; "" for none
		have     string
		unusable bool
		stream   func(*stream)
		consumer func(*consumer)
	}{
		{setting: ""},
		{setting: "subjects", have: "telemetry.*.raw", stream: func(s *stream) { s.Subjects = []string{"telemetry.*.raw"} }},
		{setting: "retention", have: "Interest", stream: func(s *stream) { s.Retention = natsjs.InterestPolicy }},
		{setting: "retention", have: "WorkQueue", stream: func(s *stream) { s.Retention = natsjs.WorkQueuePolicy }},
		{setting: "storage", have: "Memory", stream: func(s *stream) { s.Storage = natsjs.MemoryStorage }},
		{setting: "discard", have: "DiscardNew", stream: func(s *stream) { s.Discard = natsjs.DiscardNew }},
		{setting: "no_ack", have: "true", stream: func(s *stream) { s.NoAck = true }},
		{setting: "max_age", have: "10m0s", stream: func(s *stream) { s.MaxAge = 10 * time.Minute }},
		{setting: "max_bytes", have: "1048576", stream: func(s *stream) { s.MaxBytes = 1 << 20 }},
		{setting: "max_msgs", have: "5000", stream: func(s *stream) { s.MaxMsgs = 5000 }},
		{setting: "max_msgs_per_subject", have: "10", stream: func(s *stream) { s.MaxMsgsPerSubject = 10 }},
		{setting: "max_msg_size", have: "1024", stream: func(s *stream) { s.MaxMsgSize = 1024 }},
		{setting: "subject_transform", have: "telemetry.> → t.>", stream: func(s *stream) {
			s.SubjectTransform = &natsjs.SubjectTransformConfig{Source: "telemetry.>", Destination: "t.>"}
		}},
		{setting: "ack_policy", have: "AckNone", unusable: true, consumer: func(c *consumer) { c.AckPolicy, c.AckWait, c.MaxAckPending = natsjs.AckNonePolicy, 0, 0 }},
		{setting: "ack_policy", have: "AckAll", unusable: true, consumer: func(c *consumer) { c.AckPolicy = natsjs.AckAllPolicy }},
		{setting: "headers_only", have: "true", unusable: true, consumer: func(c *consumer) { c.HeadersOnly = true }},
		{setting: "deliver_subject", have: "push.here", unusable: true, consumer: func(c *consumer) { c.DeliverSubject = "push.here" }},
		{setting: "priority_policy", unusable: true, consumer: func(c *consumer) {
			c.PriorityPolicy, c.PriorityGroups = natsjs.PriorityPolicyOverflow, []string{"a"}
		}},
		{setting: "deliver_policy", have: "new", consumer: func(c *consumer) { c.DeliverPolicy = natsjs.DeliverNewPolicy }},
		{setting: "deliver_policy", have: "last", consumer: func(c *consumer) { c.DeliverPolicy = natsjs.DeliverLastPolicy }},
		{setting: "filter", have: "telemetry.t1", consumer: func(c *consumer) { c.FilterSubject = "telemetry.t1" }},
		{setting: "max_deliver", have: "3", consumer: func(c *consumer) { c.MaxDeliver = 3 }},
		{setting: "ack_wait", have: "5s", consumer: func(c *consumer) { c.AckWait = 5 * time.Second }},
		{setting: "ack_wait", have: "1s", consumer: func(c *consumer) { c.BackOff = []time.Duration{time.Second, time.Minute} }},
		{setting: "inactive_threshold", have: "1h0m0s", consumer: func(c *consumer) { c.InactiveThreshold = time.Hour }},
		{setting: "mem_storage", have: "true", consumer: func(c *consumer) { c.MemoryStorage = true }},
		{setting: "max_ack_pending", have: "1000", consumer: func(c *consumer) { c.MaxAckPending = 1000 }},
		{setting: "max_waiting", have: "1", consumer: func(c *consumer) { c.MaxWaiting = 1 }},
		{setting: "max_batch", have: "10", consumer: func(c *consumer) { c.MaxRequestBatch = 10 }},
		{setting: "replay_policy", have: "original", consumer: func(c *consumer) { c.ReplayPolicy = natsjs.ReplayOriginalPolicy }},
		{setting: "pause_until", consumer: func(c *consumer) { at := time.Now().Add(time.Hour); c.PauseUntil = &at }},
	} {
		t.Run(c.setting+" "+c.have, func(t *testing.T) {
			ctx := testContext(t)
			s, k := goodStream(), goodConsumer()
			if c.stream != nil {
				c.stream(&s)
			}
			if c.consumer != nil {
				c.consumer(&k)
			}
			made, err := js.CreateStream(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := js.DeleteStream(testContext(t), "TELEMETRY"); err != nil {
					t.Error(err)
				}
			}()
			if k.DeliverSubject != "" {
				_, err = made.CreatePushConsumer(ctx, k)
			} else {
				_, err = made.CreateConsumer(ctx, k)
			}
			if err != nil {
				t.Fatal(err)
			}
			report, err := jetstream.Ensure(ctx, conn, jetstream.DefaultSetupOptions())
			if c.unusable != errors.Is(err, jetstream.ErrUnusable) || (err != nil && !c.unusable) {
				t.Errorf("Ensure = %v, unusable: want %v", err, c.unusable)
			}
			if err != nil && !strings.Contains(err.Error(), c.setting) {
				t.Errorf("error %q does not name %s", err, c.setting)
			}
			checkFinding(t, report.Findings, c.setting, c.have, c.unusable)
		})
	}
}

func checkFinding(t *testing.T, findings []jetstream.Finding, setting, have string, unusable bool) {
	t.Helper()
	for _, f := range findings {
		if f.Setting != setting {
			// A push consumer has no max_waiting, a setting may drag others along.
			t.Logf("also found: %s", f)
			continue
		}
		if have != "" && f.Have != have {
			t.Errorf("have = %q, want %q", f.Have, have)
		}
		if f.Unusable != unusable || f.Adjusted || f.Want == "" || f.Consequence == "" || !strings.Contains(f.Object, "TELEMETRY") {
			t.Errorf("finding = %+v", f)
		}
		return
	}
	if setting != "" || len(findings) != 0 {
		t.Errorf("findings = %v, want one about %q", findings, setting)
	}
}

// The settings of existing installations are changed only on request.
func TestAdjust(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	conn := connect(t, server, "")
	createConsumer(t, js, func(c *natsjs.ConsumerConfig) { c.MaxDeliver, c.AckWait = 3, 5*time.Second })
	config := func() natsjs.ConsumerConfig {
		c, err := js.Consumer(testContext(t), "TELEMETRY", jetstream.ConsumerTelemetry)
		if err != nil {
			t.Fatal(err)
		}
		return c.CachedInfo().Config
	}
	settings := func(findings []jetstream.Finding, adjusted bool) (list []string) {
		for _, f := range findings {
			if f.Adjusted == adjusted {
				list = append(list, f.Setting)
			}
		}
		return list
	}
	want := []string{"max_deliver", "ack_wait", "max_ack_pending"}

	options := jetstream.DefaultSetupOptions()
	report, err := jetstream.Ensure(testContext(t), conn, options)
	if err != nil || !slices.Equal(settings(report.Findings, false), want) {
		t.Fatalf("Ensure = %v, %v, want findings about %v", report.Findings, err, want)
	}
	if c := config(); c.MaxDeliver != 3 || c.AckWait != 5*time.Second || c.MaxAckPending != 1000 {
		t.Fatalf("changed without permission: %+v", c)
	}

	options.Adjust = true
	report, err = jetstream.Ensure(testContext(t), conn, options)
	if err != nil || !slices.Equal(settings(report.Findings, true), want) {
		t.Fatalf("Ensure with Adjust = %v, %v, want %v adjusted", report.Findings, err, want)
	}
	if c := config(); c.MaxDeliver != -1 || c.AckWait != time.Minute || c.MaxAckPending != 20_000 {
		t.Errorf("after Adjust: %+v", c)
	}
	if report, err = jetstream.Ensure(testContext(t), conn, options); err != nil || len(report.Findings) != 0 {
		t.Errorf("afterwards: %v, %v, want no findings", report.Findings, err)
	}
}

// The subjects of a missing stream may belong to another one.
func TestSubjectsTaken(t *testing.T) {
	server := devstack.TestNATS(t)
	js := direct(t, server)
	if _, err := js.CreateStream(testContext(t), natsjs.StreamConfig{Name: "OLD", Subjects: []string{"telemetry.>"}}); err != nil {
		t.Fatal(err)
	}
	_, err := jetstream.Ensure(testContext(t), connect(t, server, ""), jetstream.DefaultSetupOptions())
	if err == nil || !strings.Contains(err.Error(), "stream OLD") {
		t.Errorf("Ensure = %v, want an error that names stream OLD", err)
	}
}
