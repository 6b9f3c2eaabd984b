// Package parity tells how well a tenant's two paths agree, and so whether the one
// that is not authoritative may be trusted with more.
//
// In the stages shadow and live one path's copies stand by until the ledger has
// their message. How that ends is counted per tenant and minute:
//
//	matched      the authoritative path brought the message
//	rescued      it did not in time (or there was no room to wait), and the copy
//	             that stood by was processed instead
//	mismatched   it brought a message with the same ID of the device's own, and
//	             other content; the first counts, and a sample of the second is kept
//	skew         how long before or after the message was durable the copy that stood
//	             by came
//
// Whoever holds the copies counts in a [Tally], which costs a look-up in a map; a
// [Recorder] writes what was counted to PostgreSQL every few seconds, where the
// counts of all instances add up. [Windows] reads them back and [Judge] says what to
// think of them:
//
//	standby ── Tally ──▶ Recorder ──▶ crossfade_parity ──▶ Windows ──▶ Judge
//
// Counts are statistics: a copy that is delivered again is counted again, what was
// counted since the last write dies with its process, and a write whose outcome
// was lost with its connection is made again.
package parity
