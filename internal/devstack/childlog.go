package devstack

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
)

// childLog is where the output of a child goes.
type childLog interface {
	// open returns what the child writes to. It is closed once the child has
	// started, or has failed to.
	open() (io.WriteCloser, error)
	// tail is the end of the output, ready to be put behind an error message.
	tail() string
}

// tailLines is how much of a log stands behind an error.
const tailLines = 15

// logFile is the path of a log. The child writes straight to the file, without
// a copying goroutine, so nothing of it is lost when either side is killed.
type logFile string

func (l logFile) open() (io.WriteCloser, error) {
	return os.OpenFile(string(l), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// tail is the end of a log file, ready to be put behind an error message.
func (l logFile) tail() string {
	const most = 8 << 10
	path := string(l)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Sprintf(" (no log: %v)", err)
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		if _, err := f.Seek(max(0, end-most), io.SeekStart); err != nil {
			return fmt.Sprintf(" (no log: %v)", err)
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return fmt.Sprintf(" (no log: %v)", err)
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(all) == 1 && all[0] == "" {
		return " (its log " + path + " is empty)"
	}
	all = all[max(0, len(all)-tailLines):]
	return "\nend of its log " + path + ":\n  " + strings.Join(all, "\n  ")
}

// longestLine bounds what is kept of a line; the rest of it is dropped.
const longestLine = 64 << 10

// lastLines keeps the end of a child's output in memory, and shows each line as
// it comes. os/exec copies to it, and is done before the child counts as gone.
type lastLines struct {
	each func(line string) // may be nil; called by one goroutine

	mu      sync.Mutex
	partial []byte
	kept    []string
}

func (l *lastLines) open() (io.WriteCloser, error) { return l, nil }

// Close has nothing to do: what has come stays.
func (l *lastLines) Close() error { return nil }

// Write never fails: an error would end the copying, and with it a child that
// writes on.
func (l *lastLines) Write(p []byte) (int, error) {
	written := len(p)
	for {
		part, rest, whole := bytes.Cut(p, []byte{'\n'})
		line := l.add(part, whole)
		if !whole {
			return written, nil
		}
		if l.each != nil {
			l.each(line)
		}
		p = rest
	}
}

// add returns the line that the part completes.
func (l *lastLines) add(part []byte, whole bool) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, part[:min(len(part), longestLine-len(l.partial))]...)
	if !whole {
		return ""
	}
	line := string(l.partial)
	l.partial = l.partial[:0]
	l.kept = append(l.kept[max(0, len(l.kept)+1-tailLines):], line)
	return line
}

func (l *lastLines) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.kept
	if len(l.partial) > 0 { // the last words of one that died
		lines = append(slices.Clone(lines), string(l.partial))
	}
	if len(lines) == 0 {
		return " (its log is empty)"
	}
	return "\nend of its log:\n  " + strings.Join(lines, "\n  ")
}
