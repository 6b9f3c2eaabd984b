package bridge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A source that has ended with an error is made anew after a while, since an
// operator can mend what it complains of (a consumer with the wrong settings)
// while the rest of the instance works on.
const (
	firstRemake = time.Second
	lastRemake  = 30 * time.Second
	// closeSource bounds the end of a source that is replaced.
	closeSource = 5 * time.Second
)

// feed is a source with what it delivers to, made anew when it ends with an error.
type feed[S Source] struct {
	name    string
	deliver deliverFunc
	make    func() (S, error)

	mu      sync.Mutex
	current S
	failed  error // why it stands still; nil while it runs
}

// feeder is a feed of any source.
type feeder interface {
	label() string
	run(ctx context.Context, failed func(error))
	health() error
	failure() error
	close(ctx context.Context) error
}

func newFeed[S Source](name string, deliver deliverFunc, make func() (S, error)) (*feed[S], error) {
	s, err := make()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &feed[S]{name: name, deliver: deliver, make: make, current: s}, nil
}

func (f *feed[S]) label() string { return f.name }

func (f *feed[S]) source() S {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

// run keeps a source running until ctx ends. failed is told of every end before.
func (f *feed[S]) run(ctx context.Context, failed func(error)) {
	delay := firstRemake
	for {
		err := f.source().Run(ctx, f.deliver)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it has ended for no reason")
		}
		err = fmt.Errorf("%s: %w", f.name, err)
		f.fail(err)
		failed(err)
		for ready := false; !ready; delay = min(2*delay, lastRemake) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(delay):
			}
			ready = f.remake(ctx)
		}
	}
}

// remake replaces the source. What the old one has in hand comes again, and the
// ledger knows what of it was written.
func (f *feed[S]) remake(ctx context.Context) bool {
	next, err := f.make()
	if err != nil {
		f.fail(err)
		return false
	}
	old := f.source()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeSource)
	defer cancel()
	_ = old.Close(closing) // what it could not acknowledge comes again
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current, f.failed = next, nil
	return true
}

func (f *feed[S]) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = err
}

// failure is why the source stands still; nil while it runs.
func (f *feed[S]) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

func (f *feed[S]) health() error {
	if err := f.failure(); err != nil {
		return fmt.Errorf("%w; it is tried again every %s", err, lastRemake)
	}
	return f.source().Health()
}

func (f *feed[S]) close(ctx context.Context) error {
	if err := f.source().Close(ctx); err != nil {
		return fmt.Errorf("close %s: %w", f.name, err)
	}
	return nil
}
