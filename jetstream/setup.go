package jetstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// SetupOptions says how missing streams are created and what may be done to
// those that exist.
type SetupOptions struct {
	// Replicas of streams that are created, 1 to 5; existing streams with
	// fewer are reported. More than 1 needs a cluster of that size.
	Replicas int
	// Duplicates is how long a created stream remembers message IDs (the
	// Nats-Msg-Id header) in order to drop repeats.
	Duplicates time.Duration
	// AckWait is how long a created consumer waits for an acknowledgement before
	// it delivers the message again, 1 s to 1 h: what a killed instance had in
	// hand comes again after that. An existing consumer keeps its own, which is
	// reported where it is shorter than this and dangerous.
	AckWait time.Duration
	// Batch is how many messages the pipeline collects before it acknowledges
	// any. A consumer that allows fewer than twice as many unacknowledged ones
	// starves it.
	Batch int
	// Adjust permits changing existing consumers in place: ack_wait,
	// max_deliver and max_ack_pending, where they are dangerous. Nothing else
	// is ever changed.
	Adjust bool
}

// DefaultSetupOptions returns one replica, a duplicate window of two minutes,
// an ack wait of one minute, batches of 4,000, and no permission to change what exists.
func DefaultSetupOptions() SetupOptions {
	return SetupOptions{Replicas: 1, Duplicates: 2 * time.Minute, AckWait: ourAckWait, Batch: 4000}
}

// Validate names the first field that is out of range and its remedy.
func (o SetupOptions) Validate() error {
	switch {
	case o.Replicas < 1 || o.Replicas > 5:
		return fmt.Errorf("field Replicas: %d is out of range; use 1 to 5", o.Replicas)
	case o.Duplicates < 100*time.Millisecond || o.Duplicates > time.Hour:
		return fmt.Errorf("field Duplicates: %s is out of range; use 100ms to 1h", o.Duplicates)
	case o.AckWait < time.Second || o.AckWait > time.Hour:
		return fmt.Errorf("field AckWait: %s is out of range; use 1s to 1h", o.AckWait)
	case o.Batch < 1:
		return fmt.Errorf("field Batch: %d is out of range; use the pipeline's batch size", o.Batch)
	}
	return nil
}

// Finding is one setting of an existing stream or consumer that loses messages
// or cripples ingest.
type Finding struct {
	Object      string // "stream TELEMETRY", "consumer ingest-workers on TELEMETRY"
	Setting     string // as the nats tool calls it
	Have, Want  string
	Consequence string
	// Unusable: nothing can be consumed safely until somebody changes it.
	Unusable bool
	// Adjusted: it was changed to Want, as SetupOptions.Adjust permits.
	Adjusted bool
}

// String puts the finding into one line for a log or a terminal.
func (f Finding) String() string {
	s := fmt.Sprintf("%s: %s is %s, should be %s: %s", f.Object, f.Setting, f.Have, f.Want, f.Consequence)
	if f.Adjusted {
		s += " (changed)"
	}
	return s
}

// Report is what Ensure did and saw.
type Report struct {
	Created  []string // such as "stream TELEMETRY"
	Findings []Finding
}

// ErrUnusable is what errors about settings match (errors.Is) that make an
// existing stream or consumer unusable. Retrying does not help.
var ErrUnusable = errors.New("existing JetStream settings cannot be used")

// apiTimeout bounds one question to the server, so that a half-dead one is
// noticed.
const apiTimeout = 5 * time.Second

// Ensure creates the streams and consumers that are missing, and reports the
// dangerous settings of those that exist. It is safe to run on several
// instances at once, and to repeat.
//
// It needs a connection: while there is none it returns an error. The report
// holds what was done even where there is an error; one that matches
// [ErrUnusable] means that no retry helps before an operator acts.
func Ensure(ctx context.Context, conn *Conn, o SetupOptions) (Report, error) {
	var report Report
	if err := o.Validate(); err != nil {
		return report, fmt.Errorf("JetStream set-up: %w", err)
	}
	var errs []error
	for _, s := range specs {
		r, _, err := ensureSpec(ctx, conn, s, o)
		report.Created = append(report.Created, r.Created...)
		report.Findings = append(report.Findings, r.Findings...)
		if err != nil {
			errs = append(errs, fmt.Errorf("JetStream set-up: %w", err))
		}
	}
	return report, errors.Join(errs...)
}

// ensured is what the source needs to know of a stream and its consumer.
type ensured struct {
	stream   natsjs.Stream
	consumer *natsjs.ConsumerInfo // nil where the spec has none
}

func ensureSpec(ctx context.Context, conn *Conn, s spec, o SetupOptions) (Report, ensured, error) {
	var report Report
	var got ensured
	if !conn.connected() {
		return report, got, fmt.Errorf("stream %s: %w", s.name, conn.Health())
	}
	stream, created, err := ensureStream(ctx, conn.js, s, o)
	if err != nil {
		return report, got, err
	}
	got.stream = stream
	if created {
		report.Created = append(report.Created, "stream "+s.name)
	} else {
		report.Findings = append(report.Findings, inspectStream(s, stream.CachedInfo().Config, o)...)
	}
	if s.consumer != "" {
		var found []Finding
		got.consumer, created, found, err = ensureConsumer(ctx, stream, s, o)
		report.Findings = append(report.Findings, found...)
		if err != nil {
			return report, got, err
		}
		if created {
			report.Created = append(report.Created, consumerObject(s))
		}
	}
	return report, got, unusable(report.Findings)
}

func unusable(findings []Finding) error {
	var lines []string
	for _, f := range findings {
		if f.Unusable {
			lines = append(lines, f.String())
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrUnusable, strings.Join(lines, "; "))
}

func ensureStream(ctx context.Context, js natsjs.JetStream, s spec, o SetupOptions) (natsjs.Stream, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	stream, err := js.Stream(ctx, s.name)
	if err == nil {
		return stream, false, nil
	}
	if !errors.Is(err, natsjs.ErrStreamNotFound) {
		return nil, false, fmt.Errorf("look up stream %s: %w", s.name, err)
	}
	stream, err = js.CreateStream(ctx, s.streamConfig(o))
	switch {
	case err == nil:
		return stream, true, nil
	case errors.Is(err, natsjs.ErrStreamNameAlreadyInUse):
		// Another instance was faster, with other settings.
		if stream, err = js.Stream(ctx, s.name); err == nil {
			return stream, false, nil
		}
	}
	if owner, lookupErr := js.StreamNameBySubject(ctx, s.subject); lookupErr == nil && owner != s.name {
		return nil, false, fmt.Errorf("create stream %s: its subjects %s belong to stream %s already; take them from that stream or rename it: %w", s.name, s.subject, owner, err)
	}
	return nil, false, fmt.Errorf("create stream %s (replicas %d, %d MiB on file): %w", s.name, o.Replicas, s.maxBytes/mebibyte, err)
}

func ensureConsumer(ctx context.Context, stream natsjs.Stream, s spec, o SetupOptions) (*natsjs.ConsumerInfo, bool, []Finding, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	info, err := consumerInfo(ctx, stream, s.consumer)
	created := false
	if errors.Is(err, natsjs.ErrConsumerNotFound) || errors.Is(err, natsjs.ErrConsumerDoesNotExist) {
		var c natsjs.Consumer
		c, err = stream.CreateConsumer(ctx, s.consumerConfig(o))
		switch {
		case err == nil:
			return c.CachedInfo(), true, nil, nil
		case errors.Is(err, natsjs.ErrConsumerExists):
			// Another instance was faster, with other settings.
			info, err = consumerInfo(ctx, stream, s.consumer)
		default:
			return nil, false, nil, fmt.Errorf("create %s: %w", consumerObject(s), err)
		}
	}
	if err != nil {
		return nil, false, nil, fmt.Errorf("look up %s: %w", consumerObject(s), err)
	}
	findings := inspectConsumer(s, stream.CachedInfo().Config, info, o)
	if effectiveAckWait(info.Config) >= o.AckWait {
		// As short as it was wished to be.
		findings = slices.DeleteFunc(findings, func(f Finding) bool { return f.Setting == settingAckWait })
	}
	if o.Adjust && unusable(findings) == nil {
		if info, err = adjust(ctx, stream, info, findings, o); err != nil {
			return nil, false, findings, fmt.Errorf("adjust %s: %w", consumerObject(s), err)
		}
	}
	return info, created, findings, nil
}

// consumerInfo also answers for a push consumer, so that it can be reported.
func consumerInfo(ctx context.Context, stream natsjs.Stream, name string) (*natsjs.ConsumerInfo, error) {
	c, err := stream.Consumer(ctx, name)
	if err == nil {
		return c.CachedInfo(), nil
	}
	if !errors.Is(err, natsjs.ErrNotPullConsumer) {
		return nil, err
	}
	push, err := stream.PushConsumer(ctx, name)
	if err != nil {
		return nil, err
	}
	return push.CachedInfo(), nil
}

// adjust changes those of the findings that the server lets us change in place,
// marks them, and returns the consumer as it is afterwards.
func adjust(ctx context.Context, stream natsjs.Stream, info *natsjs.ConsumerInfo, findings []Finding, o SetupOptions) (*natsjs.ConsumerInfo, error) {
	config := info.Config
	var changed []int
	for i, f := range findings {
		switch f.Setting {
		case settingAckWait:
			config.AckWait = ourAckWait
			// A backoff list overrides ack_wait.
			config.BackOff = nil
		case settingMaxDeliver:
			config.MaxDeliver = -1
		case settingMaxAckPending:
			config.MaxAckPending = max(ourMaxAckPending, 2*o.Batch)
		default:
			continue
		}
		changed = append(changed, i)
	}
	if len(changed) == 0 {
		return info, nil
	}
	c, err := stream.UpdateConsumer(ctx, config)
	if err != nil {
		return nil, err
	}
	for _, i := range changed {
		findings[i].Adjusted = true
	}
	return c.CachedInfo(), nil
}

func consumerObject(s spec) string { return "consumer " + s.consumer + " on " + s.name }

// covers reports whether one of the patterns takes in every subject that
// matches the wanted one, which ends in ">".
func covers(patterns []string, want string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if p == want || p == ">" {
			return true
		}
		// "*.>" takes in "telemetry.>" too.
		head, _, _ := strings.Cut(want, ".")
		rest, ok := strings.CutPrefix(p, "*.")
		return ok && head+"."+rest == want
	})
}
