package flags

import (
	"context"
	"slices"
	"time"

	of "github.com/open-feature/go-sdk/openfeature"
)

// announce turns the outcome of readings and the age of the snapshot into
// events, until ctx ends. It alone sends on the event channel. An event that
// nobody has taken yet is replaced by what is true now, so a slow reader holds
// up nothing and is never left with a state that has passed.
func (p *StoreProvider) announce(ctx context.Context) {
	var (
		told    of.EventType // the state that the reader was told last
		changed []string     // flags whose change the reader was not told yet
		aging   = time.NewTimer(p.opts.MaxStale)
	)
	defer aging.Stop()
	for {
		var out chan<- of.Event
		var event of.Event
		if state := p.state(); state != nil && state.EventType != told {
			out, event = p.events, *state
		} else if len(changed) > 0 {
			out, event = p.events, *newEvent(of.ProviderConfigChange, "flags changed")
			event.FlagChanges = slices.Clone(changed)
		}
		select {
		case <-ctx.Done():
			return
		case out <- event:
			if event.EventType == of.ProviderConfigChange {
				changed = nil
			} else {
				told = event.EventType
			}
		case <-aging.C: // the state may be another now
		case <-p.loaded:
			more, initFailed := p.takeChanged()
			for _, key := range more {
				if !slices.Contains(changed, key) {
					changed = append(changed, key)
				}
			}
			if initFailed {
				// OpenFeature reports a failed Init by an event of its own, which
				// may overtake our READY. Telling the state anew after every
				// reading mends that.
				told = ""
			}
		}
		aging.Reset(p.untilStale())
	}
}

// untilStale is when announce should look at the age of the snapshot again.
func (p *StoreProvider) untilStale() time.Duration {
	if snap := p.snap.Load(); snap != nil {
		if left := time.Until(snap.asOf.Add(p.opts.MaxStale)); left >= 0 {
			return left + time.Millisecond
		}
	}
	return p.opts.MaxStale
}

// state returns the event that tells the present state; nil before the first
// reading has ended.
func (p *StoreProvider) state() *of.Event {
	err := p.Health()
	p.mu.Lock()
	refused, failing := p.refused, p.lastErr != nil
	p.mu.Unlock()
	unread := p.snap.Load() == nil
	switch {
	case err == nil:
		return newEvent(of.ProviderReady, "flags are read")
	case unread && !failing:
		return nil
	case unread || refused:
		e := newEvent(of.ProviderError, err.Error())
		e.ErrorCode = of.GeneralCode
		return e
	}
	return newEvent(of.ProviderStale, err.Error())
}

func (p *StoreProvider) takeChanged() (keys []string, initFailed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	keys, p.changed = p.changed, nil
	return keys, p.initFailed
}

func newEvent(t of.EventType, message string) *of.Event {
	return &of.Event{
		ProviderName:         storeProviderName,
		EventType:            t,
		ProviderEventDetails: of.ProviderEventDetails{Message: message},
	}
}
