package jetstream

import (
	"fmt"
	"slices"
	"strings"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// Settings that Adjust can change.
const (
	settingAckWait       = "ack_wait"
	settingMaxDeliver    = "max_deliver"
	settingMaxAckPending = "max_ack_pending"
)

// settingGivenUp is no setting, but what max_deliver has done.
const settingGivenUp = "messages given up and acknowledged by nobody"

const (
	// leastAckWait: below this a pause of a client or a network is taken for
	// its death, and messages that are being written are delivered again.
	leastAckWait = 30 * time.Second
	// leastMaxWaiting: pulls that a few instances may have waiting at once.
	leastMaxWaiting = 64
	// leastRequestBatch: smaller pulls cost more than the messages in them.
	leastRequestBatch = 100
)

// inspection collects findings about one object.
type inspection struct {
	object   string
	findings []Finding
}

func (in *inspection) add(setting string, have, want any, consequence string) {
	in.findings = append(in.findings, Finding{
		Object: in.object, Setting: setting,
		Have: fmt.Sprint(have), Want: fmt.Sprint(want), Consequence: consequence,
	})
}

func (in *inspection) refuse(setting string, have, want any, consequence string) {
	in.add(setting, have, want, consequence)
	in.findings[len(in.findings)-1].Unusable = true
}

// inspectStream lists what in an existing stream's settings loses messages.
// Looser limits than the contract's are fine.
func inspectStream(s spec, c natsjs.StreamConfig, o SetupOptions) []Finding {
	in := &inspection{object: "stream " + s.name}
	if !covers(c.Subjects, s.subject) {
		in.add("subjects", listed(c.Subjects), s.subject, "messages on the missing subjects are stored nowhere")
	}
	if c.SubjectTransform != nil {
		in.add("subject_transform", c.SubjectTransform.Source+" → "+c.SubjectTransform.Destination, "none", "the subject no longer names the tenant, messages are quarantined")
	}
	inspectKeeping(in, s, c, o)
	inspectLimits(in, s, c)
	return in.findings
}

// inspectKeeping looks at whether a stored message stays stored.
func inspectKeeping(in *inspection, s spec, c natsjs.StreamConfig, o SetupOptions) {
	if c.Retention != s.retention {
		consequence := "other consumers of the stream lose or block each other's messages"
		if c.Retention == natsjs.InterestPolicy {
			consequence = "whatever arrives while no consumer exists is dropped at once"
		} else if c.Retention == natsjs.LimitsPolicy {
			consequence = "work that is done stays until it expires and may be done again"
		}
		in.add("retention", c.Retention, s.retention, consequence)
	}
	if c.Storage != natsjs.FileStorage {
		in.add("storage", c.Storage, natsjs.FileStorage, "a restart of the server loses every message that was not yet handled")
	}
	if c.PersistMode == natsjs.AsyncPersistMode {
		in.add("persist_mode", c.PersistMode, "default", "a crash of the server loses messages whose producers were told that they are stored")
	}
	if c.Replicas < o.Replicas {
		in.add("num_replicas", c.Replicas, o.Replicas, "the stream is away, or lost, with its one server")
	}
	if c.Discard != natsjs.DiscardOld {
		in.add("discard", c.Discard, natsjs.DiscardOld, "once the stream is full new messages are refused, and lost where a producer does not retry")
	}
	if c.NoAck {
		in.add("no_ack", true, false, "producers and the mirror never learn that a message is stored")
	}
	if c.Sealed {
		in.refuse("sealed", true, false, "the stream takes no messages; delete it, and it is created anew")
	}
}

// inspectLimits looks at limits that are tighter than the contract's. Zero and
// -1 both mean none.
func inspectLimits(in *inspection, s spec, c natsjs.StreamConfig) {
	const backlog = "a backlog beyond it is dropped unread"
	if c.MaxAge > 0 && c.MaxAge < s.maxAge {
		in.add("max_age", c.MaxAge, s.maxAge, "an outage longer than this loses messages")
	}
	if c.MaxBytes > 0 && c.MaxBytes < s.maxBytes {
		in.add("max_bytes", c.MaxBytes, s.maxBytes, backlog)
	}
	if c.MaxMsgs > 0 {
		in.add("max_msgs", c.MaxMsgs, "none", backlog)
	}
	if c.MaxMsgsPerSubject > 0 && (s.maxPerSubject < 0 || c.MaxMsgsPerSubject < s.maxPerSubject) {
		want := "none"
		if s.maxPerSubject > 0 {
			want = fmt.Sprint(s.maxPerSubject)
		}
		in.add("max_msgs_per_subject", c.MaxMsgsPerSubject, want, "a tenant's backlog beyond it is dropped unread")
	}
	if c.MaxMsgSize > 0 && c.MaxMsgSize < 64*1024 {
		in.add("max_msg_size", c.MaxMsgSize, "65536 or none", "larger envelopes are refused, and can never be mirrored")
	}
}

// inspectConsumer lists what in an existing consumer's settings loses messages
// or makes ingest crawl.
func inspectConsumer(s spec, stream natsjs.StreamConfig, info *natsjs.ConsumerInfo, o SetupOptions) []Finding {
	c := info.Config
	in := &inspection{object: consumerObject(s)}
	const recreate = "; delete the consumer, and it is created anew"
	if c.AckPolicy != natsjs.AckExplicitPolicy {
		in.refuse("ack_policy", c.AckPolicy, natsjs.AckExplicitPolicy, "messages count as handled before they are written"+recreate)
	}
	if c.DeliverSubject != "" {
		in.refuse("deliver_subject", c.DeliverSubject, "none", "it is a push consumer and cannot be pulled from"+recreate)
	}
	if c.HeadersOnly {
		in.refuse("headers_only", true, false, "messages arrive without their bodies; set it to false")
	}
	if c.PriorityPolicy != natsjs.PriorityPolicyNone {
		in.refuse("priority_policy", fmt.Sprint(c.PriorityPolicy), "none", "pulls without a group are refused"+recreate)
	}
	inspectDelivery(in, s, stream, c)
	inspectDeadlines(in, c)
	inspectPace(in, info, o)
	if leftBehind(info.NumRedelivered, info.NumAckPending) > 0 {
		// Without their number: it changes, and each finding is logged once.
		in.add(settingGivenUp, "some", "none", "they are lost when they leave the stream, unless an instance has them in hand; "+
			"delete the consumer, and it is created anew and reads the whole stream again; what the ledger has takes no effect twice")
	}
	return in.findings
}

// inspectDelivery looks at which messages reach the consumer at all.
func inspectDelivery(in *inspection, s spec, stream natsjs.StreamConfig, c natsjs.ConsumerConfig) {
	if c.DeliverPolicy != natsjs.DeliverAllPolicy {
		in.add("deliver_policy", c.DeliverPolicy, natsjs.DeliverAllPolicy, "messages that were stored before it was created are never handled")
	}
	filters := slices.Clone(c.FilterSubjects)
	if c.FilterSubject != "" {
		filters = append(filters, c.FilterSubject)
	}
	if len(filters) > 0 && !covers(filters, s.subject) && !slices.Equal(filters, stream.Subjects) {
		in.add("filter", listed(filters), "none", "messages on other subjects are never handled")
	}
	if len(filters) > 1 {
		in.add("filter", fmt.Sprintf("%d filters", len(filters)), "none", "many filters cut the throughput to a hundredth")
	}
}

// inspectDeadlines looks at what the server does with a message that is not
// acknowledged at once.
func inspectDeadlines(in *inspection, c natsjs.ConsumerConfig) {
	if c.MaxDeliver > 0 {
		in.add(settingMaxDeliver, c.MaxDeliver, "-1 (no limit)", "a message that could not be written so many times is given up; if no instance hears of it then, or all that did are killed before it is written, it is lost")
	}
	if wait := effectiveAckWait(c); wait < leastAckWait {
		in.add(settingAckWait, wait, ourAckWait, "a pause of this length delivers messages again that are being written")
	}
	if c.InactiveThreshold > 0 {
		in.add("inactive_threshold", c.InactiveThreshold, "none", "the consumer and its position vanish when no instance runs for so long")
	}
	if c.MemoryStorage {
		in.add("mem_storage", true, false, "a restart of the server forgets what was acknowledged, all of it comes again")
	}
}

// inspectPace looks at what keeps the consumer from flowing.
func inspectPace(in *inspection, info *natsjs.ConsumerInfo, o SetupOptions) {
	c := info.Config
	if c.MaxAckPending > 0 && c.MaxAckPending < 2*o.Batch {
		in.add(settingMaxAckPending, c.MaxAckPending, max(ourMaxAckPending, 2*o.Batch),
			fmt.Sprintf("fewer messages in flight than two batches of %d: batches never fill and ingest crawls", o.Batch))
	}
	if c.MaxWaiting > 0 && c.MaxWaiting < leastMaxWaiting {
		in.add("max_waiting", c.MaxWaiting, fmt.Sprintf("%d or more", leastMaxWaiting), "with several instances pulls are refused")
	}
	if c.MaxRequestBatch > 0 && c.MaxRequestBatch < leastRequestBatch {
		in.add("max_batch", c.MaxRequestBatch, "none", "tiny pulls make ingest crawl")
	}
	if c.ReplayPolicy != natsjs.ReplayInstantPolicy {
		in.add("replay_policy", c.ReplayPolicy, natsjs.ReplayInstantPolicy, "a backlog is replayed at the pace at which it came, and is never made up")
	}
	if info.Paused {
		in.add("pause_until", info.PauseRemaining.Round(time.Second).String()+" left", "not paused", "nothing is delivered until then")
	}
}

// effectiveAckWait is the shortest time after which the server may deliver an
// unacknowledged message again: a backoff list takes the place of ack_wait.
func effectiveAckWait(c natsjs.ConsumerConfig) time.Duration {
	if len(c.BackOff) > 0 {
		return slices.Min(c.BackOff)
	}
	return c.AckWait
}

func listed(subjects []string) string {
	if len(subjects) == 0 {
		return "none"
	}
	return strings.Join(subjects, ", ")
}
