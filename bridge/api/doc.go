// Package api is Crossfade's HTTP API: for back ends that do not write SQL, and for
// devices that do not speak MQTT.
//
//	back end ── Authorization: Bearer … ──┐      ┌─ device_state.desired_state ─┐ triggers,
//	                                      ├─ api ┤                              ├ outbox ─▶ MQTT
//	device ──── X-Provision-Token: … ─────┘      ├─ device_commands ────────────┘
//	                                             └─ Publisher ─▶ JetStream ─▶ pipeline
//
// What a back end wants of a device (its desired state, commands) is plain SQL on
// the contract's tables: triggers number the versions and fill the outbox, so that
// it makes no difference who has written. What a device says (its reported state,
// acknowledgements) is published to JetStream as an envelope and goes through the
// pipeline like any other message; 202 means that the stream has it.
//
// A [Server] has a listener and database connections of its own: a flood of requests
// takes nothing from ingest. It knows nothing of stages and works in each of them.
//
// [Auth] decides who may do what, for this package's operations and for those that
// others add (Parts.Mount). A back end's token belongs to one tenant or to all; a
// tenant that it is not for looks the same whether it exists or not, and so does a
// device to whoever lacks its token.
//
// docs/api.md is the manual.
package api
