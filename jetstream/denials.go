package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// errDenied is the cause of a publication's end that the server does not permit.
var errDenied = errors.New("the server does not permit it; grant this user the right to publish there")

// maxDenied bounds the memory of subjects that are known to be denied.
const maxDenied = 1000

// denials tells publications that the server denies them. It never answers them, and
// says so on the connection only: whoever waits for the answer would wait in vain
// until time is up, and others behind it.
type denials struct {
	mu      sync.Mutex
	waiting map[string]map[*context.CancelCauseFunc]struct{} // by subject
	denied  map[string]struct{}                              // subjects whose publications were told

	refusals map[string]func(error) // by subject that is subscribed to
}

// onRefusal has f called whenever the server denies the subscription to the subject; nil
// ends it. f must not block.
func (d *denials) onRefusal(subject string, f func(error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f == nil {
		delete(d.refusals, subject)
		return
	}
	if d.refusals == nil {
		d.refusals = make(map[string]func(error))
	}
	d.refusals[subject] = f
}

// refused tells whoever wants to know of a subscription that the error is of.
func (d *denials) refused(err error) (told bool) {
	subject, ok := deniedSubject(err, "Subscription to ")
	if !ok {
		return false
	}
	d.mu.Lock()
	f := d.refusals[subject]
	d.mu.Unlock()
	if f != nil {
		f(err)
	}
	return f != nil
}

// watch returns a context that ends, with a cause that is errDenied, once the server
// denies publishing on the subject. The caller calls the function it returns.
func (d *denials) watch(ctx context.Context, subject string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	key := &cancel
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting == nil {
		d.waiting, d.denied = make(map[string]map[*context.CancelCauseFunc]struct{}), make(map[string]struct{})
	}
	if d.waiting[subject] == nil {
		d.waiting[subject] = make(map[*context.CancelCauseFunc]struct{})
	}
	d.waiting[subject][key] = struct{}{}
	return ctx, func() {
		cancel(nil)
		d.mu.Lock()
		defer d.mu.Unlock()
		if delete(d.waiting[subject], key); len(d.waiting[subject]) == 0 {
			delete(d.waiting, subject)
		}
	}
}

// tell ends what waits for the subject that the error is of. It reports whether
// anything did, at this or an earlier error: of many under way each brings one.
func (d *denials) tell(err error) (told bool) {
	subject, ok := deniedSubject(err, "Publish to ")
	if !ok {
		return d.refused(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for cancel := range d.waiting[subject] {
		(*cancel)(fmt.Errorf("%w: %w", errDenied, err))
	}
	if len(d.waiting[subject]) > 0 {
		if len(d.denied) >= maxDenied {
			clear(d.denied)
		}
		d.denied[subject] = struct{}{}
	}
	_, told = d.denied[subject]
	return told
}

// deniedSubject is what the server does not let us publish on, or subscribe to. It stands
// in the error's text only: Permissions Violation for Publish to "routes.t1".
func deniedSubject(err error, what string) (subject string, ok bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	_, rest, _ := strings.Cut(err.Error(), what)
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil {
		return "", false
	}
	subject, err = strconv.Unquote(quoted)
	return subject, err == nil
}
