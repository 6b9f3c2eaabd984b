// Package flags answers one question: which stage does the operator wish for a
// tenant? It is the only package that knows OpenFeature.
//
// A flag is a wish, a stage is a fact. The flag ingest-source (FlagKey) is
// evaluated with the tenant ID as targeting key and gives one of four variants:
// mqtt, shadow, live, jetstream. What a tenant's stage really is, the bridge
// decides; it walks towards the wish one step at a time.
//
// The rule that everything here serves: a broken flag service changes nothing.
// Client.Desired returns a variant only for a clean answer. An error, a default
// that stands in for an error, an unknown variant, a provider that hangs, is not
// ready or answers from old data: all of these are ErrNoAnswer, upon which the
// caller leaves the tenant where it is and warns.
//
//	        crossfade flip                      bridge
//	             │                                │ Desired(tenant)   Changes()
//	             ▼                                ▼                      ▲
//	Store ──► crossfade_flag_targets           Client ── OpenFeature ────┤
//	          crossfade_flag_rules                │                      │ events
//	             │ trigger: NOTIFY                ▼                      │
//	             └──────────────────────────► StoreProvider ─────────────┘
//	               notification, slow beat      snapshot in memory
//
// StoreProvider keeps a snapshot of both tables, so that an evaluation does no
// I/O. It reads them again when PostgreSQL notifies it, when it had to connect
// anew (a notification may have been lost), and on a slow beat in any case.
//
// Any other OpenFeature provider can take its place, and Client trusts none of
// them: FlagdProvider asks flagd, OFREPProvider any service that speaks OFREP,
// FileProvider reads a file in flagd's format. The targets in the store then remain
// on top as the operator's overrides (Options.Overrides), answered from memory
// whatever the provider does: that is the kill switch.
//
//	Client.EvaluateAll ── many tenants, bounded in number, rate and time
//	      │
//	Client.Evaluate ──► Overrides (StoreProvider) ── a target: that is the answer
//	      │ none
//	      └──► Provider: StoreProvider │ FileProvider │ FlagdProvider │ OFREPProvider
//	                     (in memory)     (in memory)         └── remote ──┘ (HTTP)
//
// For a tenant the tables say, in this order: its own row in
// crossfade_flag_targets (reason TARGETING_MATCH); else, if its bucket lies under
// the percentage in crossfade_flag_rules, percent_variant (SPLIT; see Bucket);
// else default_variant (DEFAULT). Without a row in crossfade_flag_rules there is
// no answer for the tenants that have none of their own.
package flags
