package check

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"

	"github.com/crossfade-io/crossfade/pipeline"
)

// token holds the SHA-256 of the payload's provisioning token against the
// registry's, in constant time.
func token(in Input) (pipeline.Reason, string) {
	if !in.Settings.RequireToken {
		return pipeline.Accepted, ""
	}
	if in.Device.TokenHash == "" {
		return pipeline.TokenNotSet, "the registry holds no token for the device"
	}
	given, ok := in.Fields.Token.Text()
	if !ok || given == "" {
		return pipeline.TokenMissing, "provision_token is missing"
	}
	sum := sha256.Sum256([]byte(given))
	var hash [2 * sha256.Size]byte
	hex.Encode(hash[:], sum[:])
	if subtle.ConstantTimeCompare(hash[:], []byte(in.Device.TokenHash)) != 1 {
		return pipeline.TokenInvalid, "provision_token is not the device's"
	}
	return pipeline.Accepted, ""
}
