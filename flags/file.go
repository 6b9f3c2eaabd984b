package flags

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	of "github.com/open-feature/go-sdk/openfeature"
)

// FileOptions configures a FileProvider. Begin with DefaultFileOptions and set Path.
type FileOptions struct {
	// Path is a file in flagd's format; required. It may be replaced (better, by
	// renaming another over it) or written in place at any time, also as a mounted
	// ConfigMap's symbolic link.
	Path string
	// Poll is the time between two readings; at least 10 ms.
	Poll time.Duration
	// Grace is how long the last good content goes on answering while the file
	// cannot be read, because it is just being written for example; at least twice
	// Poll. After that there is no answer.
	Grace time.Duration
	// MaxBytes bounds the file.
	MaxBytes int64
	// Logger may be nil.
	Logger *slog.Logger
}

// DefaultFileOptions returns the defaults: every second, 5 s of grace, 4 MiB.
func DefaultFileOptions() FileOptions {
	return FileOptions{Poll: time.Second, Grace: 5 * time.Second, MaxBytes: 4 << 20}
}

// Validate names the first field that cannot work, and the remedy. It does not look
// for the file.
func (o FileOptions) Validate() error {
	switch {
	case o.Path == "":
		return errors.New("FileOptions.Path is empty: name a file in flagd's format")
	case o.Poll < 10*time.Millisecond:
		return fmt.Errorf("FileOptions.Poll is %s: use at least 10ms (default 1s)", o.Poll)
	case o.Grace < 2*o.Poll:
		return fmt.Errorf("FileOptions.Grace is %s: use at least twice Poll (%s), or a healthy file counts as stale", o.Grace, 2*o.Poll)
	case o.MaxBytes < 1:
		return fmt.Errorf("FileOptions.MaxBytes is %d: use at least 1 (default 4194304)", o.MaxBytes)
	}
	return nil
}

// FileProvider is an OpenFeature provider over a file of flag definitions in
// flagd's format, evaluated in process. Its events: READY when the file was read,
// CONFIGURATION_CHANGED when it was read with another content, STALE when it could
// not be read for longer than Grace. Evaluations read memory and may run
// concurrently. It runs from Init to Shutdown, once.
type FileProvider struct {
	stringsOnly
	*teller
	opts FileOptions
	log  *slog.Logger

	first     chan struct{} // closed after the first reading
	firstOnce sync.Once

	mu      sync.Mutex
	started bool
	stopped bool
	cancel  context.CancelFunc
	done    sync.WaitGroup
	flags   definitions // the last good content
	hash    [sha256.Size]byte
	goodAt  time.Time // of the last reading that went well
	lastErr error     // of the last reading
}

var (
	_ of.FeatureProvider          = (*FileProvider)(nil)
	_ of.ContextAwareStateHandler = (*FileProvider)(nil)
	_ of.EventHandler             = (*FileProvider)(nil)
)

const fileProviderName = "flagd-file"

// NewFileProvider checks the options. It reads nothing: OpenFeature starts the provider.
func NewFileProvider(o FileOptions) (*FileProvider, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &FileProvider{opts: o, log: o.Logger, teller: newTeller(fileProviderName), first: make(chan struct{})}, nil
}

// Metadata names the provider.
func (p *FileProvider) Metadata() of.Metadata { return of.Metadata{Name: fileProviderName} }

// Hooks returns none.
func (p *FileProvider) Hooks() []of.Hook { return nil }

// EventChannel returns the events.
func (p *FileProvider) EventChannel() <-chan of.Event { return p.events }

// Init is InitWithContext, bounded by 5 s.
func (p *FileProvider) Init(evalCtx of.EvaluationContext) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return p.InitWithContext(ctx, evalCtx)
}

// InitWithContext starts the provider and waits until it has tried to read the
// file once, no longer than ctx. A file that cannot be read is no error: Health
// says so, nobody has an answer, and both end when it can.
func (p *FileProvider) InitWithContext(ctx context.Context, _ of.EvaluationContext) error {
	if err := p.start(); err != nil {
		return err
	}
	select {
	case <-p.first:
	case <-ctx.Done():
	}
	return nil
}

func (p *FileProvider) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return errors.New("the flag file provider is shut down: build a new one")
	}
	if p.started {
		return nil
	}
	p.started = true
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.done.Go(func() { p.teller.run(ctx) })
	p.done.Go(func() { p.poll(ctx) })
	return nil
}

// Shutdown is ShutdownWithContext, bounded by 5 s.
func (p *FileProvider) Shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := p.ShutdownWithContext(ctx); err != nil {
		p.log.Warn("flag file provider did not stop in time", "error", err)
	}
}

// ShutdownWithContext stops the provider and waits for it, no longer than ctx.
// Twice is fine, and before Init as well.
func (p *FileProvider) ShutdownWithContext(ctx context.Context) error {
	p.mu.Lock()
	p.stopped = true
	if p.cancel != nil {
		p.cancel()
	}
	p.mu.Unlock()
	ended := make(chan struct{})
	go func() { p.done.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stopping the flag file provider: %w", ctx.Err())
	}
}

// Health is nil while evaluations are answered. It does no I/O.
func (p *FileProvider) Health() error {
	_, err := p.unfit()
	return err
}

func (p *FileProvider) unfit() (Cause, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch age := time.Since(p.goodAt); {
	case p.stopped:
		return CauseNotReady, errors.New("the flag file provider is shut down")
	case p.flags == nil && p.lastErr == nil:
		return CauseNotReady, errors.New("the flag file has not been read yet")
	case p.flags == nil:
		return CauseNotReady, p.lastErr
	case age > p.opts.Grace && p.lastErr != nil:
		return CauseStale, fmt.Errorf("%w; it was last read %s ago", p.lastErr, age.Round(time.Millisecond))
	case age > p.opts.Grace: // the file system hangs
		return CauseStale, fmt.Errorf("flag file %s was last read %s ago: reading it does not end", p.opts.Path, age.Round(time.Second))
	}
	return "", nil
}

// local marks providers that answer from memory.
func (p *FileProvider) local() {}

// StringEvaluation answers from memory.
func (p *FileProvider) StringEvaluation(_ context.Context, flag, defaultValue string, flatCtx of.FlattenedContext) of.StringResolutionDetail {
	detail := p.evaluate(flag, flatCtx)
	if detail.Error() != nil {
		detail.Value = defaultValue
	}
	return detail
}

func (p *FileProvider) evaluate(flag string, flatCtx of.FlattenedContext) of.StringResolutionDetail {
	if tenant, _ := flatCtx[of.TargetingKey].(string); tenant == "" {
		return refused(of.NewTargetingKeyMissingResolutionError("set the targeting key to the tenant ID"))
	}
	if err := p.Health(); err != nil {
		return refused(of.NewProviderNotReadyResolutionError(err.Error()))
	}
	p.mu.Lock()
	flags := p.flags
	p.mu.Unlock()
	return flags.resolve(flag, flatCtx)
}

// poll reads the file every Poll until ctx ends.
func (p *FileProvider) poll(ctx context.Context) {
	beat := time.NewTicker(p.opts.Poll)
	defer beat.Stop()
	for {
		p.note(p.read())
		p.firstOnce.Do(func() { close(p.first) })
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
		}
	}
}

// read returns the content. It is read whole every time: a bounded file is cheap,
// and neither time nor size tell every change.
func (p *FileProvider) read() ([]byte, error) {
	// Not to be held up by a pipe that nobody writes to.
	file, err := os.OpenFile(p.opts.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("flag file cannot be opened: %w", err)
	}
	defer file.Close()
	switch info, err := file.Stat(); {
	case err != nil:
		return nil, fmt.Errorf("flag file %s cannot be looked at: %w", p.opts.Path, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("flag file %s is no regular file", p.opts.Path)
	}
	content, err := io.ReadAll(io.LimitReader(file, p.opts.MaxBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("flag file %s cannot be read: %w", p.opts.Path, err)
	case int64(len(content)) > p.opts.MaxBytes:
		return nil, fmt.Errorf("flag file %s is larger than %d bytes", p.opts.Path, p.opts.MaxBytes)
	}
	return content, nil
}

// note takes in a reading and logs when its outcome is news.
func (p *FileProvider) note(content []byte, err error) {
	hash := sha256.Sum256(content)
	p.mu.Lock()
	known, wasFailing, age := p.flags != nil && hash == p.hash, p.lastErr != nil, time.Since(p.goodAt)
	p.mu.Unlock()
	var flags definitions
	if err == nil && !known {
		if flags, err = parseDefinitions(content); err != nil {
			err = fmt.Errorf("flag file %s %w", p.opts.Path, err)
		}
	}
	p.mu.Lock()
	first := p.flags == nil
	p.lastErr = err
	if err == nil {
		p.goodAt = time.Now()
		if !known {
			p.flags, p.hash = flags, hash
		}
	}
	p.mu.Unlock()

	if err != nil {
		if !wasFailing {
			p.log.Warn("flag file is unusable; what was read last holds until it is stale, then tenants without an override stay where they are: mend the file, or use crossfade flip",
				"error", err, "grace", p.opts.Grace)
		}
		if first || age > p.opts.Grace {
			p.tell(of.ProviderStale, err.Error())
		}
		return
	}
	if wasFailing {
		p.log.Info("flag file is read again", "path", p.opts.Path)
	}
	p.tell(of.ProviderReady, "the flag file is read")
	if !known && !first {
		p.change(FlagKey)
	}
}
