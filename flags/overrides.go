package flags

import "fmt"

// Override returns a tenant's own wish in Options.Overrides, and false where it
// has none or where there are no Overrides. It reads memory only, so the kill
// switch needs nobody but PostgreSQL. The error, an ErrNoAnswer, means that nobody
// knows: the tenant stays where it is.
func (c *Client) Override(tenant string) (Variant, bool, error) {
	if c.overrides == nil {
		return "", false, nil
	}
	if err := checkTenant(tenant); err != nil {
		return "", false, c.noAnswer(tenant, CauseBadTenant, err)
	}
	if err := c.overrides.mayAnswer(tenant); err != nil {
		return "", false, fmt.Errorf("operator overrides cannot be read: %w", err)
	}
	value, ok := c.opts.Overrides.target(FlagKey, tenant)
	if !ok {
		return "", false, nil
	}
	variant, err := ParseVariant(value)
	if err != nil {
		return "", false, c.overrides.noAnswer(tenant, CauseVariant, err)
	}
	return variant, true, nil
}

// OverrideChanges signals that an override was set, changed or taken back, or that
// the overrides became readable or unreadable. Signals that nobody has taken become
// one. It is nil, and blocks for ever, without Options.Overrides.
func (c *Client) OverrideChanges() <-chan struct{} {
	if c.overrides == nil {
		return nil
	}
	return c.overrides.changes
}

func overridden(v Variant, err error) (Answer, error) {
	if err != nil {
		return Answer{}, err
	}
	return Answer{Variant: v, Reason: ReasonTarget, Override: true}, nil
}

// target returns a tenant's own variant as it was read last.
func (p *StoreProvider) target(flag, tenant string) (string, bool) {
	snap := p.snap.Load()
	if snap == nil || snap.flags[flag] == nil {
		return "", false
	}
	v, ok := snap.flags[flag].targets[tenant]
	return v, ok
}

// unfit says why the snapshot is not to be trusted, before an event has said so.
func (p *StoreProvider) unfit() (Cause, error) {
	if err := p.Health(); err != nil {
		if p.snap.Load() != nil && !p.wasRefused() {
			return CauseStale, err
		}
		return CauseNotReady, err
	}
	return "", nil
}

func (p *StoreProvider) wasRefused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// local marks providers that answer from memory.
func (p *StoreProvider) local() {}
