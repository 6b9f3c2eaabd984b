package fleet

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// publisher owns one connection and the devices that use it. Only its own
// goroutine touches it.
type publisher struct {
	fleet    *Fleet
	clientID string
	devices  []*sender
	turn     int
	interval time.Duration // between messages; 0 is without pause
	due      time.Time     // of the next new message

	flights []flight // by packet ID - 1; a free one has a nil sender
	free    []uint16 // packet IDs
	again   []flight // to be published again before anything new
	order   int64
	body    []byte
}

// sender is one device at work.
type sender struct {
	device Device
	record *deviceRecord
	topics [KindShadow + 1]string
	seq    int64
	shadow bool // a shadow report follows message seq
}

// flight is a message on its way. Its body is generated again when it has to
// be repeated.
type flight struct {
	*sender
	order int64
	seq   int64
	kind  Kind
	ts    time.Time
}

func (p *publisher) inflight() int { return len(p.flights) - len(p.free) }

// run publishes until intake ends, or until all devices are done, and then
// until all is acknowledged or work ends. Its error says that the broker
// refuses us for good; a lost connection is not an error.
func (p *publisher) run(intake, work context.Context) error {
	wait := backoffFloor
	for !p.idle(intake) && work.Err() == nil {
		// With nothing to repeat there is nothing to connect for once intake ends.
		dialing := intake
		if len(p.again) > 0 {
			dialing = work
		}
		l, err := p.fleet.endpoint.dial(dialing, p.clientID)
		var refused refusedError
		switch {
		case errors.As(err, &refused) && refused.final():
			return err
		case err != nil && dialing.Err() != nil:
			continue // we gave up, not the broker
		case err != nil:
			p.fleet.disconnected(p, err, false)
			select {
			case <-dialing.Done():
			case <-time.After(wait/2 + rand.N(wait)):
			}
			wait = min(wait*2, backoffCeiling)
			continue
		}
		wait = backoffFloor
		p.fleet.connected(p)
		err = p.serve(intake, work, l)
		p.fleet.disconnected(p, err, true)
	}
	return nil
}

// Reconnecting waits between these, half to one and a half times.
const (
	backoffFloor   = 100 * time.Millisecond
	backoffCeiling = 2 * time.Second
)

// serve uses one connection until it is lost, which is its error, or until
// there is nothing left to do.
func (p *publisher) serve(intake, work context.Context, l *link) error {
	p.resize(l.window)
	stop := context.AfterFunc(work, func() { _ = l.conn.Close() }) // also ends a blocked write
	defer stop()
	err := p.pump(intake, l)
	if err == nil {
		err = l.leave()
	}
	l.close()
	p.settle(l) // PUBACKs that came before the end still count
	p.recall()
	return err
}

// pump returns nil when there is nothing left to do.
func (p *publisher) pump(intake context.Context, l *link) error {
	ping := time.NewTicker(keepAlive / 2)
	defer ping.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	intakeDone := intake.Done()
	for {
		p.settle(l)
		pause, err := p.fill(intake, l)
		if err != nil {
			return err
		}
		if err := l.flush(); err != nil {
			return err
		}
		if p.inflight() == 0 && p.idle(intake) {
			return nil
		}
		var due <-chan time.Time
		if pause > 0 {
			timer.Reset(pause)
			due = timer.C
		}
		select {
		case a := <-l.acks:
			p.acked(a)
		case <-l.down:
			return l.err
		case <-ping.C:
			if err := l.ping(); err != nil {
				return err
			}
		case <-due:
		case <-intakeDone:
			intakeDone = nil
		}
	}
}

// idle says that there is nothing to publish, now or later.
func (p *publisher) idle(intake context.Context) bool {
	return len(p.again) == 0 && (intake.Err() != nil || p.exhausted())
}

// minPause bundles wake-ups at high rates; messages that fall due meanwhile
// leave together.
const minPause = 2 * time.Millisecond

// maxDebt is how much of the time lost to a broken connection or a slow broker
// is made up for, by publishing faster.
const maxDebt = time.Second

// fill publishes what is due as far as the window allows. It returns how long
// nothing is due; 0 when only a PUBACK or the end of intake can change anything.
func (p *publisher) fill(intake context.Context, l *link) (time.Duration, error) {
	for len(p.again) > 0 && len(p.free) > 0 {
		f := p.again[0]
		p.again = p.again[1:] // before send, which registers it in any case
		p.fleet.record.repeat()
		if err := p.send(l, f); err != nil {
			return 0, err
		}
	}
	if len(p.again) > 0 || intake.Err() != nil {
		return 0, nil
	}
	now := time.Now()
	if earliest := now.Add(-maxDebt); p.due.Before(earliest) {
		p.due = earliest
	}
	for len(p.free) > 0 && !p.due.After(now) {
		f, ok := p.next(now)
		if !ok {
			return 0, nil
		}
		p.due = p.due.Add(p.interval)
		f.record.attempt(f.seq, f.kind)
		if err := p.send(l, f); err != nil {
			return 0, err
		}
	}
	if len(p.free) == 0 {
		return 0, nil
	}
	return max(p.due.Sub(now), minPause), nil
}

// send publishes under a free packet ID. Even when it fails, the flight is
// registered: part of it may have reached the broker.
func (p *publisher) send(l *link, f flight) error {
	id := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.flights[id-1] = f
	p.body = AppendPayload(p.body[:0], f.device, f.seq, f.ts, f.kind)
	return l.publish(f.topics[f.kind], id, p.body)
}

// exhausted says that every device has sent PerDevice messages.
func (p *publisher) exhausted() bool {
	limit := p.fleet.cfg.PerDevice
	if limit == 0 {
		return false
	}
	return !slices.ContainsFunc(p.devices, func(s *sender) bool { return s.seq < limit || s.shadow })
}

// next is the next new message, devices taking turns; none when all are done.
func (p *publisher) next(now time.Time) (flight, bool) {
	limit := p.fleet.cfg.PerDevice
	for range p.devices {
		s := p.devices[p.turn]
		p.turn = (p.turn + 1) % len(p.devices)
		f := flight{sender: s, order: p.order, ts: now}
		switch {
		case s.shadow:
			s.shadow = false
			f.seq, f.kind = s.seq, KindShadow
		case limit == 0 || s.seq < limit:
			s.seq++
			f.seq, f.kind = s.seq, p.fleet.cfg.Shares.KindOf(s.device, s.seq)
			s.shadow = p.fleet.cfg.Shares.ReportsShadow(s.device, s.seq)
		default:
			continue
		}
		p.order++
		return f, true
	}
	return flight{}, false
}

// settle takes the acknowledgements that are there.
func (p *publisher) settle(l *link) {
	for {
		select {
		case a := <-l.acks:
			p.acked(a)
		default:
			return
		}
	}
}

func (p *publisher) acked(a puback) {
	if a.id == 0 || int(a.id) > len(p.flights) || p.flights[a.id-1].sender == nil {
		return // acknowledged twice: the first one counted
	}
	f := p.flights[a.id-1]
	p.flights[a.id-1] = flight{}
	p.free = append(p.free, a.id)
	switch {
	case a.reason == packets.PubackSuccess:
		f.record.ack(f.seq, f.kind, true)
	case a.reason == packets.PubackNoMatchingSubscribers:
		f.record.ack(f.seq, f.kind, false)
	default:
		f.record.refuse(f.seq, f.kind)
		p.fleet.refused(f, a.reason)
	}
}

// resize makes a window of n free packet IDs; nothing may be in flight.
func (p *publisher) resize(n int) {
	p.flights, p.free = make([]flight, n), make([]uint16, n)
	for i := range p.free {
		p.free[i] = uint16(n - i) // ascending from the end, where they are taken
	}
}

// recall makes everything in flight due to be published again, in its old order.
func (p *publisher) recall() {
	for i, f := range p.flights {
		if f.sender != nil {
			p.again = append(p.again, f)
			p.flights[i] = flight{}
		}
	}
	slices.SortFunc(p.again, func(a, b flight) int { return cmp.Compare(a.order, b.order) })
	p.resize(len(p.flights))
}
