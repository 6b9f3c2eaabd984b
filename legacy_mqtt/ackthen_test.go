package legacy_mqtt_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-io/crossfade/internal/devstack"

	"github.com/crossfade-io/crossfade/legacy_mqtt"
	"github.com/crossfade-io/crossfade/pipeline"
)

func ackThen(t testing.TB, d pipeline.Delivery, then func()) {
	t.Helper()
	must(t, d.Receipt.(pipeline.OrderedReceipt).AckThen(then))
}

// flag is set by a callback.
type flag chan struct{}

func (f flag) set() { close(f) }

func (f flag) up() bool {
	select {
	case <-f:
		return true
	default:
		return false
	}
}

// TestAckThen: it is told once everything before is settled, of either QoS, and not
// before; what comes behind does not matter.
func TestAckThen(t *testing.T) {
	e := newEnv(t)
	r := run(t, e.config(t, 100))
	r.awaitHealthy(t)
	e.Publish(t, "alone")
	alone := make(flag)
	ackThen(t, r.next(t), alone.set)
	if !alone.up() {
		t.Fatal("not told although nothing came before")
	}
	e.Publish(t, "a")
	first := r.next(t)
	publish(t, e.broker, 0, deviceTopic, nil, "lowly")
	lowly := r.next(t)
	e.Publish(t, "b")
	second := r.next(t)
	e.Publish(t, "marked")
	marked := r.next(t)
	e.Publish(t, "behind")
	r.next(t) // in hand until the end

	told := make(flag)
	ackThen(t, marked, told.set)
	for _, d := range []pipeline.Delivery{second, first} {
		if told.up() {
			t.Fatal("told before all before it is settled")
		}
		must(t, d.Receipt.Ack())
	}
	if told.up() {
		t.Fatal("told although a QoS 0 message before it is in hand")
	}
	must(t, lowly.Receipt.Release())
	if !told.up() {
		t.Fatal("not told although everything before it is settled")
	}
	if marked.Receipt.Ack() == nil || marked.Receipt.(pipeline.OrderedReceipt).AckThen(func() {}) == nil {
		t.Error("settled twice")
	}

	publish(t, e.broker, 0, deviceTopic, nil, "lowly sentinel")
	d := r.next(t)
	if d.Receipt.(pipeline.OrderedReceipt).AckThen(func() { t.Error("a QoS 0 message overtakes others, and proves nothing") }) == nil {
		t.Error("a QoS 0 message is taken for one that has its place among the others")
	}
}

// TestAckThenOnALostConnection: it is never told; the message comes again and is then,
// after those before it.
func TestAckThenOnALostConnection(t *testing.T) {
	for _, how := range []string{"cut", "released"} {
		t.Run(how, func(t *testing.T) {
			e := newEnv(t)
			r := run(t, e.config(t, 100))
			r.awaitHealthy(t)
			e.Publish(t, "a")
			first := r.next(t)
			e.Publish(t, "marked")
			marked, never := r.next(t), make(flag)
			ackThen(t, marked, never.set)
			if how == "cut" {
				e.Cut(t)
				devstack.Await(t, "the loss to be noticed", func() bool { return r.Health() != nil })
				if err := first.Receipt.Ack(); !errors.Is(err, legacy_mqtt.ErrConnectionGone) {
					t.Errorf("Ack = %v", err)
				}
				e.Restore(t)
			} else {
				must(t, first.Receipt.Release())
			}
			first, marked = r.next(t), r.next(t)
			if idOf(first) != "a" || idOf(marked) != "marked" {
				t.Fatalf("%s, %s came again, want a, marked", idOf(first), idOf(marked))
			}
			told := make(flag)
			ackThen(t, marked, told.set)
			if told.up() {
				t.Error("told before all before it is settled")
			}
			must(t, first.Receipt.Ack())
			if !told.up() || never.up() {
				t.Errorf("told: on the new connection %v, on the old one %v", told.up(), never.up())
			}
		})
	}
}

// TestSentinelProvesEverySession: members of a group settle what they are given in any
// order, lose their connections, and the broker is restarted meanwhile. Whenever a
// sentinel has come out of every session, all that was published before it is settled.
func TestSentinelProvesEverySession(t *testing.T) {
	e := newEnv(t)
	const members, rounds, each = 3, 30, 200
	w := &witness{settled: make(map[string]bool), out: make(map[string]map[int]bool)}
	var sources []*running
	for i := range members {
		cfg := e.config(t, 60) // small, so that the broker queues
		cfg.Group, cfg.ClientID = "ingest", fmt.Sprintf("member-%d", i)
		sources = append(sources, run(t, cfg))
		sources[i].awaitHealthy(t)
	}
	var working sync.WaitGroup
	quit := make(chan struct{})
	defer working.Wait()
	defer close(quit)
	for i, s := range sources {
		working.Go(func() { w.work(i, s, quit) })
	}

	cfg := e.configFor(t, e.broker.URL(), 1)
	publisher := newPublisher(t, cfg)
	publish := func(round int) {
		messages := make([]legacy_mqtt.Message, 0, each+1)
		for i := range each {
			messages = append(messages, legacy_mqtt.Message{Topic: deviceTopic, Payload: fmt.Appendf(nil, `{"id":"%d"}`, round*each+i)})
		}
		messages = append(messages, legacy_mqtt.Message{
			Topic: pipeline.SentinelTopic("t1", pipeline.SentinelTelemetry), Payload: pipeline.SentinelPayload(fmt.Sprintf("n%d", round))})
		for _, err := range publisher.PublishAll(bounded(t), messages) {
			must(t, err)
		}
	}
	for round := range rounds {
		publish(round)
		var connections []uint64
		for _, s := range sources {
			connections = append(connections, s.Stats().Connections)
		}
		switch {
		case round == rounds/2:
			e.Stop(t)
			e.Start(t)
			// Mosquitto 2.0.11 forgets shared subscriptions: what is published before the
			// members are back goes to nobody.
			for i, s := range sources {
				devstack.Await(t, "all members to be back", func() bool { return s.Stats().Connections > connections[i] && s.Health() == nil })
			}
		case round%7 == 3:
			e.Cut(t)
			e.Restore(t)
		}
	}
	for round := range rounds {
		nonce := fmt.Sprintf("n%d", round)
		devstack.Await(t, nonce+" to come out of every session", func() bool { return w.outOf(nonce) == members })
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range rounds * each {
		if !w.settled[fmt.Sprint(i)] {
			t.Fatalf("message %d was never settled", i)
		}
	}
	for _, wrong := range w.wrong {
		t.Error(wrong)
	}
	t.Logf("%d sentinels came twice, %d acknowledgements came too late", w.twice, w.late)
}

// witness is what becomes of messages and sentinels, over all sessions.
type witness struct {
	mu      sync.Mutex
	settled map[string]bool
	out     map[string]map[int]bool // by nonce: of which sessions
	wrong   []string
	twice   int
	late    int
}

// work settles what a member is given, some at a time and in any order.
func (w *witness) work(member int, r *running, quit <-chan struct{}) {
	var hand []pipeline.Delivery
	pause := time.NewTicker(2 * time.Millisecond)
	defer pause.Stop()
	for {
		select {
		case <-quit:
			return
		case d := <-r.deliveries:
			if s, ok := pipeline.SentinelOf(&d); ok {
				// An error means that it comes again.
				_ = d.Receipt.(pipeline.OrderedReceipt).AckThen(func() { w.came(s.Nonce, member) })
				continue
			}
			hand = append(hand, d)
		case <-pause.C:
			rand.Shuffle(len(hand), func(i, j int) { hand[i], hand[j] = hand[j], hand[i] })
			for _, d := range hand[len(hand)/2:] {
				w.mu.Lock()
				w.settled[idOf(d)] = true
				w.mu.Unlock()
				if err := d.Receipt.Ack(); err != nil {
					w.mu.Lock()
					w.late++
					w.mu.Unlock()
				}
			}
			hand = hand[:len(hand)/2]
		}
	}
}

// came checks, when a sentinel has come out of the last session, what it proves.
func (w *witness) came(nonce string, member int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out[nonce] == nil {
		w.out[nonce] = make(map[int]bool)
	}
	if w.out[nonce][member] {
		w.twice++
		return
	}
	w.out[nonce][member] = true
	if len(w.out[nonce]) < 3 {
		return
	}
	var round int
	_, _ = fmt.Sscanf(nonce, "n%d", &round)
	for i := range (round + 1) * 200 {
		if !w.settled[fmt.Sprint(i)] {
			w.wrong = append(w.wrong, fmt.Sprintf("%s came out of every session while message %d was not settled", nonce, i))
			return
		}
	}
}

func (w *witness) outOf(nonce string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.out[nonce])
}
