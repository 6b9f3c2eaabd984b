// Package ingest takes what devices and gateways send over HTTP and puts it on
// JetStream, where it goes through the same pipeline as everything else.
//
//	POST /ingest/v1/tenant/{t}/device/{d}/{msg_type} ─┐
//	                                                  ├─ who is it? ─▶ envelope ─▶ PubAck ─▶ 202
//	POST /ingest/v1/batch ────────────────────────────┘
//
// 202 means that the stream has the message, not that it was found good: the checks
// are the pipeline's, and what fails them is in quarantine. 503 means that it may or may
// not be there, and that it should be sent again: a message with a ts, a seq or an ID
// of its own takes effect once all the same, one without if its repeat comes within
// half a minute.
//
// # Who may send
//
// Whoever sends is authenticated before anything of a body is read: a stranger costs a
// look at a header, however large what he sends. Hence a batch is one device's, which
// names itself in X-Tenant-ID and X-Device-ID, or a gateway's; a token in a message of the
// batch lets nobody in. Every message counts towards the sender's rate.
//
// A device sends its provisioning token in X-Provision-Token. A gateway has a bearer
// token with the scope ingest, and speaks for any device of the tenants that it is for.
// That lets the message in, and no more: the pipeline demands each device's own
// provision_token as it does over MQTT (unless REQUIRE_TOKEN is off), since a bearer
// token is no proof that it could check, and what one path accepts the other must
// too. So a gateway, too, names the device's token: in X-Provision-Token, in the
// batch's provision_token, or in the payload as it came from the device. Where the
// payload has no member provision_token, the one that was given besides is put there.
//
// # Why every stage processes it
//
// A message that came by HTTP has no copy on the MQTT path. In the stages mqtt and
// shadow copies on JetStream are dropped or stand by for their siblings; hence these
// carry a header (jetstream.Ingest) by which they are processed instead.
//
// Reported states and acknowledgements have endpoints of their own (package api), which
// use the same publisher.
package ingest
