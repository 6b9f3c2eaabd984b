// Package downlink sends to devices over MQTT what is due to them: the desired state
// of their shadow, commands, and answers to their acks. It has a connection of its own
// and knows nothing of the subscriptions and of stages.
//
//	one transaction, anybody's           a Sender on every instance
//	┌────────────────────────────┐       ┌─────────────────────────────────────────┐
//	│ device_state, or           │NOTIFY │ lanes ─▶ read ─▶ publish ─▶ PUBACK ─▶   │
//	│ device_commands; triggers: ├──────▶│ settle: delete the row, note what was   │
//	│ rows in crossfade_downlink │       │ published; or try again later; or park  │
//	└────────────────────────────┘       └─────────────────────────────────────────┘
//
// A row says that something is due; what is sent is read when it is sent. A row goes
// only after the broker's confirmation, so nothing is lost; between the confirmation
// and the end of the row a crash makes it go out again.
//
// # Order
//
// Of a device one message at a time is under way, and a device's rows are in one lane,
// which one Sender at a time holds by an advisory lock of its session (package lanes).
// That alone would not keep an older version from following a newer one: a Sender
// that was frozen and lost its session may have packets on its connection, or send them
// again after a reconnect. Two things stop them.
//
//   - The fence. crossfade_downlink_lanes names, for every lane, the MQTT client that
//     may still have packets of it under way. Whoever takes a lane over from one that
//     did not leave it in order first connects with that client's ID; the broker then
//     ends the other's connection before it answers (MQTT-3.1.4-3). Only then the new
//     holder enters itself and reads.
//   - The guard. Whenever the publisher has connected, and before it sends or sends
//     again anything, it asks whether the session that holds the lanes still lives.
//     A connection whose guard said yes was made before the lanes were lost, and is
//     hence one that the fence has ended.
//
// Each session has a publisher of its own, so that nothing of an earlier session can
// be in the queue of a later one.
package downlink
