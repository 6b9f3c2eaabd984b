// Package jetstream is everything that speaks NATS: the source that pulls
// envelopes from durable JetStream consumers, the set-up of the streams and
// consumers themselves, and the mirror that republishes MQTT messages as
// envelopes.
//
// One [Conn] carries all of it:
//
//	Conn ─┬─ Ensure   creates what is missing, reports what would lose data
//	      ├─ Source   pulls; one loop for each durable consumer
//	      │             server ─pull─▶ onMsg ─▶ hand ─▶ deliver
//	      │                              ▲        │
//	      │                   keeper extends   Receipt.Ack / Release
//	      │             advisory ─▶ givenUp ─▶ GetMsg ─▶ hand ─▶ deliver
//	      └─ Mirror   Deliver ─▶ queue ─▶ publish ─▶ PubAck ─▶ Receipt.Ack
//
// # What the source promises
//
// A message is acknowledged only when its receipt is. While it is in hand its
// deadline is extended every third of the consumer's own ack_wait, so that even
// a consumer with ack_wait 5 s and max_deliver 3 burns no delivery attempt on a
// message that waits for a database. The source never asks the server for more
// messages than its window has room for: a message in a client's buffer ages
// like one in hand, but nobody extends it.
//
// What a consumer with max_deliver has given up all the same, after crashes or lost
// connections, the server never delivers again. It says so in an advisory that nobody
// keeps. Each instance hears it, reads the message from the stream and delivers it as
// [pipeline.Delivery].Sole; when it is released it is delivered again from here. The
// server shows how many were given up and not acknowledged since, never which: what no
// instance heard of is a [Finding] and counted in [Backlog], and lost with the stream's
// limits.
//
// An acknowledgement names a stream sequence, not a message. After a
// reconnection the source therefore sends none before it has seen that the
// stream still holds the message it was given under that sequence: a stream that
// was deleted and created again, or that lost its tail with the power, reuses
// sequences, and an old acknowledgement would silence a message that was never
// handled. Receipts from before such a loss return [ErrStale].
package jetstream
