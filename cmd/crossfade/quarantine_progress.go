package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// Time between two lines of progress: one that is written over, and one that stays.
const (
	progressTick = 200 * time.Millisecond
	progressLine = 5 * time.Second
)

// progress tells on standard error how far a long walk is.
type progress struct {
	out         io.Writer
	terminal    bool // out is one: the line is written over
	verb        string
	total, done int64
	start, last time.Time
	now         func() time.Time
}

func newProgress(c *console, verb string, total int64) *progress {
	p := &progress{out: c.err, verb: verb, total: total, now: time.Now}
	if f, ok := c.err.(*os.File); ok {
		p.terminal = term.IsTerminal(int(f.Fd()))
	}
	p.start = p.now()
	p.last = p.start
	return p
}

func (p *progress) add(n int64) {
	p.done += n
	now, tick := p.now(), progressLine
	if p.terminal {
		tick = progressTick
	}
	if now.Sub(p.last) < tick {
		return
	}
	p.last = now
	line := p.line(now.Sub(p.start))
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
	} else {
		fmt.Fprintln(p.out, line)
	}
}

func (p *progress) line(spent time.Duration) string {
	rate := float64(p.done) / spent.Seconds()
	left := "-"
	if rate > 0 {
		left = time.Duration(float64(max(p.total-p.done, 0)) / rate * float64(time.Second)).Round(time.Second).String()
	}
	return fmt.Sprintf("%d of %d %s, %.0f/s, %s left", p.done, p.total, p.verb, rate, left)
}

// end takes the line off the terminal.
func (p *progress) end() {
	if p.terminal && p.last != p.start {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
