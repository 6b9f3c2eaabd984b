// Package bridge decides: it stands between the two sources and the pipeline, and
// says for every copy of a message whether it is processed now or stands by until
// the other path has brought its sibling.
//
//	legacy_mqtt.Source ──┐                                     ┌── Committed ──┐
//	                     ├─► gate ─ process ─► process.Processor ─► PostgreSQL  │
//	jetstream.Source ────┘    │                       ▲ rescue                 ▼
//	                          └─ stand by ─► standby ─┴── the ledger has it ─► Ack
//	                               ▲
//	flags.Client ── wishes ─► control ── facts (crossfade_stages) ─► gate
//
//	legacy_mqtt.Source (a session of its own) ─► jetstream.Mirror      with --mirror
//
// Goroutines: one per source, which is made anew when it ends with an error; one for
// standby, and one that tells it when JetStream has stopped delivering; those
// of [control.Control]; those that find out when sentinels have come out of a path; one
// that makes and drops partitions, one that sets JetStream up and looks for dangerous
// settings, the processor's workers, and the HTTP server's. [Bridge.Run]
// starts them all and stops them in order: intake, what is in hand,
// acknowledgements, connections.
package bridge
