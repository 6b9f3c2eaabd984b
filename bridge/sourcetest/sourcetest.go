// Package sourcetest holds what every [bridge.Source] promises, as tests that
// run against real servers. A source's own tests describe their servers as a
// [Harness] and call [Run]:
//
//	func TestConformance(t *testing.T) {
//		sourcetest.Run(t, sourcetest.Harness{
//			Setup:  func(t *testing.T) sourcetest.Env { return newEnv(t) },
//			Traits: sourcetest.Traits{AckDeadline: 2 * time.Second},
//		})
//	}
//
// Each case gets an Env of its own and breaks it on purpose: it holds copies
// too long, settles them in the wrong order, cuts the network, stops and kills
// the server. What sources may differ in is named in [Traits]; everything else
// is the same for all.
package sourcetest

import (
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/pipeline"
)

// Env is one case's private world: a server, the durable state of one
// subscriber on it (an MQTT session, a durable consumer), and a network between
// the two that can be cut. Whatever it starts it also ends, by t.Cleanup.
// A method that cannot do its work fails the test. Calls are sequential.
type Env interface {
	// New makes a source that is not yet running. All sources of one Env are
	// the same subscriber, so a later one is given what an earlier one left;
	// two never run at once. Window bounds what the source has delivered and
	// not yet seen settled. The source reaches its server through the network
	// that Cut cuts, and retries fast enough for a test (well under a second).
	New(t *testing.T, window int) bridge.Source
	// Publish sends one message for each ID to what the source reads and
	// returns when the server has taken them all. It does not go through the
	// network that Cut cuts. It is called only after a source of this Env has
	// been healthy once, so that the durable state exists.
	Publish(t *testing.T, ids ...string)
	// ID returns the ID under which a delivered message was published.
	ID(d pipeline.Delivery) string
	// Cut breaks all connections between source and server, and refuses new
	// ones until Restore.
	Cut(t *testing.T)
	Restore(t *testing.T)
	// Stop stops the server as an operator would, keeping its data; Start
	// starts it again at the same address.
	Stop(t *testing.T)
	Start(t *testing.T)
}

// Killer is an Env whose server can be killed without warning. Start brings it
// back. The suite's kill case is left out for an Env that is no Killer.
type Killer interface {
	Kill(t *testing.T)
}

// Traits are the differences between transports that the suite allows for.
type Traits struct {
	// OrderedAcks: the transport acknowledges strictly in order of arrival
	// (MQTT-4.6.0-2), so an acknowledged copy that arrived after an unsettled
	// one may come again at the next session.
	OrderedAcks bool
	// MaxInHand is how many copies the source may have in hand at most, given
	// its window. Nil means the window itself. Where the server is known to
	// send more than it was asked for, this is the source's own last bound.
	MaxInHand func(window int) int
	// AckDeadline is the time after which the server redelivers an
	// unsettled copy, with which Env.New configures it; zero if there is none.
	// The saturation case holds copies for several times as long and expects
	// no redelivery. Keep it small (1 to 2 s).
	AckDeadline time.Duration
}

// Harness describes a source's servers to the suite.
type Harness struct {
	// Setup makes the world for one case.
	Setup  func(t *testing.T) Env
	Traits Traits
}

// Run runs every case as a subtest.
func Run(t *testing.T, h Harness) {
	t.Helper()
	if h.Traits.MaxInHand == nil {
		h.Traits.MaxInHand = func(window int) int { return window }
	}
	cases := []struct {
		name string
		run  func(t *testing.T, env Env, traits Traits)
	}{
		{"DeliversAndSettles", deliversAndSettles},
		{"OutOfOrderSettlement", outOfOrderSettlement},
		{"Saturation", saturation},
		{"UnsettledComesAgain", unsettledComesAgain},
		{"Release", release},
		{"AckedBeforeCloseStaysAcked", ackedBeforeCloseStaysAcked},
		{"ConnectionLoss", connectionLoss},
		{"ServerRestart", serverRestart},
		{"ServerKill", serverKill},
		{"SettleAfterRun", settleAfterRun},
		{"StopsIntake", stopsIntake},
		{"StartsBeforeItsServer", startsBeforeItsServer},
		{"CloseWithoutRun", closeWithoutRun},
		{"CloseTwice", closeTwice},
		{"Health", health},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, h.Setup(t), h.Traits) })
	}
}
