package flags

import (
	"context"
	"errors"
	"fmt"

	of "github.com/open-feature/go-sdk/openfeature"
)

// noStandIn is the default value that we hand to OpenFeature: no variant, so that
// it can never pass for an answer, whoever returns it for whatever reason.
const noStandIn = ""

// Desired returns the stage that is wished for a tenant. The variant counts only
// when the error is nil; any error is an ErrNoAnswer, upon which the tenant stays
// where it is. It takes no longer than Options.Timeout and ctx.
func (c *Client) Desired(ctx context.Context, tenant string) (Variant, error) {
	answer, err := c.Evaluate(ctx, tenant)
	return answer.Variant, err
}

// Evaluate is Desired with the reason for the answer.
func (c *Client) Evaluate(ctx context.Context, tenant string) (Answer, error) {
	if err := checkTenant(tenant); err != nil {
		return Answer{}, c.noAnswer(tenant, CauseBadTenant, err)
	}
	if v, ok, err := c.Override(tenant); err != nil || ok {
		return overridden(v, err)
	}
	if err := c.mayAnswer(tenant); err != nil {
		return Answer{}, err
	}
	details, err := c.ask(ctx, tenant)
	// An override that was set while the provider thought about it counts already.
	if v, ok, err := c.Override(tenant); err != nil || ok {
		return overridden(v, err)
	}
	if err != nil {
		return Answer{}, err
	}
	// Once more: what turned stale or failed while we asked has no say.
	if err := c.mayAnswer(tenant); err != nil {
		return Answer{}, err
	}
	return c.judge(tenant, details)
}

// judge tells a clean answer from all others.
func (c *Client) judge(tenant string, details of.StringEvaluationDetails) (Answer, error) {
	switch {
	case details.ErrorCode != "":
		return Answer{}, c.noAnswer(tenant, CauseError, fmt.Errorf("%s: %s", details.ErrorCode, clip(details.ErrorMessage, 256)))
	case !vouches(details.Reason):
		return Answer{}, c.noAnswer(tenant, CauseReason, fmt.Errorf("the reason is %q", clip(string(details.Reason), 64)))
	}
	variant, err := ParseVariant(details.Value)
	if err != nil {
		return Answer{}, c.noAnswer(tenant, CauseVariant, err)
	}
	return Answer{Variant: variant, Reason: Reason(details.Reason)}, nil
}

// vouches reports whether a reason stands behind its value. Not among them:
// ERROR, UNKNOWN, DISABLED (a disabled flag yields the caller's stand-in), STALE,
// and none at all.
func vouches(r of.Reason) bool {
	switch r {
	case of.TargetingMatchReason, of.SplitReason, of.DefaultReason, of.StaticReason, of.CachedReason:
		return true
	}
	return false
}

// mayAnswer returns why the provider is not to be asked, or not to be believed.
// OpenFeature itself asks stale and erroneous providers.
func (c *Client) mayAnswer(tenant string) error {
	if c.closed.Load() {
		return c.noAnswer(tenant, CauseClosed, errors.New("the client is closed"))
	}
	// Before its event has arrived, and where OpenFeature reports it ready after an
	// Init that could not reach its service.
	if p, ok := c.opts.Provider.(interface{ unfit() (Cause, error) }); ok {
		if cause, err := p.unfit(); err != nil {
			return c.noAnswer(tenant, cause, err)
		}
	}
	switch state := c.client.State(); state {
	case of.ReadyState:
		return nil
	case of.StaleState:
		return c.noAnswer(tenant, CauseStale, c.stateError(state))
	default:
		return c.noAnswer(tenant, CauseNotReady, c.stateError(state))
	}
}

func (c *Client) stateError(state of.State) error {
	if p, ok := c.opts.Provider.(interface{ Health() error }); ok {
		if err := p.Health(); err != nil {
			return err
		}
	}
	return fmt.Errorf("the provider is in state %s", state)
}

// ask evaluates the flag in a goroutine of its own, because a provider may ignore
// its context. One that never returns keeps that goroutine; maxHung bounds them.
func (c *Client) ask(ctx context.Context, tenant string) (of.StringEvaluationDetails, error) {
	if n := c.hung.Load(); n >= maxHung {
		return of.StringEvaluationDetails{}, c.noAnswer(tenant, CauseTimeout, fmt.Errorf("%d earlier evaluations still hang in the provider", n))
	}
	askCtx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	type result struct {
		details of.StringEvaluationDetails
		cause   Cause
		err     error
	}
	done := make(chan result)
	left := make(chan struct{}) // closed when nobody waits any more
	go func() {
		defer cancel()
		r := result{cause: CauseError}
		func() {
			defer func() {
				if p := recover(); p != nil {
					r.cause, r.err = CausePanic, fmt.Errorf("the provider panicked: %s", clip(fmt.Sprint(p), 256))
				}
			}()
			r.details, r.err = c.client.StringValueDetails(askCtx, FlagKey, noStandIn, of.NewEvaluationContext(tenant, nil))
		}()
		select {
		case done <- r:
		case <-left:
			c.hung.Add(-1)
		}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return of.StringEvaluationDetails{}, c.noAnswer(tenant, r.cause, r.err)
		}
		return r.details, nil
	case <-askCtx.Done():
		c.hung.Add(1)
		close(left)
		if ctx.Err() != nil {
			return of.StringEvaluationDetails{}, c.noAnswer(tenant, CauseCancelled, ctx.Err())
		}
		return of.StringEvaluationDetails{}, c.noAnswer(tenant, CauseTimeout, fmt.Errorf("no answer within %s", c.opts.Timeout))
	}
}

func (c *Client) noAnswer(tenant string, cause Cause, err error) error {
	return &NoAnswerError{Tenant: tenant, Provider: c.provider, Cause: cause, Err: err}
}
