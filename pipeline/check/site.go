package check

import "github.com/crossfade-io/crossfade/pipeline"

// siteGiven: site_id is the one member that must be there.
func siteGiven(in Input) (pipeline.Reason, string) {
	if s, ok := in.Fields.SiteID.Text(); !ok || s == "" {
		return pipeline.MissingSiteID, "site_id is missing"
	}
	return pipeline.Accepted, ""
}

// siteMatches holds the payload's site against the registry's.
func siteMatches(in Input) (pipeline.Reason, string) {
	if s, _ := in.Fields.SiteID.Text(); s != in.Device.Site {
		return pipeline.SiteMismatch, "the payload's site_id is not the registry's"
	}
	return pipeline.Accepted, ""
}
