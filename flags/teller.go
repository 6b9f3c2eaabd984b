package flags

import (
	"context"
	"slices"
	"sync"

	of "github.com/open-feature/go-sdk/openfeature"
)

// teller hands a provider's events to OpenFeature without ever holding the
// provider up. An event that nobody has taken yet is replaced by what is true now,
// so a slow reader is never left with a state that has passed.
type teller struct {
	provider string
	events   chan of.Event
	kick     chan struct{}

	mu      sync.Mutex
	state   of.Event
	untold  bool
	changed []string
}

func newTeller(provider string) *teller {
	return &teller{provider: provider, events: make(chan of.Event), kick: make(chan struct{}, 1)}
}

// tell replaces the state, unless it is the one that was told last.
func (t *teller) tell(state of.EventType, message string) {
	t.mu.Lock()
	if t.state.EventType != state {
		t.state, t.untold = of.Event{
			ProviderName: t.provider, EventType: state,
			ProviderEventDetails: of.ProviderEventDetails{Message: message},
		}, true
		if state == of.ProviderError {
			t.state.ErrorCode = of.GeneralCode
		}
	}
	t.mu.Unlock()
	t.wake()
}

// change tells that flags changed.
func (t *teller) change(keys ...string) {
	t.mu.Lock()
	for _, key := range keys {
		if !slices.Contains(t.changed, key) {
			t.changed = append(t.changed, key)
		}
	}
	t.mu.Unlock()
	t.wake()
}

func (t *teller) wake() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// run hands out events until ctx ends; a state goes before a change.
func (t *teller) run(ctx context.Context) {
	for {
		out, event := t.pending()
		select {
		case <-ctx.Done():
			return
		case <-t.kick:
		case out <- event:
			t.taken(event)
		}
	}
}

func (t *teller) pending() (chan<- of.Event, of.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.untold:
		return t.events, t.state
	case len(t.changed) > 0:
		return t.events, of.Event{
			ProviderName: t.provider, EventType: of.ProviderConfigChange,
			ProviderEventDetails: of.ProviderEventDetails{Message: "flags changed", FlagChanges: slices.Clone(t.changed)},
		}
	}
	return nil, of.Event{}
}

func (t *teller) taken(event of.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if event.EventType == of.ProviderConfigChange {
		t.changed = slices.DeleteFunc(t.changed, func(key string) bool { return slices.Contains(event.FlagChanges, key) })
		return
	}
	// It may have been replaced while it was handed out.
	t.untold = t.untold && event.EventType != t.state.EventType
}
