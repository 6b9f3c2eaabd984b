package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/term"

	"github.com/crossfade-io/crossfade/bridge/control"
	"github.com/crossfade-io/crossfade/bridge/stage"
	"github.com/crossfade-io/crossfade/pipeline"
)

// goal says whether a tenant is where those who wait want it.
type goal func(f control.Fact, wish stage.Stage) bool

// goalAuthority: the wished path has authority, and the way there is over but for the
// retirement of the other one.
func goalAuthority(f control.Fact, wish stage.Stage) bool {
	return f.Stage == wish || f.Stage == stage.Toward(wish)
}

// goalStage: the stage itself.
func goalStage(f control.Fact, wish stage.Stage) bool { return f.Stage == wish }

// goalBack: MQTT has authority, on every instance.
func goalBack(f control.Fact, _ stage.Stage) bool {
	return f.Stage.Authoritative() == pipeline.PathMQTT && f.ConfirmedAt != nil
}

// Time between two looks at the stages, and the least between two lines of progress
// that stay.
const (
	waitTick = 50 * time.Millisecond
	waitLine = 2 * time.Second
)

// waiter waits until tenants have reached a goal, and shows how far they are.
type waiter struct {
	console *console
	pool    *pgxpool.Pool
	goal    goal
	timeout time.Duration
	began   time.Time // when what is waited for was asked for
	quiet   bool      // no progress

	dwell    time.Duration // as learned from the leader's notes; 0: not yet
	terminal bool
	lastLine string
	shownAt  time.Time
}

// await fills in what the tenants have come to until all have reached the goal, time
// is up or ctx ends. The error is that of the last look, where that failed.
func (w *waiter) await(ctx context.Context, answers []flipped) error {
	if f, ok := w.console.err.(*os.File); ok {
		w.terminal = term.IsTerminal(int(f.Fd()))
	}
	bounded, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	defer w.end()
	for {
		began := time.Now()
		left, err := w.look(bounded, answers)
		switch {
		case err == nil && left == 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("interrupted while waiting; the wish stays: %w", ctx.Err())
		case bounded.Err() != nil && (err == nil || errors.Is(err, bounded.Err())):
			return nil // not reached: the answers say so
		case bounded.Err() != nil:
			return err
		}
		select { // very many tenants are looked at less often
		case <-bounded.Done():
		case <-time.After(max(waitTick, 2*time.Since(began))):
		}
	}
}

// look returns how many have not reached the goal.
func (w *waiter) look(ctx context.Context, answers []flipped) (left int, err error) {
	var now time.Time
	if err := w.pool.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
		return 0, fmt.Errorf("ask PostgreSQL for the time: %w", err)
	}
	all, err := control.Facts(ctx, w.pool)
	if err != nil {
		return 0, err
	}
	o := &overview{at: now, facts: make(map[string]control.Fact, len(all))}
	for _, f := range all {
		o.facts[f.Tenant] = f
	}
	spent := time.Since(w.began).Seconds()
	for i := range answers {
		a := &answers[i]
		f, ok := o.facts[a.Tenant]
		if !ok {
			left++
			continue
		}
		a.Stage, a.Revision, a.Authority = f.Stage, f.Revision, f.Stage.Authoritative().String()
		a.WaitsFor = ""
		if f.Stage != a.Wished {
			a.WaitsFor = f.WaitsFor
		}
		if a.Reached = w.goal(f, a.Wished); !a.Reached {
			left++
		} else if a.Seconds == nil {
			a.Seconds = &spent
		}
	}
	if left > 0 && !w.quiet {
		w.show(o, answers, left)
	}
	return left, nil
}

// show writes how far they are: over the last line on a terminal, and otherwise a
// line when there is something new to say.
func (w *waiter) show(o *overview, answers []flipped, left int) {
	line := w.line(o, answers, left)
	switch {
	case w.terminal:
		fmt.Fprintf(w.console.err, "\r\x1b[K%s", line)
	case line != w.lastLine && time.Since(w.shownAt) >= waitLine:
		fmt.Fprintln(w.console.err, line)
		w.shownAt = time.Now()
	}
	w.lastLine = line
}

// end takes the line off the terminal.
func (w *waiter) end() {
	if w.terminal && w.lastLine != "" {
		fmt.Fprint(w.console.err, "\r\x1b[K")
	}
}

// line is how many are there, how long the rest will take if that can be told, and
// what the first of them waits for.
func (w *waiter) line(o *overview, answers []flipped, left int) string {
	var eta time.Duration
	told, first := true, ""
	for i := range answers {
		a := &answers[i]
		if a.Reached {
			continue
		}
		f, ok := o.facts[a.Tenant]
		if total, dwells := dwellOf(f); dwells {
			w.dwell = total
		}
		rest, known := untilStage(f, a.Wished, w.dwell, o.at)
		eta, told = max(eta, rest), told && known && ok
		if first == "" {
			first = fmt.Sprintf("%s is in %s", cell(a.Tenant, 32), dash(string(f.Stage)))
			if f.WaitsFor != "" {
				text, _ := o.progressOf(f)
				first += ", waits for " + cell(text, 100)
			}
		}
	}
	about := ""
	if told {
		about = fmt.Sprintf(", about %s left", age(eta+time.Second))
	}
	return fmt.Sprintf("%d of %d there%s; %s", len(answers)-left, len(answers), about, first)
}

// stepTime is roughly what a step takes besides dwelling, when nothing is in its way.
const stepTime = time.Second

// untilStage estimates how long a tenant still takes to the wished stage if nothing
// gets in its way; not known where it is held up by something that has no clock.
func untilStage(f control.Fact, wish stage.Stage, dwell time.Duration, now time.Time) (left time.Duration, known bool) {
	walk := stage.Walk(f.Stage, wish)
	for i, step := range walk {
		left += stepTime
		if step.Needs != stage.NeedsProof {
			continue
		}
		switch {
		case dwell == 0:
			return left, false
		case i == 0 && f.ConfirmedAt != nil:
			left += max(f.ConfirmedAt.Add(dwell).Sub(now), 0)
		default:
			left += dwell
		}
	}
	_, dwells := dwellOf(f)
	return left, f.WaitsFor == "" || dwells
}
