package downlink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/legacy_mqtt"
)

// Sender sends what is due to devices, side by side with those of other instances.
// Make it with New, call Run once.
type Sender struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	evict   func(ctx context.Context, clientID string) error

	unsettled []outcome // not written down yet
	strikes   map[int64]strikes
	answered  uint64          // messages that the broker has answered
	barred    map[string]*bar // by the client ID of a former holder
	warned    time.Time       // of rows that are parked
	refused   time.Time       // when it was said that PostgreSQL refuses one

	trouble atomic.Pointer[error]
	fenced  atomic.Pointer[error] // lanes that cannot be taken over
	backlog atomic.Pointer[Backlog]
	lanes   atomic.Int64
}

// New checks the options. It connects to nothing yet.
func New(o Options) (*Sender, error) {
	if o.ClientID == "" {
		o.ClientID = o.MQTT.ClientID + "-downlink"
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := &Sender{o: o, log: o.Logger, strikes: make(map[int64]strikes), barred: make(map[string]*bar)}
	s.evict = func(ctx context.Context, clientID string) error { return legacy_mqtt.Evict(ctx, o.MQTT, clientID) }
	s.metrics = s.newMetrics(o.Registry)
	return s, nil
}

// slow is how long a row may wait before Health speaks of it.
const slow = time.Minute

// Health is nil while rows go out without delay.
func (s *Sender) Health() error {
	var err error
	if e := s.trouble.Load(); e != nil {
		err = *e
	}
	if e := s.fenced.Load(); e != nil {
		err = errors.Join(*e, err)
	}
	b := s.backlog.Load()
	if b == nil || b.Oldest < slow {
		return err
	}
	waiting := fmt.Errorf("%d messages wait to be sent to devices, the oldest for %s; see crossfade downlink list", b.Rows, b.Oldest.Round(time.Second))
	return errors.Join(waiting, err)
}

// Pauses between sessions that fail.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// Run sends until ctx ends. What is left then is sent by others, or at the next start.
func (s *Sender) Run(ctx context.Context) {
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { s.sweep(ctx) })
	beside.Go(func() { s.sample(ctx) })
	delay := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := s.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if s.trouble.Swap(&err) == nil {
			s.log.Warn("nothing can be sent to devices; trying again until it can", "error", err)
		}
		if time.Since(began) > lastPause+s.o.Patience {
			delay = firstPause // it had worked for a while
		}
		backoff.Sleep(ctx, backoff.Jitter(delay))
		delay = min(2*delay, lastPause)
	}
	if err := s.settle(ctx, s.o.Pool); err != nil {
		s.log.Warn("messages that the broker has confirmed stay in crossfade_downlink and are sent again", "messages", len(s.unsettled), "error", err)
	}
}

// session works with one hold on lanes. It ends with an error when PostgreSQL or the
// broker cannot be reached: an instance that can't send leaves the lanes to others.
func (s *Sender) session(ctx context.Context) error {
	if err := s.settle(ctx, s.o.Pool); err != nil {
		return err
	}
	// That the broker lets us in is found out before any lane is taken. Whoever still
	// has our client ID, a frozen process that this one replaces, is out of the way.
	if err := s.evict(ctx, s.o.ClientID); err != nil {
		return fmt.Errorf("connect to send to devices: %w", err)
	}
	n, err := s.openSession(ctx)
	if err != nil {
		return err
	}
	defer s.lanes.Store(0)
	defer n.close(ctx)
	var balanced time.Time
	for empty := 0; ctx.Err() == nil; {
		if time.Since(balanced) >= s.o.Beat {
			if err := n.balance(ctx); err != nil {
				return err
			}
			s.sayFenced(n.barred)
			balanced = time.Now()
			s.lanes.Store(int64(len(n.hold.Held())))
			s.recovered()
		}
		sent, more, err := s.turn(ctx, n)
		if err != nil {
			return err
		}
		if sent {
			empty = 0
			continue
		}
		// Devices that wait for another try are passed by, some thousands at a time.
		if empty++; more && empty < mostEmpty {
			continue
		}
		empty = 0
		if err := n.hold.Wait(ctx, s.o.Beat); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// uncut outlives the end of ctx: a statement that is cut off costs the session, which
// could then not leave its lanes in order.
func uncut(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
}

// mostEmpty is how many turns in a row may find nothing due before the sender waits.
const mostEmpty = 8

func (s *Sender) recovered() {
	if s.trouble.Swap(nil) != nil {
		s.log.Info("messages are sent to devices again")
	}
}

// turn sends the first rows of some devices, and tells whether there were any, and
// whether there are devices that it did not look at.
func (s *Sender) turn(ctx context.Context, n *session) (any, more bool, err error) {
	n.hold.Begin()
	reading, cancel := uncut(ctx)
	defer cancel()
	rows, more, err := n.places.read(reading, n.hold.Conn(), n.hold.Held(), s.o.PerLane, s.o.Bytes)
	if err != nil || len(rows)+len(s.unsettled) == 0 {
		return false, more, err
	}
	rows = s.unfinished(rows)
	unreachable := s.publish(ctx, n, rows)
	settling, cancelSettling := uncut(ctx)
	defer cancelSettling()
	if err := s.settle(settling, n.hold.Conn()); err != nil {
		return true, more, err
	}
	return len(rows) > 0, more, unreachable
}

// unfinished leaves out rows that were sent and could not be settled yet.
func (s *Sender) unfinished(rows []row) []row {
	if len(s.unsettled) == 0 {
		return rows
	}
	known := make(map[int64]bool, len(s.unsettled))
	for i := range s.unsettled {
		known[s.unsettled[i].ID] = true
	}
	var rest []row
	for i := range rows {
		if !known[rows[i].ID] {
			rest = append(rest, rows[i])
		}
	}
	return rest
}

// publish sends what there is to send and adds every outcome to unsettled. Its error
// says that nothing got through.
func (s *Sender) publish(ctx context.Context, n *session, rows []row) error {
	var messages []legacy_mqtt.Message
	var sent []*row
	for i := range rows {
		r := &rows[i]
		what, m, err := r.plan()
		if what == send && err == nil {
			messages, sent = append(messages, m), append(sent, r)
			continue
		}
		if err != nil {
			what = park
			s.warnParked(r, err)
		}
		s.unsettled = append(s.unsettled, newOutcome(r, what, err))
	}
	if len(messages) == 0 {
		return nil
	}
	return s.publishAll(ctx, n, messages, sent)
}

// publishAll sends messages of rows.
func (s *Sender) publishAll(ctx context.Context, n *session, messages []legacy_mqtt.Message, sent []*row) error {
	for i, r := range sent {
		messages[i].Suspect = s.strikes[r.ID].hangs
	}
	through := false
	var last error
	bounded, cancel := context.WithTimeout(ctx, mostPublishing)
	defer cancel()
	before := s.answered
	results := n.publisher.PublishAll(bounded, messages)
	for _, err := range results {
		if _, refused := errors.AsType[*legacy_mqtt.RefusedError](err); refused || err == nil {
			s.answered++
		}
	}
	for i, err := range results {
		r := sent[i]
		if errors.Is(err, legacy_mqtt.ErrUnconfirmed) {
			n.dirty[r.Lane] = true
		}
		if errors.Is(err, legacy_mqtt.ErrUnconfirmed) && !errors.Is(err, legacy_mqtt.ErrHangsUp) {
			last = err
			if ctx.Err() != nil {
				continue // it was not the row's fault
			}
		} else {
			through = true
		}
		s.unsettled = append(s.unsettled, s.tried(r, err, before))
	}
	if !through && last != nil {
		return last
	}
	return nil
}

// mostPublishing bounds what one turn sends: PostgreSQL ends a session that is idle for
// a minute, and the lanes go with it.
const mostPublishing = 45 * time.Second

// tried is the outcome of an attempt, before which the broker had answered some
// messages.
func (s *Sender) tried(r *row, err error, answered uint64) outcome {
	switch {
	case err == nil:
		delete(s.strikes, r.ID)
		return newOutcome(r, send, nil)
	case errors.Is(err, legacy_mqtt.ErrExpired):
		delete(s.strikes, r.ID)
		if r.Kind == Command {
			return newOutcome(r, expire, nil)
		}
		return newOutcome(r, skip, nil)
	case s.hopeless(r.ID, err, answered):
		delete(s.strikes, r.ID)
		s.warnParked(r, err)
		return newOutcome(r, park, err)
	}
	s.metrics.failed.Inc()
	o := newOutcome(r, send, err)
	o.again = s.delay(r.Attempts)
	return o
}

// delay is the pause after failure number n, from 0.
func (s *Sender) delay(n int) time.Duration {
	return backoff.Delay(n+1, s.o.FirstRetry, s.o.LastRetry)
}

// mostStrikes bounds what is remembered of rows; with more they begin anew.
const mostStrikes = 100_000

// hopeless reports whether a row that has failed is to be parked. One on which the broker
// hangs up is, if the broker takes others meanwhile: one that hangs up on all is in
// trouble itself.
func (s *Sender) hopeless(id int64, err error, answered uint64) bool {
	switch judge(err) {
	case never:
		return true
	case retry:
		return false
	}
	k, known := s.strikes[id]
	if !known {
		k.since = answered
		if len(s.strikes) >= mostStrikes {
			clear(s.strikes)
		}
	}
	k.n++
	k.hangs = errors.Is(err, legacy_mqtt.ErrHangsUp)
	s.strikes[id] = k
	return k.n >= patientAttempts && (!k.hangs || s.answered > k.since)
}

// warnParked speaks for all that are parked in ten seconds; the table has every one.
func (s *Sender) warnParked(r *row, reason error) {
	if now := time.Now(); now.Sub(s.warned) > 10*time.Second {
		s.warned = now
		s.log.Warn("a message cannot be sent to a device and is parked; see crossfade downlink list --parked for this one and others",
			"tenant", r.Tenant, "kind", string(r.Kind), "reason", reason)
	}
}

// settlePatience bounds the last attempt to take note of what is sent.
const settlePatience = 2 * time.Second

// mostAgain is how many of the outcomes that PostgreSQL has refused a turn tries again:
// finding out which of them it still refuses takes two transactions for each.
const mostAgain = 50

// divide sorts what is unsettled: what was never refused, what was and is due again (the
// longest due first), and the rest.
func (s *Sender) divide(now time.Time) (fresh, again, later []outcome) {
	slices.SortStableFunc(s.unsettled, func(a, b outcome) int { return a.due.Compare(b.due) })
	for _, o := range s.unsettled {
		switch {
		case o.refusals == 0:
			fresh = append(fresh, o)
		case len(again) < mostAgain && !o.due.After(now):
			again = append(again, o)
		default:
			later = append(later, o)
		}
	}
	return fresh, again, later
}

// settle writes down what has become of rows.
func (s *Sender) settle(ctx context.Context, db database) error {
	if len(s.unsettled) == 0 {
		return nil
	}
	if ctx.Err() != nil { // the last chance
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), settlePatience)
		defer cancel()
		ctx = bounded
	}
	fresh, again, later := s.divide(time.Now())
	s.unsettled = later
	var refused, failed error
	for _, list := range [][]outcome{fresh, again} {
		left, first, err := settle(ctx, db, list)
		s.metrics.settled(list, left)
		for i := range left {
			if o := &left[i]; o.refusals > 0 {
				o.due = time.Now().Add(s.delay(o.refusals - 1))
			}
		}
		s.unsettled = append(s.unsettled, left...)
		refused, failed = cmp.Or(refused, first), cmp.Or(failed, err)
	}
	if now := time.Now(); refused != nil && now.Sub(s.refused) > 10*time.Second {
		s.refused = now
		s.log.Warn("what has become of messages to devices cannot be written down; their devices get nothing more meanwhile", "error", refused)
	}
	return failed
}
