package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Screen is where the story is told. On a terminal its last line is live: it is
// redrawn in place while lines above it scroll. Elsewhere everything is a plain
// line. Its methods may be called concurrently.
type Screen struct {
	out      io.Writer
	terminal bool // lines may be redrawn
	colour   bool

	mu    sync.Mutex
	live  string    // what the live line shows now
	began time.Time // of the story; zero before it
	err   error     // the first failed write
}

// NewScreen returns a screen for Run. On a terminal it redraws, and colours, unless
// TERM is "dumb" or NO_COLOR is set.
func NewScreen(out io.Writer, terminal bool) *Screen {
	s := &Screen{out: out}
	s.terminal = terminal && os.Getenv("TERM") != "dumb"
	s.colour = s.terminal && os.Getenv("NO_COLOR") == ""
	return s
}

// say prints a line.
func (s *Screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.print(fmt.Sprintf(format, args...))
}

// tell prints a line of the story, with the time since its beginning. Further
// lines of the text are indented to match.
func (s *Screen) tell(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\n"+strings.Repeat(" ", len(s.stamp(""))))
	s.print(s.stamp(text))
}

// rates shows how things go: in the live line on a terminal, as a line of the
// story elsewhere.
func (s *Screen) rates(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		s.print(s.stamp(text))
		return
	}
	s.live = fit(s.stamp(text), s.width())
	s.write("\r\x1b[K" + s.dim(s.live))
}

// still ends the live line.
func (s *Screen) still() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live != "" {
		s.live = ""
		s.write("\r\x1b[K")
	}
}

// begin starts the clock of tell.
func (s *Screen) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began = time.Now()
}

// failed is the first error of writing, nil if all could be shown.
func (s *Screen) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return fmt.Errorf("write to the terminal: %w", s.err)
	}
	return nil
}

func (s *Screen) stamp(text string) string {
	since := 0.0
	if !s.began.IsZero() {
		since = time.Since(s.began).Seconds()
	}
	return fmt.Sprintf("%7.1fs  %s", since, text)
}

func (s *Screen) print(text string) {
	if s.live == "" {
		s.write(text + "\n")
		return
	}
	s.write("\r\x1b[K" + text + "\n" + s.dim(s.live))
}

func (s *Screen) write(text string) {
	if _, err := io.WriteString(s.out, text); err != nil && s.err == nil {
		s.err = err
	}
}

func (s *Screen) width() int {
	if f, ok := s.out.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return 80
}

// fit cuts a line that would wrap, since a wrapped line cannot be redrawn.
func fit(line string, width int) string {
	if runes := []rune(line); len(runes) >= width {
		return string(runes[:max(0, width-1)])
	}
	return line
}

func (s *Screen) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s *Screen) dim(text string) string  { return s.paint("2", text) }
func (s *Screen) bold(text string) string { return s.paint("1", text) }
func (s *Screen) good(text string) string { return s.paint("1;32", text) }
func (s *Screen) bad(text string) string  { return s.paint("1;31", text) }
