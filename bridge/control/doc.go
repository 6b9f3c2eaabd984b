// Package control says which stage each tenant is in, and moves tenants from stage to
// stage. Every instance has a [Control]; one of them leads.
//
// # Every instance
//
// An instance signs on, loads the facts (rows of crossfade_stages), confirms their
// epoch and only then takes anything in. Changes of stages are numbered by a global
// epoch, so an instance that knows all up to one reads what came after. It confirms an
// epoch, in its own row of crossfade_instances, once its gate and its standby decide
// by it; until then no step that needs confirmation is taken.
//
// It also holds a lease. The leader waits for whoever has one. The instance counts it
// from before the renewal was sent, and drops nothing once it may have run out: it
// gets it back by renewing and then reading the facts anew.
//
//	 SignOn ──► renewed ◄──────────────┐ every second, and when
//	              │                    │ an epoch is to be confirmed
//	              ├──► lease valid ────┘
//	run out ◄─────┤         ▲ facts read that began after the renewal
//	              └──► renewed again
//
// For MQTT copies there is one thing more: a sentinel that the instance has sent since its
// lease began must have come out of its own session; and until one has come out of its
// mirror's, that marks its envelopes so that nobody drops them; see anew.go. All of this holds
// within an era, which each leader begins, since PostgreSQL may come back without its
// last commits; see era.go.
//
// # The leader
//
// Whoever has the advisory lock leads. The lock belongs to a database session, and
// all that the leader writes goes through that same session: who has lost the right
// to write is not able to. PostgreSQL ends a session whose instance is dead, frozen or
// cut off within some seconds, and another instance carries on. It takes everything
// from tables, except the wishes, which it asks for anew: nobody moves without a
// clean answer to the one who moves him.
//
//	flags ──► wishes ─┐
//	holds ────────────┤        one batch reads all
//	instances ────────┼─► weigh ──► confirmations, waits ──► one statement each
//	sentinels,        │   (pure)──► steps that are due ────► one statement, one epoch
//	sightings ────────┘        └──► sentinels to send ─────► Prober
//
// A round takes the same number of round trips for one tenant as for 10,000. Steps
// that give MQTT its authority back go ahead of everything else, and a row that somebody
// else keeps locked delays its own tenant only.
package control
