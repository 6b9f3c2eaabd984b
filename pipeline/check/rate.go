package check

import (
	"fmt"

	"github.com/crossfade-io/crossfade/pipeline"
)

// rate is the place of the rate limit among the checks (see Verdict.Metered).
var rate = Check{On: All}

// RateLimited is the verdict on a message of a device that has sent too many.
func RateLimited(s *Settings) (pipeline.Reason, string) {
	return pipeline.RateLimited, fmt.Sprintf("more than %d at once and %g a second", s.RateBurst, s.RateLimit)
}
