package flags

import (
	"context"
	"fmt"

	of "github.com/open-feature/go-sdk/openfeature"
)

// StringEvaluation answers for the tenant in the targeting key, from memory. Any
// error comes with defaultValue, as OpenFeature wants it.
func (p *StoreProvider) StringEvaluation(_ context.Context, flag, defaultValue string, flatCtx of.FlattenedContext) of.StringResolutionDetail {
	variant, reason, resErr := p.resolve(flag, flatCtx)
	if resErr != nil {
		return of.StringResolutionDetail{Value: defaultValue, ProviderResolutionDetail: failed(*resErr)}
	}
	return of.StringResolutionDetail{
		Value: variant,
		ProviderResolutionDetail: of.ProviderResolutionDetail{
			Reason:  of.Reason(reason),
			Variant: variant,
		},
	}
}

func (p *StoreProvider) resolve(flag string, flatCtx of.FlattenedContext) (string, Reason, *of.ResolutionError) {
	tenant, _ := flatCtx[of.TargetingKey].(string)
	if tenant == "" {
		return "", "", new(of.NewTargetingKeyMissingResolutionError("set the targeting key to the tenant ID"))
	}
	if err := p.Health(); err != nil {
		return "", "", new(of.NewProviderNotReadyResolutionError(err.Error()))
	}
	rules := p.snap.Load().flags[flag]
	if rules == nil {
		return "", "", new(of.NewFlagNotFoundResolutionError(fmt.Sprintf("nothing about flag %q in crossfade_flag_rules", clip(flag, 64))))
	}
	variant, reason, ok := rules.resolve(flag, tenant)
	if !ok {
		return "", "", new(of.NewFlagNotFoundResolutionError(fmt.Sprintf("flag %q has no row in crossfade_flag_rules, and this tenant none in crossfade_flag_targets", clip(flag, 64))))
	}
	return variant, reason, nil
}

func failed(err of.ResolutionError) of.ProviderResolutionDetail {
	return of.ProviderResolutionDetail{ResolutionError: err, Reason: of.ErrorReason}
}

func wrongType() of.ProviderResolutionDetail {
	return failed(of.NewTypeMismatchResolutionError("flags in this store are strings"))
}
