package bridge

import (
	"context"
	"errors"
	"fmt"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline"
)

// probe publishes sentinels. It is a control.Prober.
type probe struct{ publisher *legacy_mqtt.Publisher }

func (p probe) Send(ctx context.Context, list []control.Sentinel) error {
	types := pipeline.SentinelTypes()
	messages := make([]legacy_mqtt.Message, 0, len(types)*len(list))
	for _, s := range list {
		payload := pipeline.SentinelPayload(s.Nonce)
		for _, t := range types {
			messages = append(messages, legacy_mqtt.Message{Topic: pipeline.SentinelTopic(s.Tenant, t), Payload: payload, Expiry: s.Expiry})
		}
	}
	return summary(p.publisher.PublishAll(ctx, messages))
}

// summary is one error for many, most of which say the same.
func summary(results []error) error {
	var first error
	failed := 0
	for _, err := range results {
		if err == nil {
			continue
		}
		if failed++; first == nil || errors.Is(first, legacy_mqtt.ErrUnconfirmed) {
			first = err // a refusal says more than a silence
		}
	}
	if failed == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d sentinel messages were not sent: %w", failed, len(results), first)
}
