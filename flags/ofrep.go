package flags

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	of "github.com/open-feature/go-sdk/openfeature"
)

const ofrepPath = "ofrep/v1/evaluate/flags"

// OFREPProvider is an OpenFeature provider over the OpenFeature Remote Evaluation
// Protocol (github.com/open-feature/protocol), which many flag services offer. One
// request evaluates the flag for one tenant; the protocol's bulk request, and with
// it ETags, is for many flags of one context and of no use here. The protocol has
// no events that every service offers: changes are seen on the caller's beat.
//
// It does not use go-sdk-contrib's provider, which reads answers without a bound,
// takes an answer for another flag, and ignores Retry-After (v0.1.7).
type OFREPProvider struct{ *remote }

var (
	_ of.FeatureProvider          = (*OFREPProvider)(nil)
	_ of.ContextAwareStateHandler = (*OFREPProvider)(nil)
	_ of.EventHandler             = (*OFREPProvider)(nil)
)

// NewOFREPProvider checks the options and reads the TLS files. It connects to
// nothing: OpenFeature starts the provider.
func NewOFREPProvider(o RemoteOptions) (*OFREPProvider, error) {
	r, err := newRemote("ofrep", o)
	if err != nil {
		return nil, err
	}
	r.protocol = ofrep{r.exchange}
	return &OFREPProvider{r}, nil
}

type ofrep struct{ *exchange }

func (p ofrep) resolve(ctx context.Context, flag string, evalCtx map[string]any) (of.StringResolutionDetail, *outage) {
	status, header, body, out := p.ask(ctx, ofrepPath+"/"+url.PathEscape(flag), map[string]any{"context": evalCtx})
	if out == nil {
		out = refusal(status, header)
	}
	if out != nil {
		return of.StringResolutionDetail{}, out
	}
	members, ok := object(body)
	if !ok {
		return of.StringResolutionDetail{}, outagef("HTTP %d without a JSON object: no OFREP service is at this URL", status)
	}
	if key, ok := text(members, "key"); !ok || key != "" && key != flag {
		return refused(of.NewParseErrorResolutionError(fmt.Sprintf("the answer is about flag %q", clip(key, 64)))), nil
	}
	code, ok := text(members, "errorCode")
	switch {
	case status == http.StatusOK && (!ok || code != ""):
		return refused(of.NewGeneralResolutionError("HTTP 200 with an error code: " + clip(code, 64))), nil
	case status == http.StatusOK:
		return success(members), nil
	case code == "":
		return of.StringResolutionDetail{}, outagef("HTTP %d without an error code: no OFREP service is at this URL", status)
	}
	details, _ := text(members, "errorDetails")
	return refused(resolutionError(of.ErrorCode(code), clip(p.scrubText(details), 256))), nil
}

func (ofrep) follow(context.Context, func()) {}

// resolutionError makes a service's error code one of OpenFeature's.
func resolutionError(code of.ErrorCode, message string) of.ResolutionError {
	switch code {
	case of.FlagNotFoundCode:
		return of.NewFlagNotFoundResolutionError(message)
	case of.ParseErrorCode:
		return of.NewParseErrorResolutionError(message)
	case of.TypeMismatchCode:
		return of.NewTypeMismatchResolutionError(message)
	case of.TargetingKeyMissingCode:
		return of.NewTargetingKeyMissingResolutionError(message)
	case of.InvalidContextCode:
		return of.NewInvalidContextResolutionError(message)
	}
	return of.NewGeneralResolutionError(clip(string(code), 64) + ": " + message)
}
