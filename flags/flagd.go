package flags

import (
	"context"
	"net/http"
	"sync/atomic"

	of "github.com/open-feature/go-sdk/openfeature"
)

// flagdPackage begins the paths of flagd's evaluation service; a version and
// flagdService follow (github.com/open-feature/flagd-schemas, protobuf/flagd/evaluation).
const (
	flagdPackage = "flagd.evaluation."
	flagdService = ".Service/"
)

// flagdVersions are the versions of the service that we speak, the one to prefer
// first. For us they differ in that v2 leaves out a value that it has not got.
var flagdVersions = []string{"v2", "v1"}

// FlagdProvider is an OpenFeature provider over flagd's evaluation service, in the
// Connect protocol's JSON form over HTTP (connectrpc.com/docs/protocol), which
// flagd serves beside gRPC on the same port (8013). Changes are heard on its event
// stream; without it they are seen on the caller's beat.
type FlagdProvider struct{ *remote }

var (
	_ of.FeatureProvider          = (*FlagdProvider)(nil)
	_ of.ContextAwareStateHandler = (*FlagdProvider)(nil)
	_ of.EventHandler             = (*FlagdProvider)(nil)
)

// NewFlagdProvider checks the options and reads the TLS files. It connects to
// nothing: OpenFeature starts the provider.
func NewFlagdProvider(o RemoteOptions) (*FlagdProvider, error) {
	r, err := newRemote("flagd", o)
	if err != nil {
		return nil, err
	}
	r.protocol = &flagd{exchange: r.exchange, remote: r}
	return &FlagdProvider{r}, nil
}

// flagd speaks to the service in the version that it knows.
type flagd struct {
	*exchange
	remote  *remote
	version atomic.Int32 // index in flagdVersions of the one that worked last
}

// resolve asks in the version that worked last, and finds the other one where the
// service does not know it: flagd was replaced by an older or a newer one.
func (p *flagd) resolve(ctx context.Context, flag string, evalCtx map[string]any) (of.StringResolutionDetail, *outage) {
	request := map[string]any{"flagKey": flag, "context": evalCtx}
	first := int(p.version.Load())
	var none *outage
	for i := range flagdVersions {
		n := (first + i) % len(flagdVersions)
		detail, foreign, out := p.resolveIn(ctx, flagdVersions[n], request)
		if !foreign {
			p.version.Store(int32(n))
			return detail, out
		}
		none = out
	}
	return of.StringResolutionDetail{}, none
}

// resolveIn asks in one version. foreign means that the service does not know it.
func (p *flagd) resolveIn(ctx context.Context, version string, request any) (detail of.StringResolutionDetail, foreign bool, out *outage) {
	status, header, body, out := p.ask(ctx, flagdPackage+version+flagdService+"ResolveString", request)
	if out != nil {
		return detail, false, out
	}
	members, ok := object(body)
	if ok && status == http.StatusOK {
		return success(members), false, nil
	}
	code, _ := text(members, "code")
	message, _ := text(members, "message")
	message = clip(p.scrubText(message), 256)
	if code == "data_loss" { // in Connect that is HTTP 500, but it is about the flag
		return refused(of.NewParseErrorResolutionError(message)), false, nil
	}
	if out := refusal(status, header); out != nil {
		return detail, false, out
	}
	switch code {
	case "", "unimplemented":
		return detail, status != http.StatusOK, outagef("HTTP %d: no flagd evaluation service is at this URL (flagd's evaluation port is 8013)", status)
	case "not_found": // also a flag that is disabled
		return refused(of.NewFlagNotFoundResolutionError(message)), false, nil
	case "invalid_argument":
		return refused(of.NewTypeMismatchResolutionError(message)), false, nil
	}
	return detail, false, outagef("HTTP %d, %s: %s", status, clip(code, 64), message)
}

// path is where a method of the version in use is.
func (p *flagd) path(method string) string {
	return flagdPackage + flagdVersions[p.version.Load()] + flagdService + method
}
