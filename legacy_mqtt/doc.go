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
// A connection's ledger dies with it. A copy that came by a dead connection can
// no longer be acknowledged, and its PUBACK can never go to another connection,
// where its packet identifier may stand for a different message.
package legacy_mqtt
