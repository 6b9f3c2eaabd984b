package flags_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	of "github.com/open-feature/go-sdk/openfeature"
	"github.com/open-feature/go-sdk/openfeature/memprovider"

	"github.com/crossfade-io/crossfade/flags"
)

// P5: a broken flag service changes nothing. Here is what can be broken.

// provider misbehaves as told; it stands for any flag service.
type provider struct {
	of.NoopProvider
	evaluate func(ctx context.Context, stand string) of.StringResolutionDetail
	init     func() error
	events   chan of.Event
}

func (p *provider) Metadata() of.Metadata { return of.Metadata{Name: "broken"} }

func (p *provider) StringEvaluation(ctx context.Context, _ string, stand string, _ of.FlattenedContext) of.StringResolutionDetail {
	return p.evaluate(ctx, stand)
}

func (p *provider) Init(of.EvaluationContext) error {
	if p.init == nil {
		return nil
	}
	return p.init()
}
func (p *provider) Shutdown()                     {}
func (p *provider) EventChannel() <-chan of.Event { return p.events }

func answers(value string, reason of.Reason) func(context.Context, string) of.StringResolutionDetail {
	return func(context.Context, string) of.StringResolutionDetail {
		return of.StringResolutionDetail{Value: value, ProviderResolutionDetail: of.ProviderResolutionDetail{Reason: reason, Variant: value}}
	}
}

func clientOf(t *testing.T, p of.FeatureProvider) *flags.Client {
	t.Helper()
	o := flags.DefaultOptions()
	o.Provider = p
	return newClient(t, o)
}

func TestOnlyACleanAnswerCounts(t *testing.T) {
	general := of.NewGeneralResolutionError("the flag service is on fire")
	cases := map[string]struct {
		evaluate func(context.Context, string) of.StringResolutionDetail
		want     flags.Cause
	}{
		"error": {func(_ context.Context, stand string) of.StringResolutionDetail {
			return of.StringResolutionDetail{Value: stand, ProviderResolutionDetail: of.ProviderResolutionDetail{ResolutionError: general, Reason: of.ErrorReason}}
		}, flags.CauseError},
		"error with a plausible value": {func(context.Context, string) of.StringResolutionDetail {
			return of.StringResolutionDetail{Value: "jetstream", ProviderResolutionDetail: of.ProviderResolutionDetail{ResolutionError: general, Reason: of.DefaultReason, Variant: "jetstream"}}
		}, flags.CauseError},
		"the stand-in as default": {func(_ context.Context, stand string) of.StringResolutionDetail {
			return answers(stand, of.DefaultReason)(nil, "")
		}, flags.CauseVariant},
		"unknown variant":        {answers("fast", of.TargetingMatchReason), flags.CauseVariant},
		"variant in other case":  {answers("MQTT", of.TargetingMatchReason), flags.CauseVariant},
		"variant with space":     {answers("mqtt ", of.TargetingMatchReason), flags.CauseVariant},
		"reason error":           {answers("jetstream", of.ErrorReason), flags.CauseReason},
		"reason unknown":         {answers("jetstream", of.UnknownReason), flags.CauseReason},
		"reason disabled":        {answers("jetstream", of.DisabledReason), flags.CauseReason},
		"reason stale":           {answers("jetstream", "STALE"), flags.CauseReason},
		"no reason":              {answers("jetstream", ""), flags.CauseReason},
		"panic":                  {func(context.Context, string) of.StringResolutionDetail { panic("boom") }, flags.CausePanic},
		"a huge unknown variant": {answers(strings.Repeat("x", 1<<20), of.TargetingMatchReason), flags.CauseVariant},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			client := clientOf(t, &provider{evaluate: c.evaluate})
			v, err := client.Desired(t.Context(), "t1")
			if !fails(c.want)(v, err) {
				t.Fatalf("variant %q, error %v; want no answer because of %s", v, err, c.want)
			}
			if len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestCleanAnswers(t *testing.T) {
	for _, reason := range []of.Reason{of.TargetingMatchReason, of.SplitReason, of.DefaultReason, of.StaticReason, of.CachedReason} {
		for _, want := range flags.Variants() {
			client := clientOf(t, &provider{evaluate: answers(string(want), reason)})
			got, err := client.Evaluate(t.Context(), "t1")
			if err != nil || got != (flags.Answer{Variant: want, Reason: flags.Reason(reason)}) {
				t.Errorf("%s, %s: got %+v, error %v", want, reason, got, err)
			}
		}
	}
}

func TestWrongTypeIsNoAnswer(t *testing.T) {
	client := clientOf(t, memprovider.NewInMemoryProvider(map[string]memprovider.InMemoryFlag{
		flags.FlagKey: {Key: flags.FlagKey, State: memprovider.Enabled, DefaultVariant: "jetstream", Variants: map[string]any{"jetstream": 4}},
	}))
	if v, err := client.Desired(t.Context(), "t1"); !fails(flags.CauseError)(v, err) || !strings.Contains(err.Error(), "TYPE_MISMATCH") {
		t.Fatalf("variant %q, error %v; want no answer for a type mismatch", v, err)
	}
}

// OpenFeature's own no-op provider hands back whatever stand-in it is given and
// calls that a default.
func TestNoopProviderIsNoAnswer(t *testing.T) {
	if v, err := clientOf(t, of.NoopProvider{}).Desired(t.Context(), "t1"); !fails(flags.CauseVariant)(v, err) {
		t.Fatalf("variant %q, error %v", v, err)
	}
}

func TestHangingProviderIsNoAnswerAndBounded(t *testing.T) {
	release := make(chan struct{})
	var asked, hanging atomic.Int32
	o := flags.DefaultOptions()
	o.Timeout = 20 * time.Millisecond
	o.Provider = &provider{evaluate: func(context.Context, string) of.StringResolutionDetail { // deaf to its context
		asked.Add(1)
		hanging.Add(1)
		defer hanging.Add(-1)
		<-release
		return answers("jetstream", of.TargetingMatchReason)(nil, "")
	}}
	client := newClient(t, o)
	for i := range 50 {
		if v, err := client.Desired(t.Context(), "t1"); !fails(flags.CauseTimeout)(v, err) {
			t.Fatalf("evaluation %d: variant %q, error %v", i, v, err)
		}
	}
	if n := asked.Load(); n > 4 {
		t.Errorf("%d evaluations hang in the provider; after 4 nobody should ask it", n)
	}
	if err := client.Health(); err == nil || !strings.Contains(err.Error(), "hangs") {
		t.Errorf("health says %v of a provider that hangs", err)
	}
	close(release)
	for limit := time.Now().Add(deadline); ; {
		if v, err := client.Desired(t.Context(), "t1"); is(flags.JetStream)(v, err) {
			break
		} else if time.Now().After(limit) {
			t.Fatalf("no recovery after the provider woke up: %v", err)
		}
	}
	if err := client.Health(); err != nil {
		t.Errorf("health after recovery: %v", err)
	}
}

func TestCallersContextEndsTheQuestion(t *testing.T) {
	entered := make(chan struct{})
	client := clientOf(t, &provider{evaluate: func(ctx context.Context, stand string) of.StringResolutionDetail {
		close(entered)
		<-ctx.Done()
		return answers("jetstream", of.TargetingMatchReason)(nil, "")
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	v, err := client.Desired(ctx, "t1")
	// The provider's answer came after the end and may win the race; then it was clean.
	if !fails(flags.CauseCancelled)(v, err) && !is(flags.JetStream)(v, err) {
		t.Fatalf("variant %q, error %v", v, err)
	}
}

// A provider whose state flaps answers all the time, and is believed only while
// it says that it is ready. Every turn wakes whoever waits on Changes.
func TestFlappingProvider(t *testing.T) {
	p := &provider{evaluate: answers("live", of.TargetingMatchReason), events: make(chan of.Event)}
	client := clientOf(t, p)
	await(t, client, "t1", is(flags.Live))
	for range 20 {
		p.events <- of.Event{EventType: of.ProviderStale}
		await(t, client, "t1", fails(flags.CauseStale))
		if client.Health() == nil {
			t.Fatal("healthy though stale")
		}
		p.events <- of.Event{EventType: of.ProviderReady}
		await(t, client, "t1", is(flags.Live))
		p.events <- of.Event{EventType: of.ProviderError}
		await(t, client, "t1", fails(flags.CauseNotReady))
		p.events <- of.Event{EventType: of.ProviderReady}
		await(t, client, "t1", is(flags.Live))
	}
}

func TestProviderThatCannotStart(t *testing.T) {
	p := &provider{
		evaluate: answers("jetstream", of.TargetingMatchReason),
		init:     func() error { return errors.New("no such host") },
		events:   make(chan of.Event),
	}
	client := clientOf(t, p)
	if v, err := client.Desired(t.Context(), "t1"); !fails(flags.CauseNotReady)(v, err) {
		t.Fatalf("variant %q, error %v", v, err)
	}
	p.events <- of.Event{EventType: of.ProviderReady}
	await(t, client, "t1", is(flags.JetStream))
}

func TestProviderThatHangsAtStart(t *testing.T) {
	release := make(chan struct{})
	o := flags.DefaultOptions()
	o.InitTimeout = 20 * time.Millisecond
	o.Provider = &provider{
		evaluate: answers("jetstream", of.TargetingMatchReason),
		init:     func() error { <-release; return nil },
	}
	client := newClient(t, o)
	if v, err := client.Desired(t.Context(), "t1"); !fails(flags.CauseNotReady)(v, err) {
		t.Fatalf("variant %q, error %v", v, err)
	}
	close(release)
	await(t, client, "t1", is(flags.JetStream))
}

func TestBadTenantIsNotAsked(t *testing.T) {
	client := clientOf(t, &provider{evaluate: answers("jetstream", of.DefaultReason)})
	for _, tenant := range []string{"", "a\x00b", "\xff", strings.Repeat("x", 257)} {
		if v, err := client.Desired(t.Context(), tenant); !fails(flags.CauseBadTenant)(v, err) {
			t.Errorf("tenant %.10q: variant %q, error %v", tenant, v, err)
		}
	}
}

func TestClientsDoNotShareProviders(t *testing.T) {
	a := clientOf(t, &provider{evaluate: answers("mqtt", of.DefaultReason)})
	b := clientOf(t, &provider{evaluate: answers("jetstream", of.DefaultReason)})
	await(t, a, "t1", is(flags.MQTT))
	await(t, b, "t1", is(flags.JetStream))
	global := of.NewDefaultClient()
	if v, _ := global.StringValue(t.Context(), flags.FlagKey, "untouched", of.NewEvaluationContext("t1", nil)); v != "untouched" {
		t.Errorf("the process's global OpenFeature provider answers %q", v)
	}

	shared := &provider{evaluate: answers("mqtt", of.DefaultReason)}
	first := clientOf(t, shared)
	o := flags.DefaultOptions()
	o.Provider = shared
	if _, err := flags.New(t.Context(), o); err == nil || !strings.Contains(err.Error(), "not accepted") {
		t.Errorf("a provider in use elsewhere: error %v", err)
	}
	await(t, first, "t1", is(flags.MQTT))
}

func TestClose(t *testing.T) {
	client := clientOf(t, &provider{evaluate: answers("mqtt", of.DefaultReason)})
	for range 2 {
		if err := client.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := client.Desired(t.Context(), "t1"); !fails(flags.CauseClosed)(v, err) {
		t.Errorf("variant %q, error %v", v, err)
	}
	if client.Health() == nil {
		t.Error("healthy after Close")
	}
}

func TestNewGivesUpWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := flags.DefaultOptions()
	o.Provider = &provider{evaluate: answers("mqtt", of.DefaultReason)}
	if _, err := flags.New(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
}

func TestParseVariant(t *testing.T) {
	for _, want := range flags.Variants() {
		if got, err := flags.ParseVariant(want.String()); err != nil || got != want {
			t.Errorf("%q: got %q, %v", want, got, err)
		}
	}
	_, err := flags.ParseVariant("nats")
	if err == nil {
		t.Fatal("nats is no variant")
	}
	for _, v := range flags.Variants() {
		if !strings.Contains(err.Error(), string(v)) {
			t.Errorf("the error %q does not offer %s", err, v)
		}
	}
	if !slices.Equal(flags.Variants(), []flags.Variant{"mqtt", "shadow", "live", "jetstream"}) {
		t.Errorf("variants are %v", flags.Variants())
	}
}

func TestOptionsNameTheField(t *testing.T) {
	o := flags.DefaultOptions()
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "Provider") {
		t.Errorf("no provider: %v", err)
	}
	o.Provider = of.NoopProvider{}
	if err := o.Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	o.Timeout = 0
	if _, err := flags.New(t.Context(), o); err == nil || !strings.Contains(err.Error(), "Timeout") {
		t.Errorf("no timeout: %v", err)
	}
}
