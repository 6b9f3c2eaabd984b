package flags

import (
	"errors"
	"fmt"
)

// ErrNoAnswer is what every error of Client.Desired is: there is no clean answer,
// leave the tenant where it is. The details are in a *NoAnswerError.
var ErrNoAnswer = errors.New("no clean answer from the flag service")

// NoAnswerError says why there is no clean answer for a tenant.
type NoAnswerError struct {
	Tenant   string
	Provider string // the provider's own name
	Cause    Cause
	// Err has the details; never nil.
	Err error
}

// Cause is why there is no clean answer; a small, closed set, fit to be a label
// of a metric.
type Cause string

// The causes.
const (
	CauseBadTenant Cause = "bad_tenant"       // the tenant ID cannot be a targeting key
	CauseNotReady  Cause = "not_ready"        // the provider has not started, or reports an error
	CauseStale     Cause = "stale"            // the provider's data is too old
	CauseTimeout   Cause = "timeout"          // no answer in time
	CauseCancelled Cause = "cancelled"        // the caller's context ended
	CauseError     Cause = "error"            // the evaluation failed, or the value is a stand-in
	CauseVariant   Cause = "unknown_variant"  // an answer that is no stage
	CauseReason    Cause = "unfit_reason"     // an answer whose reason does not vouch for it
	CausePanic     Cause = "provider_panic"   // the provider panicked
	CauseClosed    Cause = "client_is_closed" // Close was called
)

// Error names the tenant, the provider and the cause.
func (e *NoAnswerError) Error() string {
	return fmt.Sprintf("%s for tenant %q (provider %s, %s): %s", ErrNoAnswer, clip(e.Tenant, 64), e.Provider, e.Cause, e.Err)
}

// Is makes errors.Is(err, ErrNoAnswer) hold.
func (e *NoAnswerError) Is(target error) bool { return target == ErrNoAnswer }

// Unwrap returns the details.
func (e *NoAnswerError) Unwrap() error { return e.Err }
