package jetstream

import "encoding/json"

// maxAdvisory is far more than an advisory has; whoever may publish on its subject may
// send anything.
const maxAdvisory = 64 << 10

// parseAdvisory returns the stream sequence of the message that an advisory
// (io.nats.jetstream.advisory.v1.max_deliver) says was given up; false where it does not
// speak of this consumer.
func parseAdvisory(data []byte, s spec) (sequence uint64, ok bool) {
	if len(data) > maxAdvisory {
		return 0, false
	}
	var a struct {
		Stream   string `json:"stream"`
		Consumer string `json:"consumer"`
		Sequence uint64 `json:"stream_seq"`
	}
	if json.Unmarshal(data, &a) != nil || a.Stream != s.name || a.Consumer != s.consumer {
		return 0, false
	}
	return a.Sequence, a.Sequence > 0
}

// leftBehind is the least number of messages that the consumer has given up, that the
// stream still holds, and that nobody has acknowledged since. The server counts
// deliveries of such a message although it is not pending any more (num_redelivered,
// seen in nats-server 2.15); with max_deliver 1 it does not show them.
func leftBehind(redelivered, pending int) uint64 { return uint64(max(redelivered-pending, 0)) }
