package sourcetest

import (
	"context"
	"testing"
	"time"
)

// connectionLoss: the network goes away with copies in flight. The source
// reconnects by itself, everything arrives, and settling copies of the dead
// connection does no harm to anything that came by the new one.
func connectionLoss(t *testing.T, env Env, _ Traits) {
	ids := names("m", 6*window)
	c := consume(t, env, window)
	env.Publish(t, ids[:3*window]...)
	c.awaitInHand(window)
	c.ack(c.take(window / 2))
	stale := c.take(window / 4)

	env.Cut(t)
	c.awaitUnhealthy()
	env.Publish(t, ids[3*window:]...)
	env.Restore(t)
	c.awaitHealthy()

	// The stale copies' own messages come again by the new connection unless
	// the transport could still take their acknowledgement; either is right.
	for _, cp := range stale {
		_ = cp.receipt.Ack()
	}
	c.settleUntil(ids)
	c.close()

	// Nothing that was refused is lost, and nothing new was settled by mistake.
	again := consume(t, env, window)
	marker := names("after", 1)
	env.Publish(t, marker...)
	again.settleUntil(marker)
	again.close()
}

// serverRestart: the server is stopped and started as in an upgrade. The
// source says so meanwhile, and resumes.
func serverRestart(t *testing.T, env Env, _ Traits) {
	ids := names("m", 2*window)
	c := consume(t, env, window)
	env.Publish(t, ids...)
	c.awaitInHand(window)
	c.ack(c.take(window / 2))

	env.Stop(t)
	c.awaitUnhealthy()
	env.Start(t)
	c.awaitHealthy()

	more := names("after", 2*window)
	env.Publish(t, more...)
	c.settleUntil(append(ids, more...))
	c.close()
}

// serverKill: the server dies without warning. It may forget what it promised;
// the source resumes with what is published afterwards.
func serverKill(t *testing.T, env Env, _ Traits) {
	killer, ok := env.(Killer)
	if !ok {
		t.Skip("this Env has no server that can be killed")
	}
	c := consume(t, env, window)
	before := names("before", window)
	env.Publish(t, before...)
	c.awaitInHand(window)
	c.ack(c.take(window / 2))

	killer.Kill(t)
	c.awaitUnhealthy()
	env.Start(t)
	c.awaitHealthy()

	c.settle()
	after := names("after", 2*window)
	env.Publish(t, after...)
	c.settleUntil(after)
	c.close()
}

// startsBeforeItsServer: a source that is started while its server is away
// says so, waits, and needs no help once it is there.
func startsBeforeItsServer(t *testing.T, env Env, _ Traits) {
	consume(t, env, window).close()
	env.Cut(t)
	c := start(t, env, window)
	c.awaitUnhealthy()
	env.Restore(t)
	c.awaitHealthy()
	ids := names("m", window)
	env.Publish(t, ids...)
	c.settleUntil(ids)
	c.close()
}

// settleAfterRun: between the end of Run and Close, what was delivered can
// still be settled, and that counts.
func settleAfterRun(t *testing.T, env Env, _ Traits) {
	ids := names("m", window)
	c := consume(t, env, window)
	env.Publish(t, ids...)
	c.awaitInHand(len(ids))
	c.endRun()
	copies := c.takeAll()
	shuffle(copies)
	c.ack(copies)
	c.close()
	nothingComesAgain(t, env, ids)
}

// stopsIntake: nothing is delivered once Run has returned, even though there
// is room and messages wait; they are there for the next source.
func stopsIntake(t *testing.T, env Env, _ Traits) {
	early, late := names("early", window/2), names("late", window)
	c := consume(t, env, window)
	env.Publish(t, early...)
	c.awaitInHand(len(early))
	c.endRun()
	before := c.delivered()
	env.Publish(t, late...)
	c.ack(c.takeAll())
	// That nothing comes can only be watched for a while.
	if c.try(300*time.Millisecond, func() bool { return c.delivered() > before }) == nil {
		t.Errorf("%d copies were delivered after Run had returned", c.delivered()-before)
	}
	c.close()

	again := consume(t, env, window)
	again.settleUntil(late)
	again.close()
	nothingComesAgain(t, env, append(early, late...))
}

func closeWithoutRun(t *testing.T, env Env, _ Traits) {
	source := env.New(t, window)
	closeWithin(t, source.Close)
	closeWithin(t, source.Close)
}

func closeTwice(t *testing.T, env Env, _ Traits) {
	c := consume(t, env, window)
	c.endRun()
	closeWithin(t, c.source.Close)
	closeWithin(t, c.source.Close)
}

func closeWithin(t *testing.T, closeSource func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := closeSource(ctx); err != nil {
		t.Errorf("Close = %v", err)
	}
}

// health: Health is nil only while the source receives, and always says
// something when it is not.
func health(t *testing.T, env Env, _ Traits) {
	source := env.New(t, window)
	if source.Health() == nil {
		t.Error("Health = nil before Run")
	}
	closeWithin(t, source.Close)

	c := consume(t, env, window)
	for range 3 {
		env.Cut(t)
		c.awaitUnhealthy()
		env.Restore(t)
		c.awaitHealthy()
		ids := names("m"+time.Now().Format("150405.000000"), 3)
		env.Publish(t, ids...)
		c.settleUntil(ids)
	}
	c.endRun()
	if c.source.Health() == nil {
		t.Error("Health = nil although intake has ended")
	}
	c.close()
	if c.source.Health() == nil {
		t.Error("Health = nil after Close")
	}
}
