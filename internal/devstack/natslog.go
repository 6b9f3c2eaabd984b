package devstack

import (
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
)

// natsLog writes the server's log to a file. The loggers that come with
// nats-server end the whole process on a fatal message, which would take the
// demo or a test run down with an embedded server; this one remembers it.
type natsLog struct {
	file *os.File
	out  *log.Logger

	mu        sync.Mutex
	lastFatal string
}

var _ server.Logger = (*natsLog)(nil)

func openNATSLog(path string) (*natsLog, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of nats-server: %w", err)
	}
	return &natsLog{file: file, out: log.New(file, "", log.LstdFlags|log.Lmicroseconds)}, nil
}

func (l *natsLog) Close() error { return l.file.Close() }

func (l *natsLog) fatal() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lastFatal == "" {
		return "it gave no reason, see its log " + l.file.Name()
	}
	return l.lastFatal
}

func (l *natsLog) Noticef(format string, v ...any) { l.out.Printf("notice "+format, v...) }
func (l *natsLog) Warnf(format string, v ...any)   { l.out.Printf("warning "+format, v...) }
func (l *natsLog) Errorf(format string, v ...any)  { l.out.Printf("error "+format, v...) }
func (l *natsLog) Debugf(format string, v ...any)  { l.out.Printf("debug "+format, v...) }
func (l *natsLog) Tracef(format string, v ...any)  { l.out.Printf("trace "+format, v...) }

func (l *natsLog) Fatalf(format string, v ...any) {
	l.out.Printf("fatal "+format, v...)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastFatal = fmt.Sprintf(format, v...)
}
