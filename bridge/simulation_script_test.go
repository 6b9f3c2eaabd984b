package bridge

import (
	"time"

	"github.com/crossfade-io/crossfade/bridge/stage"
)

// happening is a kind of event of the script; the greater its weight, the oftener.
type happening struct {
	weight int
	do     func(*simWorld)
}

var happenings = []happening{
	{45, (*simWorld).burst},
	{25, (*simWorld).flip},
	{14, (*simWorld).ambush},
	{6, func(w *simWorld) { w.kill(w.someone(), w.upTo(60*time.Second)) }},
	{4, func(w *simWorld) { w.kill(w.leader(), w.upTo(20*time.Second)) }},
	{3, func(w *simWorld) { w.stop(w.someone()) }},
	{4, func(w *simWorld) { w.cutOff(w.someone(), true, true, w.upTo(60*time.Second)) }},
	{4, func(w *simWorld) { w.cutOff(w.someone(), true, false, w.upTo(40*time.Second)) }},
	{3, func(w *simWorld) { w.cutOff(w.leader(), true, false, w.upTo(20*time.Second)) }},
	{3, func(w *simWorld) { w.cutOff(w.someone(), false, true, w.upTo(40*time.Second)) }},
	{4, func(w *simWorld) { w.slowDown(w.nodes[w.someone()]) }},
	{5, (*simWorld).loseConnection},
	{3, func(w *simWorld) { w.stopMirror(w.upTo(90 * time.Second)) }},
	{3, (*simWorld).delayMirror},
	{1, func(w *simWorld) { w.mirror.set(func(m *simMirror) { m.lose++ }) }},
	{1, (*simWorld).flagsAway},
}

// play makes events happen for a while.
func (w *simWorld) play(length time.Duration) {
	total := 0
	for _, h := range happenings {
		total += h.weight
	}
	for end := time.Now().Add(length); time.Now().Before(end); {
		w.pass(time.Now().Add(w.upTo(5 * time.Second)))
		pick := w.script.IntN(total)
		for _, h := range happenings {
			if pick -= h.weight; pick < 0 {
				h.do(w)
				break
			}
		}
	}
}

func (w *simWorld) upTo(most time.Duration) time.Duration {
	return time.Duration(w.script.Int64N(int64(most)))
}

// someone is an instance that runs, or "".
func (w *simWorld) someone() string {
	name := w.names[w.script.IntN(len(w.names))]
	if w.nodes[name] == nil {
		return ""
	}
	return name
}

func (w *simWorld) burst() {
	for range 1 + w.script.IntN(4) {
		w.publish(w.tenants[w.script.IntN(len(w.tenants))])
	}
}

// flip changes a wish, with messages before and after.
func (w *simWorld) flip() {
	tenants := []string{w.tenants[w.script.IntN(len(w.tenants))]}
	if w.script.IntN(5) == 0 {
		tenants = w.tenants
	}
	to := stage.MQTT
	switch w.script.IntN(6) {
	case 0:
		to = stage.All()[w.script.IntN(4)]
	case 1, 2, 3:
		to = stage.JetStream
	}
	for _, tenant := range tenants {
		w.publish(tenant)
		w.wish(tenant, to)
		w.later(w.upTo(2*time.Second), func() { w.publish(tenant) })
	}
}

// ambush has a tenant go from one outer stage to the other while a process that has
// copies of its messages is away, and many messages come when that one is back.
func (w *simWorld) ambush() {
	tenant, name := w.tenants[w.script.IntN(len(w.tenants))], w.someone()
	away := 45*time.Second + w.upTo(60*time.Second)
	to := stage.JetStream
	if w.flags.wish(tenant) == stage.JetStream {
		to = stage.MQTT
	}
	switch w.script.IntN(5) {
	case 0:
		w.cutOff(name, false, true, away)
	case 1:
		w.cutOff(name, true, false, away)
	case 2:
		w.cutOff(name, true, true, away)
	case 3:
		w.kill(name, away)
	default:
		w.stopMirror(away)
	}
	for range 6 {
		w.later(w.upTo(500*time.Millisecond), func() { w.publish(tenant) })
	}
	w.later(500*time.Millisecond, func() { w.wish(tenant, to) })
	w.later(w.upTo(away), func() { w.publish(tenant) })
	for range 12 {
		w.later(away+w.upTo(5*time.Second), func() { w.publish(tenant) })
	}
	if n := w.nodes[name]; n != nil && w.script.IntN(2) == 0 {
		w.later(away-time.Millisecond, func() { w.slowDown(n) })
	}
}

func (w *simWorld) wish(tenant string, to stage.Stage) {
	w.tell("wish: %s to %s", tenant, to)
	w.flags.set(func(f *simFlags) { f.wishes[tenant] = to })
}

// kill ends an instance at once, and starts it again after a while.
func (w *simWorld) kill(name string, away time.Duration) {
	n := w.nodes[name]
	if n == nil {
		return
	}
	w.tell("%s is killed", name)
	n.kill()
	w.nodes[name] = nil
	w.later(away, func() { w.restart(name) })
}

func (w *simWorld) restart(name string) {
	w.tell("%s is started", name)
	w.nodes[name] = w.start(name)
}

// stop ends an instance in order, and starts it again after a while.
func (w *simWorld) stop(name string) {
	n := w.nodes[name]
	if n == nil {
		return
	}
	w.tell("%s is told to stop", name)
	w.nodes[name] = nil
	ended := make(chan struct{})
	w.dying.Go(func() {
		n.stop()
		w.tell("%s has stopped", name)
		close(ended)
	})
	var again func()
	again = func() {
		select {
		case <-ended:
			w.restart(name)
		default:
			w.later(time.Second, again)
		}
	}
	w.later(w.upTo(30*time.Second), again)
}

// unheard is after how long the broker ends the connection of a client that it does not hear of.
const unheard = 45 * time.Second

// cutOff takes PostgreSQL, the brokers, or both from an instance for a while. With both
// gone it is to all others as if it were frozen.
func (w *simWorld) cutOff(name string, postgres, brokers bool, length time.Duration) {
	n := w.nodes[name]
	if n == nil || n.cut {
		return
	}
	n.cut = true
	w.tell("%s is cut off for %.1fs (PostgreSQL %v, brokers %v)", name, length.Seconds(), postgres, brokers)
	if postgres {
		n.link.set(func(l *link) { l.down = true })
		for s := time.Second; s < length; s += time.Second {
			w.later(s, func() { n.link.reap(time.Now()) })
		}
	}
	if brokers {
		n.port.set(func(p *simPort) { p.down = true })
		if length > unheard {
			w.later(unheard, n.source.cut)
		}
	}
	w.later(length, func() {
		w.tell("%s is no longer cut off", name)
		n.cut = false
		n.link.set(func(l *link) { l.down = false })
		n.port.set(func(p *simPort) { p.down = false })
	})
}

// slowDown makes PostgreSQL slow for an instance.
func (w *simWorld) slowDown(n *simNode) {
	if n == nil {
		return
	}
	most, length := w.upTo(4*time.Second), w.upTo(30*time.Second)
	w.tell("PostgreSQL takes up to %.1fs for %s, for %.1fs", 2*most.Seconds(), n.name, length.Seconds())
	n.link.set(func(l *link) { l.slow = most })
	w.later(length, func() { n.link.set(func(l *link) { l.slow = usualDelay }) })
}

func (w *simWorld) loseConnection() {
	if n := w.nodes[w.someone()]; n != nil {
		w.tell("%s loses its MQTT connection", n.name)
		n.source.cut()
	}
}

func (w *simWorld) stopMirror(length time.Duration) {
	w.tell("the mirror stops for %.1fs", length.Seconds())
	w.mirror.set(func(m *simMirror) { m.stopped = true })
	w.later(length, func() {
		w.tell("the mirror goes on")
		w.mirror.set(func(m *simMirror) { m.stopped = false })
	})
}

func (w *simWorld) delayMirror() {
	most := w.upTo(4 * time.Second)
	w.tell("the mirror takes up to %.1fs for a message", most.Seconds())
	w.mirror.set(func(m *simMirror) { m.delay = most })
	w.later(w.upTo(30*time.Second), func() { w.mirror.set(func(m *simMirror) { m.delay = 50 * time.Millisecond }) })
}

func (w *simWorld) flagsAway() {
	w.tell("the flag service is away")
	w.flags.set(func(f *simFlags) { f.away = true })
	w.later(w.upTo(20*time.Second), func() { w.flags.set(func(f *simFlags) { f.away = false }) })
}

// settle mends everything and waits until all has come to rest; it returns what has
// not in ten minutes.
func (w *simWorld) settle() string {
	for len(w.agenda) > 0 {
		w.pass(time.Now().Add(time.Second))
	}
	w.tell("all is well from now on")
	left := ""
	for range 600 {
		time.Sleep(time.Second)
		if left = w.unfinished(); left == "" {
			break
		}
	}
	return left
}
