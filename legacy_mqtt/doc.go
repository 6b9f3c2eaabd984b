// Package legacy_mqtt is the path that Crossfade migrates tenants away from: an
// MQTT 5 subscriber over a persistent session.
//
// # What it promises
//
// [Source] keeps one session at the broker. A QoS 1 message is acknowledged
// (PUBACK) only when the holder of its delivery says so, however much later and
// in whatever order; until then the broker keeps it and sends it again when the
// session is taken up again. The session outlives connections, restarts of the
// broker and of this process, up to Config.SessionExpiry.
//
// # How a message travels
//
//	broker ──► conn.Read ──► paho ──► Source.receive ──► deliver (the bridge)
//	  ▲                                    │                  │
//	  │                              conn.expect (ledger      │
//	  │                              of unacknowledged)       ▼
//	  └── flusher ◄── conn buffer ◄── conn.ack  ◄──── Receipt.Ack
//
// paho parses, keeps the connection alive and subscribes; autopaho reconnects.
// Acknowledgements do not pass through paho, whose tracker scans a list for
// every message and every acknowledgement. Instead each connection keeps its
// own ledger of what it received (acks.go) and writes PUBACKs itself, in order
// of arrival as MQTT-4.6.0-2 demands. That order has a price: one copy that is
// held keeps back all PUBACKs behind it, and when a whole Window is kept back
// the broker stops sending.
//
// The order of arrival also tells when everything that came before a message is
// settled (pipeline.OrderedReceipt), which is how a sentinel proves that nothing is
// left in a session. Every session has a subscription to sentinels of its own, also
// where the others are shared.
//
// A connection's ledger dies with it. A copy that came by a dead connection can
// no longer be acknowledged, and its PUBACK can never go to another connection,
// where its packet identifier may stand for a different message.
//
// # Shared subscriptions
//
// Mosquitto 2.0.11 does not keep shared subscriptions over a restart: what is
// published until the members have subscribed anew goes to none of them. Where that
// matters, leave Config.Group empty.
//
// # Publishing
//
// [Publisher] has a connection of its own, so that what is held here never holds up
// what goes to devices.
package legacy_mqtt
