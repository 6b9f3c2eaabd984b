package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-io/crossfade/bridge"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/flags"
)

const (
	// storyLength is the most that the story takes of a long run; the rest of
	// it is load alone.
	storyLength = time.Minute
	// mostWaves is the most flips to jetstream: many tenants go several at a time.
	mostWaves = 6
	// flipPatience is how long a tenant may take to get there, and to be proved there.
	flipPatience = 30 * time.Second
	// killEvery is how often a long chaotic run is killed after the story.
	killEvery = 30 * time.Second
)

// Flip is one change of authority, for the report.
type Flip struct {
	Tenants []string `json:"tenants"`
	To      string   `json:"to"`
	// Milliseconds from the wish until the wished path has the authority, a restart
	// included where there was one.
	Milliseconds int64 `json:"milliseconds"`
	// ProvedMilliseconds is the same until the last of the tenants is in the wished
	// stage itself, where the other path's copies are dropped; 0 where the story ended
	// before.
	ProvedMilliseconds int64 `json:"proved_milliseconds"`
	// Killed: `crossfade run` was killed between the wish and the authority.
	Killed bool `json:"killed"`

	wished time.Time
}

// story is what happens while the devices publish.
type story struct {
	stack  *stack
	screen *Screen
	meter  *meter
	flips  []Flip
	kills  int
	killed time.Time // the last time
}

// act is a part of the story, due at a time after its beginning.
type act struct {
	at time.Duration
	do func(context.Context) error
}

// acts is the story of a run of that duration.
func (s *story) acts(tenants []string, duration time.Duration, chaos bool) []act {
	length := min(duration, storyLength)
	part := func(share float64) time.Duration { return time.Duration(share * float64(length)) }
	waves := slices.Collect(slices.Chunk(tenants, (len(tenants)+mostWaves-1)/mostWaves))
	var acts []act
	if chaos {
		acts = append(acts, act{part(0.07), s.kill})
	}
	for i, wave := range waves {
		last := i == len(waves)-1
		// Killing right after the second wish, or the only one.
		kill := chaos && i == min(1, len(waves)-1)
		acts = append(acts, act{part(0.15 + 0.45*float64(i)/float64(len(waves))), func(ctx context.Context) error {
			return s.forward(ctx, wave, last, kill)
		}})
	}
	acts = append(acts,
		act{part(0.62), s.proved},
		act{part(0.70), func(ctx context.Context) error { return s.back(ctx, waves[0][:1], chaos) }},
		act{part(0.80), s.proved})
	if chaos {
		for at := length; at < duration; at += killEvery {
			acts = append(acts, act{at, s.kill})
		}
	}
	return acts
}

// play performs the acts in order, each when it is due or as soon as the one before
// is over. It ends early, without an error, when curtain does; ctx bounds what is
// going on then.
func (s *story) play(ctx, curtain context.Context, acts []act) error {
	began := time.Now()
	for i, act := range acts {
		due := time.NewTimer(act.at - time.Since(began))
		select {
		case <-due.C:
		case <-curtain.Done():
			due.Stop()
			if left := len(acts) - i; ctx.Err() == nil {
				s.screen.tell("Time is up; %d parts of the story were not reached. A longer --duration has room for them.", left)
			}
			return nil
		}
		if err := act.do(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) forward(ctx context.Context, tenants []string, last, kill bool) error {
	s.screen.tell("%s", s.screen.bold("Flip "+listed(tenants)+" to jetstream"))
	took, err := s.flip(ctx, tenants, flags.JetStream, "the demo's next wave", kill)
	if err != nil {
		return err
	}
	s.screen.tell("%s: JetStream's copies are written now, MQTT's stand by.", took)
	if last {
		s.screen.tell("JetStream has the authority for all tenants.")
	}
	return nil
}

// proved waits until all that was flipped is in the stage itself, for which the proof
// has gone on beside the story, and tells how long that took.
func (s *story) proved(ctx context.Context) error {
	var tenants []string
	var to stage.Stage
	var longest time.Duration
	for i := range s.flips {
		f := &s.flips[i]
		if f.ProvedMilliseconds > 0 {
			continue
		}
		to = stage.Stage(f.To)
		facts, err := s.await(ctx, f.Tenants, to)
		if err != nil {
			return err
		}
		took := time.Duration(f.Milliseconds) * time.Millisecond
		for _, fact := range facts {
			took = max(took, fact.Since.Sub(f.wished))
		}
		f.ProvedMilliseconds = took.Milliseconds()
		tenants, longest = append(tenants, f.Tenants...), max(longest, took)
	}
	s.screen.tell("%s: stage %s, %.1f s after the wish.\nA sentinel has come out of both paths with everything before it settled, so\n%s's copies are dropped unseen now.",
		s.screen.bold("Proved for "+listed(tenants)), to, longest.Seconds(), otherPath(to))
	return nil
}

// otherPath is the one whose copies an outer stage drops.
func otherPath(s stage.Stage) string {
	if s == stage.MQTT {
		return "JetStream"
	}
	return "MQTT"
}

func (s *story) back(ctx context.Context, tenants []string, kill bool) error {
	s.screen.tell("%s", s.screen.bold("Roll "+listed(tenants)+" back to mqtt")+", as if something were wrong with it")
	took, err := s.flip(ctx, tenants, flags.MQTT, "the demo's rollback", kill)
	if err != nil {
		return err
	}
	s.screen.tell("%s: MQTT has its authority back. The others stay where they are.", took)
	return nil
}

// flip wishes a stage and waits until the tenants are there. With kill, the
// instance dies right after the wish was committed.
func (s *story) flip(ctx context.Context, tenants []string, to flags.Variant, why string, kill bool) (string, error) {
	wished := time.Now()
	if _, err := flags.OpenStore(s.stack.pool).SetTargets(ctx, tenants, to, "crossfade demo", why); err != nil {
		return "", err
	}
	if kill {
		if err := s.kill(ctx); err != nil {
			return "", err
		}
	}
	goal := stage.Toward(stage.Stage(to))
	// By the time of the next look they may be in the stage itself.
	if _, err := s.await(ctx, tenants, goal, stage.Stage(to)); err != nil {
		return "", err
	}
	took := time.Since(wished)
	s.flips = append(s.flips, Flip{Tenants: tenants, To: to.String(), Milliseconds: took.Milliseconds(), Killed: kill, wished: wished})
	return fmt.Sprintf("Stage %s after %d ms", goal, took.Milliseconds()), nil
}

// await waits until tenants are in one of the stages, and returns their facts.
func (s *story) await(ctx context.Context, tenants []string, goals ...stage.Stage) ([]bridge.Fact, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, flipPatience, fmt.Errorf("%s did not reach the stage %s within %v", listed(tenants), goals[0], flipPatience))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		facts, err := bridge.Facts(ctx, s.stack.pool)
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		facts = slices.DeleteFunc(facts, func(f bridge.Fact) bool {
			return !slices.Contains(goals, f.Stage) || !slices.Contains(tenants, f.Tenant)
		})
		if len(facts) == len(tenants) {
			return facts, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// kill kills `crossfade run` and starts it again.
func (s *story) kill(ctx context.Context) error {
	instance := s.stack.instance
	pid := instance.pid()
	// For the sums; a reading that fails now only makes them smaller.
	_, _ = s.meter.read(ctx)
	if err := instance.kill(); err != nil {
		return err
	}
	s.kills++
	s.killed = time.Now()
	s.screen.tell("%s crossfade run (process %d), with messages in hand", s.screen.bad("kill -9"), pid)
	// Whatever the user wishes meanwhile: without it there is no verdict.
	if err := instance.start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	s.screen.tell("Started again (process %d), ready after %s. Both brokers deliver again what\nit had not acknowledged; the ledger knows what was stored before.", instance.pid(), took(s.killed))
	return nil
}

// drainPatience bounds the wait for the last copies. Copies that stand by need
// their time, 5 s, before they are rescued.
const drainPatience = 30 * time.Second

// drain waits until every copy that the brokers have handed out is settled and no
// more arrive. Not getting there is no error: the verdict will tell.
func (s *story) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var before Counts
	for quiet := 0; quiet < 3; {
		now, err := s.meter.read(ctx)
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			s.screen.tell("After %v some copies are still not settled; judging all the same.", drainPatience)
			return nil
		case err != nil:
			return fmt.Errorf("wait until all is settled: %w", err)
		case now.busy == 0 && now.received == before.received:
			quiet++
		default:
			quiet = 0
		}
		before = now
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

func listed(tenants []string) string {
	if len(tenants) > 4 {
		return fmt.Sprintf("%s and %d more", strings.Join(tenants[:3], ", "), len(tenants)-3)
	}
	return strings.Join(tenants, ", ")
}
