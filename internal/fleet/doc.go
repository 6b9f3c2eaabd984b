// Package fleet plays the devices: it publishes what devices in the field
// publish (CONTRACT.md, "Device topics"), keeps its own record of what it
// handed to the broker, and compares that record with what a database holds.
// The demo, the benchmark, soak runs and tests use it; it knows nothing of the
// bridge, so its verdict is independent of the code it judges.
//
// Every device counts its messages from 1, and puts the number in the payload
// as seq: (tenant, device, seq) identifies a message. Content is a pure
// function of the device, its seq and a time, so nothing but those three has
// to be kept until a message is acknowledged.
//
//	         one goroutine per connection                 one per connection
//	devices ──▶ publisher ──PUBLISH (window of many)──▶ broker
//	               ▲   └──────── attempted ──▶ Record
//	               │                             ▲
//	               └── acks ◀── reader ◀──PUBACK─┘ acked, unrouted, refused
//
// A message is attempted before its first byte is written, and sent when its
// PUBACK has arrived. A publisher that loses its connection publishes what was
// not acknowledged again, in the old order, with the same seq and the same
// payload, before anything new. A broker therefore may see a message twice, as
// it does from any QoS 1 device; a database must not. What has no PUBACK at the
// end is uncertain: it may be stored or not, but never twice.
//
// Parts: [Config] and [Devices] say who plays; [AppendPayload], [AppendEnvelope]
// and [SubjectFor] produce messages without any broker; [Fleet] publishes;
// [Record] remembers; [Register] makes the devices known to a database and
// [Reconcile] judges one.
package fleet
