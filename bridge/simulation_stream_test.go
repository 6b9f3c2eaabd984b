package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-io/crossfade/internal/backoff"
	"github.com/crossfade-io/crossfade/jetstream"
	"github.com/crossfade-io/crossfade/pipeline"
)

// simAckWait is after how long what is not acknowledged is delivered again.
const simAckWait = 30 * time.Second

// simStreams are the three streams, each with the consumer that all instances share.
type simStreams struct {
	w    *simWorld
	mu   sync.Mutex
	list []*simStream
}

type simStream struct {
	name     string // what its subjects begin with
	consumer string
	stored   []*simStored
	floor    int           // all before it is acknowledged
	changed  chan struct{} // closed when there may be something to deliver
}

type simStored struct {
	m        *simMessage
	subject  string
	body     []byte
	sequence uint64
	at       time.Time
	due      time.Time // from when on it may be delivered
	acked    bool
}

var simSubjects = map[string]int{pipeline.SentinelTelemetry: 0, pipeline.SentinelShadow: 1, pipeline.SentinelCommands: 2}

func newSimStreams(w *simWorld) *simStreams {
	s := &simStreams{w: w}
	for _, st := range []simStream{
		{name: "telemetry", consumer: jetstream.ConsumerTelemetry},
		{name: "shadow", consumer: jetstream.ConsumerShadow},
		{name: "commands", consumer: jetstream.ConsumerCommands},
	} {
		st.changed = make(chan struct{})
		s.list = append(s.list, &st)
	}
	return s
}

// store keeps a message in an envelope.
func (s *simStreams) store(m *simMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := strings.SplitN(m.topic, "/", 5)
	st := s.list[simSubjects[parts[4]]]
	st.stored = append(st.stored, &simStored{
		m: m, subject: st.name + "." + m.tenant, sequence: uint64(len(st.stored) + 1), at: time.Now(),
		body: fmt.Appendf(nil, `{"topic":%q,"tenant_id":%q,"device_id":%q,"payload":%s,"ts":%d}`, m.topic, m.tenant, parts[3], m.body, time.Now().UnixMilli()),
	})
	s.w.trail(m, "is stored in the stream")
	st.stir()
}

func (st *simStream) stir() {
	close(st.changed)
	st.changed = make(chan struct{})
}

// take returns what is to be delivered next, or when to look again.
func (s *simStreams) take(st *simStream) (next *simStored, changed <-chan struct{}, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, e := range st.stored[st.floor:] {
		switch {
		case e.acked:
		case !e.due.After(now):
			e.due = now.Add(simAckWait)
			return e, nil, due
		case due.IsZero() || e.due.Before(due):
			due = e.due
		}
	}
	return nil, st.changed, due
}

func (s *simStreams) ack(st *simStream, e *simStored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.acked = true
	for st.floor < len(st.stored) && st.stored[st.floor].acked {
		st.floor++
	}
	s.w.trail(e.m, "its JetStream copy is gone")
}

func (s *simStreams) again(st *simStream, e *simStored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.due = time.Time{}
	st.stir()
}

func (s *simStreams) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.list {
		if st.floor < len(st.stored) {
			return false
		}
	}
	return true
}

// settled is what the real connection offers of that name, by an instance's port.
func (p *simPort) settled(_ context.Context, consumer string, marks []jetstream.Mark) ([]jetstream.Progress, error) {
	if !p.up() {
		return nil, errors.New("no connection to NATS")
	}
	s := p.w.streams
	s.mu.Lock()
	defer s.mu.Unlock()
	known := make([]jetstream.Progress, len(marks))
	for _, st := range s.list {
		for i, m := range marks {
			if st.consumer == consumer && uint64(st.floor) >= m.Sequence {
				known[i] = jetstream.MarkSettled
			}
		}
	}
	return known, nil
}

// simPuller is an instance's JetStream source.
type simPuller struct{ port *simPort }

func (p *simPuller) Health() error               { return nil }
func (p *simPuller) Close(context.Context) error { return nil }

func (p *simPuller) Run(ctx context.Context, deliver deliverFunc) error {
	var streams sync.WaitGroup
	for _, st := range p.port.w.streams.list {
		streams.Go(func() { p.pull(ctx, st, deliver) })
	}
	streams.Wait()
	return nil
}

func (p *simPuller) pull(ctx context.Context, st *simStream, deliver deliverFunc) {
	for ctx.Err() == nil {
		backoff.Sleep(ctx, p.port.rand(20*time.Millisecond)) // so that each gets some
		if !p.port.travel(ctx.Done()) {
			return
		}
		e, changed, due := p.port.w.streams.take(st)
		if e == nil {
			var timer <-chan time.Time
			if !due.IsZero() {
				timer = time.After(time.Until(due))
			}
			select {
			case <-ctx.Done():
			case <-changed:
			case <-timer:
			}
			continue
		}
		if !p.port.travel(ctx.Done()) {
			return
		}
		deliver(pipeline.Delivery{Path: pipeline.PathJetStream, Subject: e.subject, Body: e.body, Receipt: &simSlip{p.port, st, e}})
	}
}

// simSlip is the receipt of a JetStream copy.
type simSlip struct {
	port *simPort
	st   *simStream
	e    *simStored
}

func (r *simSlip) Occurred() time.Time { return r.e.at }

func (r *simSlip) Mark() (jetstream.Mark, bool) {
	return jetstream.Mark{Consumer: r.st.consumer, Sequence: r.e.sequence}, true
}

func (r *simSlip) Ack() error {
	r.port.w.trail(r.e.m, "%s acknowledges its JetStream copy", r.port.name)
	return r.answer(r.port.w.streams.ack)
}

func (r *simSlip) Release() error { return r.answer(r.port.w.streams.again) }

// answer gets lost where the instance is cut off, or gone by the time it arrives.
func (r *simSlip) answer(do func(*simStream, *simStored)) error {
	if !r.port.up() {
		return errSimGone
	}
	time.AfterFunc(r.port.rand(5*time.Millisecond), func() {
		if r.port.up() {
			do(r.st, r.e)
		}
	})
	return nil
}

// simMirror copies what is published by MQTT into the streams, in order and in its own time.
type simMirror struct {
	w     *simWorld
	mu    sync.Mutex
	queue []*simMessage
	wake  chan struct{}

	stopped bool
	delay   time.Duration // the most that one message takes
	lose    int           // so many of the next messages
}

func (m *simMirror) take(msg *simMessage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.w.writesBoth(msg.tenant) && msg.n != 0 {
		return
	}
	if m.lose > 0 && msg.n != 0 {
		m.lose--
		m.w.only(msg, pipeline.PathMQTT)
		return
	}
	m.queue = append(m.queue, msg)
	if m.w.rules.overtaking && msg.n == 0 { // ahead of everything else
		m.queue = append([]*simMessage{msg}, m.queue[:len(m.queue)-1]...)
	}
	simSignal(m.wake)
}

func (m *simMirror) set(f func(*simMirror)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m)
	simSignal(m.wake)
}

func (m *simMirror) empty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue) == 0
}

func (m *simMirror) run(ctx context.Context) {
	for ctx.Err() == nil {
		m.mu.Lock()
		ready, delay := len(m.queue) > 0 && !m.stopped, m.w.draw(m.delay)
		m.mu.Unlock()
		if !ready {
			select {
			case <-ctx.Done():
			case <-m.wake:
			}
			continue
		}
		backoff.Sleep(ctx, delay)
		m.mu.Lock()
		if m.stopped || len(m.queue) == 0 {
			m.mu.Unlock()
			continue
		}
		msg := m.queue[0]
		m.w.streams.store(msg)
		if m.w.draw(20) == 0 { // unsure whether it was stored, it tries again
			m.w.streams.store(msg)
		}
		m.queue = m.queue[1:]
		m.mu.Unlock()
	}
}
