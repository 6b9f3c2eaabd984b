package jetstream

import (
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
)

// The durable consumers, shared by all instances.
const (
	ConsumerTelemetry = "ingest-workers"
	ConsumerShadow    = "ingest-shadow"
	ConsumerCommands  = "ingest-commands"
)

// Consumers returns the names of all durable consumers that ingest reads.
func Consumers() []string {
	return []string{ConsumerTelemetry, ConsumerShadow, ConsumerCommands}
}

// spec is what the contract says about one stream, and the durable consumer
// that ingest has on it ("" where others consume).
type spec struct {
	name          string
	subject       string
	retention     natsjs.RetentionPolicy
	maxAge        time.Duration
	maxBytes      int64
	maxPerSubject int64 // -1: no limit
	consumer      string
}

const mebibyte = 1 << 20

var specs = []spec{
	{"TELEMETRY", "telemetry.>", natsjs.LimitsPolicy, time.Hour, 1024 * mebibyte, 100_000, ConsumerTelemetry},
	{"SHADOW", "shadow.>", natsjs.LimitsPolicy, time.Hour, 256 * mebibyte, -1, ConsumerShadow},
	{"COMMANDS", "commands.>", natsjs.LimitsPolicy, time.Hour, 256 * mebibyte, -1, ConsumerCommands},
	{"ROUTES", "routes.>", natsjs.WorkQueuePolicy, 24 * time.Hour, 512 * mebibyte, -1, ""},
}

func specOfConsumer(name string) (spec, bool) {
	for _, s := range specs {
		if s.consumer == name && name != "" {
			return s, true
		}
	}
	return spec{}, false
}

func specOfStream(name string) (spec, bool) {
	for _, s := range specs {
		if s.name == name && s.consumer != "" {
			return s, true
		}
	}
	return spec{}, false
}

// streamConfig is how a missing stream is created. Work that does not fit is
// dropped from the old end, as the contract has it.
func (s spec) streamConfig(o SetupOptions) natsjs.StreamConfig {
	return natsjs.StreamConfig{
		Name:              s.name,
		Subjects:          []string{s.subject},
		Retention:         s.retention,
		Storage:           natsjs.FileStorage,
		Discard:           natsjs.DiscardOld,
		MaxAge:            s.maxAge,
		MaxBytes:          s.maxBytes,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: s.maxPerSubject,
		Duplicates:        o.Duplicates,
		Replicas:          o.Replicas,
	}
}

// Settings of the consumers that we create. No limit on deliveries: a message
// that waits out a long outage is not to be given up. No filter: one unfiltered
// consumer is a hundred times faster than one with many filters.
const (
	ourAckWait       = 60 * time.Second // unless SetupOptions says otherwise
	ourMaxAckPending = 20_000
)

func (s spec) consumerConfig(o SetupOptions) natsjs.ConsumerConfig {
	return natsjs.ConsumerConfig{
		Durable:       s.consumer,
		DeliverPolicy: natsjs.DeliverAllPolicy,
		AckPolicy:     natsjs.AckExplicitPolicy,
		AckWait:       o.AckWait,
		MaxDeliver:    -1,
		MaxAckPending: ourMaxAckPending,
	}
}
