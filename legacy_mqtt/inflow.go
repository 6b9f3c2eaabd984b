package legacy_mqtt

import "sync"

// inflow bounds what is read from a connection and not handed over yet. paho reads on
// while its handler waits, up to the Receive Maximum: of large messages that is any
// amount of memory. So reading itself has to wait.
type inflow struct {
	// mayRead reports whether more may be read while packets of so many bytes are
	// queued between reading and handler.
	mayRead func(queued int64) bool
	taken   chan struct{} // the handler has taken something

	mu     sync.Mutex
	frame  frame
	sizes  []int64 // of the PUBLISH packets that are queued, in their order
	queued int64   // their sum
}

func newInflow(mayRead func(queued int64) bool) *inflow {
	return &inflow{mayRead: mayRead, taken: make(chan struct{}, 1)}
}

// await waits until the next packet may be read, or the connection is closed. A packet
// that has begun is read to its end. With nothing queued more is always read, so it is
// the handler that ends a wait: once there is room it takes what is queued.
func (f *inflow) await(closing <-chan struct{}) {
	for !f.open() {
		select {
		case <-f.taken:
		case <-closing:
			return
		}
	}
}

func (f *inflow) open() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frame.part != atStart || f.queued == 0 || f.mayRead(f.queued)
}

// read notes bytes that came.
func (f *inflow) read(p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(p) > 0 {
		n, ended := f.frame.next(p)
		p = p[n:]
		if ended && f.frame.publish {
			f.sizes = append(f.sizes, f.frame.size)
			f.queued += f.frame.size
		}
	}
}

// unhandled is how many bytes were read and not handed over.
func (f *inflow) unhandled() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.queued
}

// handedOver notes that the handler has the oldest of what is queued.
func (f *inflow) handedOver() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.sizes) > 0 {
		f.queued -= f.sizes[0]
		f.sizes = f.sizes[1:]
	}
	wake(f.taken)
}

// frame is where a stream of MQTT packets is in one of them (MQTT section 2.1).
type frame struct {
	part    framePart
	publish bool
	digits  int   // of the length, so far
	size    int64 // of what follows the length, in bytes; so far, while in the length
	left    int64 // of that
}

type framePart int

const (
	atStart framePart = iota
	inLength
	inBody
)

// typePublish is the type in the first byte of a PUBLISH packet.
const typePublish = 3

// next takes n of the bytes of p, which is not empty. ended: with them a packet is over.
func (f *frame) next(p []byte) (n int, ended bool) {
	n = 1
	switch f.part {
	case atStart:
		*f = frame{part: inLength, publish: p[0]>>4 == typePublish}
		return n, false
	case inLength:
		f.size |= int64(p[0]&0x7f) << (7 * f.digits)
		if f.digits++; p[0]&0x80 != 0 && f.digits < 4 {
			return n, false
		}
		f.part, f.left = inBody, f.size
	case inBody:
		n = int(min(int64(len(p)), f.left))
		f.left -= int64(n)
	}
	if f.left > 0 {
		return n, false
	}
	f.part = atStart
	return n, true
}
