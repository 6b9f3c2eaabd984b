package bridge

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// wire is one connection, which knows enough of PostgreSQL's protocol to tell when
// nothing is outstanding, and to set the clock before a transaction.
type wire struct {
	link *link
	real net.Conn

	// Of whoever reads and writes, one goroutine at a time.
	out         []byte // written and not sent
	buf         []byte
	raw         []byte          // received, no whole message yet
	in          []byte          // for the reader
	begun       bool            // the start-up message was sent
	ready       bool            // the session has begun; that takes PostgreSQL a while
	outstanding int             // ReadyForQuery that are to come
	hidden      bool            // the next one answers a statement of ours
	fresh       bool            // something was sent since the last answer
	prepared    map[string]bool // statements by name: whether they read facts
	facts       bool            // what is under way does

	mu       sync.Mutex
	open     bool      // within a transaction
	copying  bool      // within a COPY, whose reader pgx has hold a mutex: it must not wait for the bubble
	idle     bool      // its session asks for an end when idle
	last     time.Time // when something was sent
	expired  bool
	deadline chan struct{} // closed when expired
	timer    *time.Timer
	closed   chan struct{}
	ended    bool
}

func (w *wire) Write(p []byte) (int, error) {
	if w.isEnded() {
		return 0, net.ErrClosed
	}
	w.mu.Lock()
	if !w.copying && bytes.Contains(p, []byte(" FROM STDIN ")) {
		w.copying = true
		w.outstanding += requests(p)
	}
	copying := w.copying
	w.mu.Unlock()
	if copying || w.begun && len(p) > 0 && p[0] == 'X' { // nothing is read after that
		return w.real.Write(p)
	}
	w.out = append(w.out, p...)
	return len(p), nil
}

func (w *wire) Read(p []byte) (int, error) {
	for len(w.in) == 0 {
		if err := w.turn(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.in)
	w.in = w.in[n:]
	return n, nil
}

// turn sends what is to be sent, and receives something.
func (w *wire) turn() error {
	switch {
	case len(w.out) > 0:
		w.look()
		if err := w.travel(); err != nil {
			return err
		}
		if err := w.flush(); err != nil {
			return err
		}
	case w.begun && w.outstanding == 0:
		return w.listen()
	}
	if err := w.receive(); err != nil {
		return err
	}
	if w.fresh && len(w.in) > 0 {
		w.fresh = false
		return w.travel()
	}
	return nil
}

// travel is what one way takes: some time, and for as long as the link is down.
func (w *wire) travel() error {
	w.link.mu.Lock()
	most := w.link.slow
	w.link.mu.Unlock()
	if err := w.pause(w.link.draw(most + 1)); err != nil {
		return err
	}
	for {
		w.link.mu.Lock()
		down, dead, changed := w.link.down || w.link.deaf && w.facts, w.link.dead, w.link.changed
		w.link.mu.Unlock()
		switch {
		case dead:
			return errLinkDead
		case !down:
			return w.status()
		}
		if err := w.wait(changed); err != nil {
			return err
		}
	}
}

// pause waits, unless the connection ends or its deadline comes before.
func (w *wire) pause(d time.Duration) error {
	if d <= 0 {
		return w.status()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	w.mu.Lock()
	deadline := w.deadline
	w.mu.Unlock()
	select {
	case <-timer.C:
	case <-deadline:
	case <-w.closed:
	}
	return w.status()
}

func (w *wire) wait(c <-chan struct{}) error {
	w.mu.Lock()
	deadline := w.deadline
	w.mu.Unlock()
	select {
	case <-c:
	case <-deadline:
	case <-w.closed:
	}
	return w.status()
}

func (w *wire) status() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ended:
		return net.ErrClosed
	case w.expired:
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (w *wire) isEnded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

// flush sends what was written, and the time before it where a transaction begins.
func (w *wire) flush() error {
	out := w.out
	w.out = nil
	w.fresh = true
	now := time.Now()
	w.mu.Lock()
	w.last = now
	w.idle = w.idle || bytes.Contains(out, []byte("idle_session_timeout"))
	begins := w.begun && w.outstanding == 0 && !w.open
	w.mu.Unlock()
	if begins {
		set := "SET sim.now = '" + now.UTC().Format("2006-01-02 15:04:05.999999-07") + "'"
		_, err := w.real.Write(append(simQuery(set), out...))
		w.hidden = true
		w.outstanding += 1 + requests(out)
		return err
	}
	if !w.begun {
		w.begun = true
		w.outstanding = 1
	} else {
		w.outstanding += requests(out)
	}
	_, err := w.real.Write(out)
	return err
}

// look finds out whether what is to be sent reads facts.
func (w *wire) look() {
	w.facts = false
	if w.prepared == nil {
		w.prepared = make(map[string]bool)
	}
	for out := w.out; w.begun && len(out) >= 5; {
		size := min(1+int(binary.BigEndian.Uint32(out[1:5])), len(out))
		parts := bytes.SplitN(out[5:size], []byte{0}, 3)
		switch {
		case out[0] == 'P' && len(parts) > 1:
			w.prepared[string(parts[0])] = bytes.Contains(parts[1], []byte("crossfade_epoch")) && bytes.Contains(parts[1], []byte("s.changed_by"))
		case out[0] == 'B' && len(parts) > 1:
			w.facts = w.facts || w.prepared[string(parts[1])]
		}
		out = out[size:]
	}
}

func simQuery(sql string) []byte {
	m := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(4+len(sql)+1))
	return append(append(m, sql...), 0)
}

// requests counts the messages that a ReadyForQuery answers.
func requests(out []byte) (n int) {
	for len(out) >= 5 {
		if out[0] == 'Q' || out[0] == 'S' {
			n++
		}
		out = out[min(1+int(binary.BigEndian.Uint32(out[1:5])), len(out)):]
	}
	return n
}

// listen waits until something may have been notified and has had time to arrive.
func (w *wire) listen() error {
	for len(w.in) == 0 {
		if err := w.wait(w.link.hub.next()); err != nil {
			return err
		}
		if err := w.pause(w.link.draw(40 * time.Millisecond)); err != nil {
			return err
		}
		if err := w.travel(); err != nil {
			return err
		}
		if err := w.glance(); err != nil {
			return err
		}
	}
	return nil
}

// patience is how long PostgreSQL has, in the world's time, until the bubble's goes on:
// it may be waiting for a lock that somebody holds who is waiting for the bubble.
const patience = 20 * time.Millisecond

// receive takes in some messages.
func (w *wire) receive() error {
	behind := patience
	for tries := 0; len(w.in) == 0; tries++ {
		n, err := w.read(patience)
		w.mu.Lock()
		copying := w.copying
		w.mu.Unlock()
		switch {
		case n > 0 || (copying || !w.ready && tries < 50) && errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
		if err := w.pause(behind); err != nil {
			return err
		}
		behind = min(2*behind, 500*time.Millisecond)
	}
	return nil
}

// read takes in what comes within a while, in the world's time: deadlines of real
// connections count from now, whatever time it is.
func (w *wire) read(within time.Duration) (int, error) {
	if w.buf == nil {
		w.buf = make([]byte, 16<<10)
	}
	_ = w.real.SetReadDeadline(time.Now().Add(within))
	n, err := w.real.Read(w.buf)
	w.raw = append(w.raw, w.buf[:n]...)
	w.sort()
	return n, err
}

// glance takes in what has come, without waiting.
func (w *wire) glance() error {
	_ = w.real.SetReadDeadline(time.Time{})
	raw, err := w.real.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, failed = syscall.Read(int(fd), buf)
		return true
	})
	switch {
	case err != nil:
		return err
	case failed == syscall.EAGAIN || failed == syscall.EINTR:
		return nil
	case failed != nil || n == 0:
		return cmp.Or(failed, io.EOF)
	}
	w.raw = append(w.raw, buf[:n]...)
	w.sort()
	return nil
}

// sort gives whole messages to the reader, but those that answer us.
func (w *wire) sort() {
	for len(w.raw) >= 5 {
		size := 1 + int(binary.BigEndian.Uint32(w.raw[1:5]))
		if len(w.raw) < size {
			return
		}
		m := w.raw[:size]
		w.raw = w.raw[size:]
		ours := w.hidden && (m[0] == 'C' || m[0] == 'I' || m[0] == 'Z')
		if m[0] == 'E' && w.hidden {
			panic(fmt.Sprintf("the clock cannot be set: %q", m))
		}
		if m[0] == 'Z' {
			w.ready = true
			w.outstanding--
			w.hidden = false
			w.mu.Lock()
			w.open, w.copying = m[5] != 'I', false
			w.mu.Unlock()
			if !ours {
				w.link.hub.ring() // it may have committed something that notifies
			}
		}
		if !ours {
			w.in = append(w.in, m...)
		}
	}
}

func (w *wire) Close() error {
	w.mu.Lock()
	if w.ended {
		w.mu.Unlock()
		return nil
	}
	w.ended = true
	close(w.closed)
	if w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Unlock()
	w.link.mu.Lock()
	delete(w.link.wires, w)
	w.link.mu.Unlock()
	return w.real.Close()
}

func (w *wire) SetDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	if w.expired {
		w.expired, w.deadline = false, make(chan struct{})
	}
	switch d := time.Until(t); {
	case t.IsZero():
	case d <= 0:
		w.expire()
	default:
		w.timer = time.AfterFunc(d, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.expire()
		})
	}
	return nil
}

func (w *wire) expire() {
	if !w.expired {
		w.expired = true
		close(w.deadline)
	}
}

func (w *wire) SetReadDeadline(t time.Time) error  { return w.SetDeadline(t) }
func (w *wire) SetWriteDeadline(t time.Time) error { return nil }
func (w *wire) LocalAddr() net.Addr                { return w.real.LocalAddr() }
func (w *wire) RemoteAddr() net.Addr               { return w.real.RemoteAddr() }
