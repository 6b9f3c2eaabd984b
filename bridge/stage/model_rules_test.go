package stage_test

import "github.com/crossfade-io/crossfade/bridge/stage"

// rules are what a search assumes: the size of the world, how messages come to
// have two copies, and which rule of the protocol is changed.
type rules struct {
	instances, messages int
	from                stage.Stage // where the tenant begins; empty: anywhere

	ownSessions bool // every session gets every message; otherwise one of them does
	bothWritten bool // producers write both copies, in either order; otherwise a mirror copies MQTT to JetStream
	missing     bool // one copy of a message may never come; acknowledgements are not lost
	exact       bool // messages are followed when they have taken effect, too

	// Less than everything, for stories without needless turns.
	noLapses  bool
	noCrashes bool
	alone     bool // no two instances are without a lease at once
	noRethink bool // what is held is never dropped

	// Other protocols, which turn out to be safe.
	halfProof  bool // the sentinel is awaited only on the path that will be dropped
	awaitDead  bool // sessions of the dead are awaited and never lost sight of, and nobody proves one anew
	freeInner  bool // shadow → live without confirmation
	carryInner bool // evidence stays good from one inner stage to the other

	losses     bool // PostgreSQL may come back without its last commits
	mirrorAway bool // the tables may lose sight of the mirror's session, while another mirror brings the sentinel

	// The protocol with one rule switched off.
	noAdjacency bool // nobody waits for confirmations
	noLease     bool // an instance goes on dropping when its lease has run out
	noSentinel  bool // no sentinel is awaited
	wrongHalf   bool // the sentinel is not awaited on the path that will be dropped
	unsettled   bool // a sentinel counts when it arrives, whatever is still in hand before it
	noAnew      bool // an instance that begins, or gets a lapsed lease back, drops MQTT copies at once
	earlyAnew   bool // a sentinel proves a session that was sent when the instance's lease had run out, before it has one again
	noMarks     bool // a mirror whose session may not have been awaited does not say so
	staleReturn bool // an instance gets its lease back without reading the row
	noDwell     bool // the sentinel is sent at once
	dwellBeside bool // the dwell runs beside the sentinel instead of before it
	overtaking  bool // the mirror may send a sentinel before what preceded it
	oldEvidence bool // evidence stays good whatever the revision
	trustLost   bool // what PostgreSQL comes back with counts as it is, also an outer stage
	blindWrite  bool // a replaced leader writes without naming the revision
	noLedger    bool // effects do not depend on the ledger's row
}

func (r *rules) codec() codec {
	return codec{
		instances: r.instances, messages: r.messages,
		wide: r.bothWritten || r.missing, owes: r.anew(), packed: !r.noLease && !r.staleReturn && !r.earlyAnew, planned: r.blindWrite,
		mirror: r.mirrorAway,
	}
}

// anew: an instance drops no MQTT copy before its session is proved, and nobody counts
// on that session being awaited meanwhile.
func (r *rules) anew() bool { return !r.awaitDead && !r.noAnew }
