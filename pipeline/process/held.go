package process

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/store"
)

// held are the messages whose very quarantine row PostgreSQL refuses. To give them
// up would lose them, and to wait for them would hold up others: they are tried
// again by themselves until somebody mends the table.
type held struct {
	mu   sync.Mutex
	list []heldMessage
	wake chan struct{}
	why  atomic.Pointer[error]
}

type heldMessage struct {
	entry store.Entry
	item  *item
}

func (h *held) trouble() error {
	if e := h.why.Load(); e != nil {
		return *e
	}
	return nil
}

// hold takes copies: the worker goes on to its next batch.
func (p *Processor) hold(e store.Entry, it item, err error) {
	p.log.Error("PostgreSQL refuses a quarantine row; the message is held until it takes it: look for constraints or triggers on quarantine_events",
		"message_id", e.Msg.ID.String(), "tenant", e.Msg.Tenant, "reason", e.Reason, "error", err)
	m := new(pipeline.Message)
	pipeline.NewDecoder(p.options.IDMember).Decode(m, &it.Delivery)
	e.Msg = m
	h := &p.held
	why := fmt.Errorf("a message can be neither written nor quarantined; mend the constraints or triggers of quarantine_events: %w", err)
	h.mu.Lock()
	h.list = append(h.list, heldMessage{e, &it})
	h.why.Store(&why)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *held) releaseAll(p *Processor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.list {
		p.release(m.item)
	}
	h.list = nil
}

// retryHeld tries the held messages, one after the other, until ctx ends.
func (p *Processor) retryHeld(ctx context.Context) {
	for ctx.Err() == nil {
		if p.held.trouble() == nil {
			select {
			case <-ctx.Done():
				return
			case <-p.held.wake:
			}
		}
		wait(ctx, lastRetry)
		p.tryHeld(ctx)
	}
}

// tryHeld goes on with the next while they are taken: what mends one mends more.
func (p *Processor) tryHeld(ctx context.Context) {
	h := &p.held
	for {
		h.mu.Lock()
		if len(h.list) == 0 {
			h.why.Store(nil)
			h.mu.Unlock()
			return
		}
		m := &h.list[0]
		h.mu.Unlock()
		one := []store.Entry{m.entry}
		err := p.retry(ctx, 1, func() error { return p.store.Commit(ctx, one) })
		if err != nil && !errors.Is(err, store.ErrData) {
			return // ctx has ended
		}
		h.mu.Lock()
		next := h.list[0]
		h.list = h.list[1:]
		if err != nil {
			h.list = append(h.list, next) // another may fare better
		}
		h.mu.Unlock()
		if err != nil {
			return
		}
		p.finish(nil, one, []*item{next.item})
	}
}
